"""``eta`` and ``eata``: entropy minimisation on reliable, non-redundant samples, without and with an anchor.

Niu et al., "Efficient Test-Time Model Adaptation without Forgetting", ICML 2022, arXiv 2204.02610. Both need
back-propagation on the device. The anchor of ``eata`` needs clean pictures before the stream begins.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import msgspec
import torch
from msgspec import Meta
from torch import nn
from torch.nn import functional

from cema.bench.methods.base import DeviceMethod
from cema.bench.methods.norms import by_batch, descend, probabilities, train_affine
from cema.bench.rows import Where
from cema.cloud.adapt.losses import confidence_weight, entropy
from cema.errors import ConfigError

FISHER_SAMPLES = 2000
"""Clean pictures behind the Fisher information (section 5, implementation details)."""
FISHER_BATCH = 64
"""Pictures per squared gradient, as in the released code; beta is tuned to it."""


class EtaSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The numbers of both methods: the paper's for CIFAR-10-C; for ImageNet-C lr 0.00025, d_margin 0.05."""

    lr: Annotated[float, Meta(gt=0, le=1)] = 0.005
    """Of SGD, batches of 64."""
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    e_margin: Annotated[float, Meta(gt=0, le=1)] = 0.4
    """E_0, fraction of ln K: samples with more entropy are not reliable (Eq. 3)."""
    d_margin: Annotated[float, Meta(gt=0, le=1)] = 0.4
    """epsilon: samples whose probabilities are closer (cosine) to the moving mean are redundant (Eq. 5)."""
    mean_share: Annotated[float, Meta(gt=0, le=1)] = 0.1
    """alpha: share of the present batch in the moving mean of probabilities (Eq. 4)."""


class EataSettings(EtaSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The anchor's numbers beside those of ``eta``; for ImageNet-C fisher_alpha 2000."""

    fisher_alpha: Annotated[float, Meta(ge=0)] = 1.0
    """beta of Eq. 8, weight of the anchor."""
    fisher_samples: Annotated[int, Meta(ge=1)] = FISHER_SAMPLES
    """Clean pictures used, at most."""


class Eta(DeviceMethod):
    """EATA without the anchor. Batch norms use the batch's statistics; one SGD step on gamma and beta descends

        L = mean of exp(E_0 - H(p)) H(p)  over the samples with  H(p) < E_0  and  |cos(p, m)| < epsilon   (Eq. 2-5)

    m: moving mean of the probabilities of the samples used so far; before there is one, every reliable sample counts.
    The weight carries no gradient. Without a sample left there is no step. The answer is that of the forward before
    the step.
    """

    Settings: type[msgspec.Struct] = EtaSettings
    where: ClassVar[Where] = "backward"
    name: ClassVar[str] = "eta"

    def __init__(self, model: nn.Module, settings: EtaSettings, seed: int) -> None:
        self.model, self.settings = by_batch(model), settings
        self.trained = train_affine(self.model, self.name)
        self.optimiser = torch.optim.SGD(self.trained, settings.lr, settings.momentum)
        self.mean_K: torch.Tensor | None = None

    @torch.enable_grad()
    def predict(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        logits_BK = self.model(images_BCHW)
        e_0 = self.settings.e_margin * math.log(logits_BK.shape[1])
        entropy_B = entropy(logits_BK)
        used_B = self._select(logits_BK.detach().softmax(1), entropy_B.detach() < e_0)
        if used_B.any():
            entropy_used = entropy_B[used_B]
            descend((confidence_weight(entropy_used, e_0) * entropy_used).mean() + self._penalty(), self.optimiser)
        return probabilities(logits_BK)

    def _select(self, probabilities_BK: torch.Tensor, reliable_B: torch.Tensor) -> torch.Tensor:
        """Which samples are used, bool [B]; they move the mean."""
        used_B = reliable_B
        if self.mean_K is not None:
            cosine_B = functional.cosine_similarity(self.mean_K[None], probabilities_BK, dim=1)
            used_B = reliable_B & (cosine_B.abs() < self.settings.d_margin)
        if used_B.any():
            batch_K = probabilities_BK[used_B].mean(0)
            self.mean_K = batch_K if self.mean_K is None else self.mean_K.lerp(batch_K, self.settings.mean_share)
        return used_B

    def _penalty(self) -> torch.Tensor | float:
        """What is added to the loss."""
        return 0.0


class Eata(Eta):
    """``Eta`` with every trained parameter tied to its source value by its Fisher information (Eq. 8 and 9):

        L + beta sum_i F_i (theta_i - theta_i,source)^2,   F_i = mean over D of (d CE(f(x), argmax f(x)) / d theta_i)^2

    D: clean pictures, which a device in the field does not have: ``prepare`` takes them once, before the stream, as
    published. The mean is over batches of FISHER_BATCH, each with the gradient of its mean loss and its own batch
    statistics, as in the released code (the paper writes it picture by picture, which would be a larger F).
    """

    Settings = EataSettings
    name = "eata"
    prepare_images: ClassVar[int] = FISHER_SAMPLES
    """Clean pictures outside the stream that ``prepare`` should be given; fewer will do."""

    def __init__(self, model: nn.Module, settings: EataSettings, seed: int) -> None:
        super().__init__(model, settings, seed)
        self.fisher_alpha, self.fisher_samples = settings.fisher_alpha, settings.fisher_samples
        self.source = [parameter.detach().clone() for parameter in self.trained]
        self.fisher: list[torch.Tensor] = []

    @torch.enable_grad()
    def prepare(self, clean_BCHW: torch.Tensor) -> None:
        """The Fisher information, from preprocessed clean pictures float32 [B, C, H, W], B >= 1, without labels.

        To be called once, before the first ``predict``; changes no parameter. The first ``fisher_samples`` are used.
        Raises ConfigError without a picture.
        """
        if not len(clean_BCHW):
            raise ConfigError(
                "method 'eata' needs clean pictures for its Fisher information, got none", hint="or run method 'eta'"
            )
        batches = torch.split(clean_BCHW[: self.fisher_samples], FISHER_BATCH)
        self.fisher = [torch.zeros_like(parameter) for parameter in self.source]
        for images_BCHW in batches:
            logits_BK = self.model(images_BCHW)
            loss = functional.cross_entropy(logits_BK, logits_BK.argmax(1))
            gradients = torch.autograd.grad(loss, self.trained, materialize_grads=True, allow_unused=True)
            for fisher, gradient in zip(self.fisher, gradients, strict=True):
                fisher.add_(gradient.square(), alpha=1 / len(batches))

    def predict(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        if not self.fisher:
            raise ConfigError(
                "method 'eata' was not given clean pictures before its first batch",
                hint="call prepare() with pictures outside the stream, or run method 'eta'",
            )
        return super().predict(images_BCHW)

    def _penalty(self) -> torch.Tensor:
        terms = zip(self.fisher, self.trained, self.source, strict=True)
        return self.fisher_alpha * torch.stack([(f * (now - then).square()).sum() for f, now, then in terms]).sum()
