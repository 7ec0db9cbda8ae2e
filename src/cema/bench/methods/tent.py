"""``tent``: entropy minimisation on the norm layers, one step per batch. Needs back-propagation on the device.

Wang et al., "Tent: Fully test-time adaptation by entropy minimization", ICLR 2021, arXiv 2006.10726.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec
import torch
from msgspec import Meta
from torch import nn

from cema.bench.methods.base import DeviceMethod
from cema.bench.methods.norms import by_batch, descend, probabilities, train_affine
from cema.bench.rows import Where
from cema.cloud.adapt.losses import entropy

ADAM_BETA2 = 0.999
"""Decay of Adam's second moment (Kingma & Ba, ICLR 2015); the authors leave it alone."""


class TentSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The method's numbers: the authors' for CIFAR-10-C (batches of 200). For ImageNet-C: sgd, lr 0.00025, 64."""

    optimiser: Literal["adam", "sgd"] = "adam"
    lr: Annotated[float, Meta(gt=0, le=1)] = 0.001
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    """beta 1 of Adam, momentum of SGD."""


class Tent(DeviceMethod):
    """Batch norms use the batch's statistics; of each batch the mean entropy is descended once:

        L = 1/B sum_i H(p_i),   H(p) = - sum_k p_k ln p_k,   over gamma and beta of all norm layers

    The answer is that of the forward before the step. Layer and group norms are trained likewise. Dropout stays off.
    """

    Settings = TentSettings
    where: ClassVar[Where] = "backward"

    def __init__(self, model: nn.Module, settings: TentSettings, seed: int) -> None:
        self.model = by_batch(model)
        trained = train_affine(self.model, "tent")
        self.optimiser: torch.optim.Optimizer
        if settings.optimiser == "adam":
            self.optimiser = torch.optim.Adam(trained, settings.lr, betas=(settings.momentum, ADAM_BETA2))
        else:
            self.optimiser = torch.optim.SGD(trained, settings.lr, settings.momentum)

    @torch.enable_grad()
    def predict(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        logits_BK = self.model(images_BCHW)
        descend(entropy(logits_BK).mean(), self.optimiser)
        return probabilities(logits_BK)
