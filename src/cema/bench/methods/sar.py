"""``sar``: sharpness-aware entropy minimisation on reliable samples. Two forward and two backward passes per batch.

Niu et al., "Towards Stable Test-Time Adaptation in Dynamic Wild World", ICLR 2023, arXiv 2302.12400.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import msgspec
import torch
from msgspec import Meta
from torch import nn

from cema.bench.methods.base import DeviceMethod
from cema.bench.methods.norms import by_batch, probabilities, train_affine
from cema.bench.rows import Where
from cema.cloud.adapt.losses import entropy
from cema.cloud.norms import norm_layers

FULL_RATE_BATCH = 32
"""Images from which on a batch gets the full learning rate; a smaller one gets its share (lr / 32 for one image:
section 5, implementation details)."""
NORM_FLOOR = 1e-12
"""Added to the norm of the gradient, so that none is divided by zero."""


class SarSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The method's numbers, as published for ResNet-50 on ImageNet-C (the paper has no others for batch norm)."""

    lr: Annotated[float, Meta(gt=0, le=1)] = 0.00025
    """Of SGD, for batches of 32 images and more."""
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    rho: Annotated[float, Meta(ge=0, le=1)] = 0.05
    """Radius of the neighbourhood in which the entropy shall be low (Eq. 4)."""
    e_margin: Annotated[float, Meta(gt=0, le=1)] = 0.4
    """E_0, fraction of ln K: samples with more entropy are not reliable (Eq. 2)."""
    reset_entropy: Annotated[float, Meta(ge=0)] = 0.2
    """e_0, nats: a moving mean of the loss below it means collapse. Chosen by the authors for 1,000 classes; with ten
    a confident model lies below without having collapsed. 0 switches the recovery off."""
    mean_share: Annotated[float, Meta(gt=0, le=1)] = 0.1
    """Share of the present batch in that moving mean."""
    frozen_top: Annotated[float, Meta(ge=0, lt=1)] = 0.2
    """Share of the norm layers, counted from the output and rounded down, that is not trained; see ``Sar``."""


class Sar(DeviceMethod):
    """Batch norms use the batch's statistics. Per batch, over theta = gamma and beta of the lower norm layers:

        S1 = {i: H_i(theta) < E_0},              g = gradient of mean H_i over S1                       (Eq. 2)
        theta' = theta + rho g / |g|             |g|: over all of theta                                 (Eq. 4)
        S2 = {i in S1: H_i(theta') < E_0},       L = mean H_i(theta') over S2
        theta <- SGD step from theta with the gradient of L at theta'                                   (Eq. 5)
        e <- (1 - share) e + share L;  if e < e_0: theta <- source, e and the momentum are forgotten    (recovery)

    Where S1 or S2 is empty there is no step, as in Algorithm 1; in the released code the momentum then runs on.
    Algorithm 1 and the released code keep e after a recovery, which the authors call an oversight (in a thread of their
    repository); that code keeps the momentum, too. The answer is that of the first forward.

    The authors leave the top of the network alone, by name: ``layer4`` of a ResNet-50 (10 of its 53 norm layers),
    the last three blocks and the final norm of a ViT-B (7 of 25). Other networks have no such names, so here it is a
    share of the norm layers of any kind, ``frozen_top``, that gives those 10 of 53. The frozen batch norms still
    use the batch's statistics.
    """

    Settings = SarSettings
    where: ClassVar[Where] = "backward"

    def __init__(self, model: nn.Module, settings: SarSettings, seed: int) -> None:
        self.model, self.settings = by_batch(model), settings
        self.trained = self._lower(train_affine(self.model, "sar"))
        self.optimiser = torch.optim.SGD(self.trained, settings.lr, settings.momentum)
        self.source = [parameter.detach().clone() for parameter in self.trained]
        self.mean_loss: float | None = None

    @torch.enable_grad()
    def predict(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        logits_BK = self.model(images_BCHW)
        e_0 = self.settings.e_margin * math.log(logits_BK.shape[1])
        entropy_B = entropy(logits_BK)
        reliable_B = entropy_B.detach() < e_0
        if reliable_B.any():
            self._adapt(images_BCHW, entropy_B, reliable_B, e_0)
        return probabilities(logits_BK)

    def _adapt(self, images_BCHW: torch.Tensor, entropy_B: torch.Tensor, reliable_B: torch.Tensor, e_0: float) -> None:
        here = [parameter.detach().clone() for parameter in self.trained]
        self._climb(self._gradient(entropy_B[reliable_B].mean()))
        second_B = entropy(self.model(images_BCHW))
        used_B = reliable_B & (second_B.detach() < e_0)
        gradients = None
        if used_B.any():
            loss = second_B[used_B].mean()
            gradients = self._gradient(loss)
        self._put(here)
        if gradients is not None:
            self._step(gradients, len(images_BCHW))
            self._recover(float(loss.detach()))

    def _gradient(self, loss: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(loss, self.trained, materialize_grads=True, allow_unused=True)

    @torch.no_grad()
    def _climb(self, gradients: tuple[torch.Tensor, ...]) -> None:
        norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
        for parameter, gradient in zip(self.trained, gradients, strict=True):
            parameter.add_(gradient * (self.settings.rho / (norm + NORM_FLOOR)))

    @torch.no_grad()
    def _put(self, values: list[torch.Tensor]) -> None:
        for parameter, value in zip(self.trained, values, strict=True):
            parameter.copy_(value)

    def _step(self, gradients: tuple[torch.Tensor, ...], images: int) -> None:
        for parameter, gradient in zip(self.trained, gradients, strict=True):
            parameter.grad = gradient
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.lr * min(1.0, images / FULL_RATE_BATCH)
        self.optimiser.step()

    def _recover(self, loss: float) -> None:
        share = self.settings.mean_share
        self.mean_loss = loss if self.mean_loss is None else (1 - share) * self.mean_loss + share * loss
        if self.mean_loss < self.settings.reset_entropy:
            self._put(self.source)
            self.optimiser.state.clear()
            self.mean_loss = None

    def _lower(self, trained: list[nn.Parameter]) -> list[nn.Parameter]:
        """Those of ``trained`` that lie below the frozen top, which is marked as not trainable."""
        layers = norm_layers(self.model)
        frozen = int(self.settings.frozen_top * len(layers))
        for layer in layers[len(layers) - frozen :]:
            layer.module.requires_grad_(False)
        return [parameter for parameter in trained if parameter.requires_grad]
