"""``lame``: correct the answers, not the model: pictures with similar features get similar answers. Forward only.

Boudiaf et al., "Parameter-free Online Test-time Adaptation", CVPR 2022, arXiv 2201.05718.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec
import torch
from msgspec import Meta
from torch import nn
from torch.nn import functional

from cema.bench.methods.base import DeviceMethod
from cema.bench.methods.features import capture
from cema.bench.methods.norms import by_batch
from cema.bench.rows import Where


class LameSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The method's numbers: k and the end of the iteration are the authors' (searched: knn, rbf, linear; k 1, 3, 5).

    Their released code takes rbf where nothing is given; knn with k = 5 is what the code of NOTE (Gong et al., NeurIPS
    2022) and that of CEMA run as LAME.
    """

    affinity: Literal["knn", "rbf"] = "knn"
    neighbours: Annotated[int, Meta(ge=1, le=64)] = 5
    """k: of knn, neighbours beside the picture itself; of rbf, whose distance sets the width (itself counted)."""
    max_steps: Annotated[int, Meta(ge=1, le=1000)] = 100
    tolerance: Annotated[float, Meta(ge=0, le=1e-2)] = 1e-8
    """Relative change of the energy that ends the iteration."""
    batch_statistics: bool = False
    """Batch norm by the batch instead of the source's statistics; the authors leave the model as it is."""


class Lame(DeviceMethod):
    """Laplacian adjusted maximum likelihood: per batch, answers z that stay near the model's q and agree among
    neighbours,

        min_z  sum_i KL(z_i || q_i) - sum_ij w_ij z_i . z_j

    by the concave-convex procedure, from z = q until its bound of the energy rests:

        z_ik <- q_ik exp(sum_j w_ij z_jk) / sum_k' q_ik' exp(sum_j w_ij z_jk')

    Affinities from features f / ||f|| before the classifier: knn: w_ij = 1 for the k nearest j != i, else 0;
    rbf: w_ij = exp(-||f_i - f_j||^2 / 2 s^2), s = mean distance to the k-th nearest, w_ii = 1. Nothing is remembered
    from batch to batch; of one picture alone knn gives the model's own answer.
    """

    Settings = LameSettings
    where: ClassVar[Where] = "forward"

    def __init__(self, model: nn.Module, settings: LameSettings, seed: int) -> None:
        self.settings = settings
        self.model = by_batch(model) if settings.batch_statistics else model

    @torch.no_grad()
    def predict(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        captured = capture(self.model, images_BCHW)
        # float64: the tolerance is below what float32 resolves
        features_BD = functional.normalize(captured.features.double(), dim=1)
        affinity = knn_affinity if self.settings.affinity == "knn" else rbf_affinity
        affinity_BB = affinity(features_BD, self.settings.neighbours)
        log_q_BK = functional.log_softmax(captured.logits.double(), dim=1)
        return laplacian_adjusted(log_q_BK, affinity_BB, self.settings.max_steps, self.settings.tolerance).float()


def knn_affinity(features_BD: torch.Tensor, neighbours: int) -> torch.Tensor:
    """[B, B]: 1 where column j is among the ``neighbours`` nearest of row i (all of them in small batches), else 0."""
    distance_BB = _distances(features_BD).fill_diagonal_(torch.inf)
    nearest = distance_BB.topk(min(neighbours, len(features_BD) - 1), dim=1, largest=False).indices
    return torch.zeros_like(distance_BB).scatter_(1, nearest, 1.0)


def rbf_affinity(features_BD: torch.Tensor, neighbours: int) -> torch.Tensor:
    """[B, B]: Gaussian of the distance, as wide as the mean distance to the ``neighbours``-th nearest."""
    distance_BB = _distances(features_BD)
    kth_B = distance_BB.topk(min(neighbours, len(features_BD)), dim=1, largest=False).values[:, -1]
    width = kth_B.mean().clamp_min(torch.finfo(distance_BB.dtype).tiny ** 0.5)  # of equal features alone it is zero
    return torch.exp(-((distance_BB / width) ** 2) / 2)


def laplacian_adjusted(
    log_q_BK: torch.Tensor, affinity_BB: torch.Tensor, max_steps: int, tolerance: float
) -> torch.Tensor:
    """z [B, K] from log probabilities and affinities; stops when the energy moves by a share <= tolerance."""
    z_BK = log_q_BK.exp()
    before = torch.inf
    for _ in range(max_steps):
        pull_BK = affinity_BB @ z_BK
        z_BK = functional.softmax(log_q_BK + pull_BK, dim=1)
        energy = float((torch.xlogy(z_BK, z_BK) - z_BK * log_q_BK - z_BK * pull_BK).sum())
        if abs(energy - before) <= tolerance * abs(before) < torch.inf:
            break
        before = energy
    return z_BK


def _distances(features_BD: torch.Tensor) -> torch.Tensor:
    # by differences: the shortcut over products loses the small distances that matter here
    return torch.cdist(features_BD, features_BD, compute_mode="donot_use_mm_for_euclid_dist")
