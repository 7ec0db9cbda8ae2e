"""``t3a``: the classifier becomes prototypes that follow the stream's confident features. Forward only.

Iwasawa & Matsuo, "Test-Time Classifier Adjustment Module for Model-Agnostic Domain Generalization", NeurIPS 2021.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec
import torch
from msgspec import Meta
from torch import nn
from torch.nn import functional

from cema.bench.methods.base import DeviceMethod
from cema.bench.methods.features import capture
from cema.bench.methods.norms import by_batch
from cema.bench.rows import Where
from cema.cloud.adapt.losses import entropy


class T3ASettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The method's numbers."""

    filter_k: Annotated[int, Meta(ge=0, le=100_000)] = 20
    """M: supports kept per class, 0 = all. The paper chooses per data set from 1, 5, 20, 50, 100, all."""
    batch_statistics: bool = False
    """Batch norm by the batch instead of the source's statistics; the authors leave the model as it is."""


class T3A(DeviceMethod):
    """Test-time template adjuster. Every class k has supports S_k, at first its weight vector w_k alone:

        S_k = {w_k / ||w_k||};   a picture with features z joins S_k, k = argmax p, as z / ||z||

    Of each S_k stay the M with the lowest entropy H(p) of the model's own answer (of w_k: the classifier's answer
    to w_k). The answer is softmax_k(z . c_k), c_k the sum of S_k scaled to length 1 as in the authors' code
    (the paper's mean differs by a length per class). That code files w_k under the class the classifier gives it, here
    as in the paper it starts class k. A batch joins before it is answered.
    """

    Settings = T3ASettings
    where: ClassVar[Where] = "forward"

    def __init__(self, model: nn.Module, settings: T3ASettings, seed: int) -> None:
        self.settings = settings
        self.model = by_batch(model) if settings.batch_statistics else model
        self.supports: Supports | None = None

    @torch.no_grad()
    def predict(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        captured = capture(self.model, images_BCHW)
        if self.supports is None:
            self.supports = Supports(captured.classifier, self.settings.filter_k)
        features_BD = captured.features
        self.supports.add(features_BD, captured.logits.argmax(1), entropy(captured.logits))
        return functional.softmax(features_BD @ self.supports.prototypes().T, dim=1).float()


class Supports:
    """The supports of all classes: unit vectors [N, D] with class and entropy [N], at most ``filter_k`` per class."""

    def __init__(self, classifier: nn.Linear, filter_k: int) -> None:
        weight_KD = classifier.weight.detach()
        self.classes, self.filter_k = len(weight_KD), filter_k
        self.vectors_ND = functional.normalize(weight_KD, dim=1)
        self.labels_N = torch.arange(self.classes)
        self.entropy_N = entropy(classifier(weight_KD)).detach()

    def add(self, features_BD: torch.Tensor, labels_B: torch.Tensor, entropy_B: torch.Tensor) -> None:
        """Take in a batch with its pseudo-labels, then drop what is least certain."""
        self.vectors_ND = torch.cat([self.vectors_ND, functional.normalize(features_BD, dim=1)])
        self.labels_N = torch.cat([self.labels_N, labels_B])
        self.entropy_N = torch.cat([self.entropy_N, entropy_B])
        if self.filter_k:
            self._filter()

    def prototypes(self) -> torch.Tensor:
        """c_k, float [K, D], of length 1."""
        sums_KD = self.vectors_ND.new_zeros(self.classes, self.vectors_ND.shape[1])
        return functional.normalize(sums_KD.index_add_(0, self.labels_N, self.vectors_ND), dim=1)

    def _filter(self) -> None:
        by_entropy = self.entropy_N.argsort(stable=True)
        order = by_entropy[self.labels_N[by_entropy].argsort(stable=True)]  # class after class, certain ones first
        counts_K = torch.bincount(self.labels_N, minlength=self.classes)
        first_K = counts_K.cumsum(0) - counts_K
        rank_N = torch.arange(len(order)) - first_K[self.labels_N[order]]
        kept = order[rank_N < self.filter_k].sort().values  # in order of arrival: of equal ones the older stays
        self.vectors_ND, self.labels_N, self.entropy_N = (
            self.vectors_ND[kept],
            self.labels_N[kept],
            self.entropy_N[kept],
        )
