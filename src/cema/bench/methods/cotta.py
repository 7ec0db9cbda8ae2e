"""``cotta``: a slow teacher answers and teaches all parameters, which now and then fall back to the source's.

Wang et al., "Continual Test-Time Domain Adaptation", CVPR 2022, arXiv 2203.13591. Needs back-propagation on the
device, three copies of the model, and many forward passes of each batch that it finds difficult.
"""

from __future__ import annotations

import copy
from typing import Annotated, ClassVar

import msgspec
import torch
from msgspec import Meta
from torch import nn

from cema.bench.methods.base import DeviceMethod
from cema.bench.methods.cotta_augment import PIXEL_MEAN, PIXEL_STD, Augment, Channels
from cema.bench.methods.norms import by_batch
from cema.bench.rows import Where
from cema.cloud.adapt.losses import divergence, entropy


class CottaSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The authors' numbers for CIFAR-10-C (batches of 200). CIFAR-100-C: threshold 0.72.

    ImageNet-C: threshold 0.1, restore 0.001. There the released code also descends a symmetric cross-entropy by SGD
    (lr 0.01, Nesterov momentum 0.9, batches of 64); here it is Adam and the loss of the paper everywhere.
    """

    lr: Annotated[float, Meta(gt=0, le=1)] = 0.001
    """Of Adam, betas 0.9 and 0.999, on all parameters."""
    teacher_momentum: Annotated[float, Meta(ge=0, le=1)] = 0.999
    """alpha of the teacher's moving average."""
    threshold: Annotated[float, Meta(ge=0, le=1)] = 0.92
    """p_th: mean confidence of the source model below which pseudo-labels are averaged over views."""
    augmentations: Annotated[int, Meta(ge=1, le=64)] = 32
    """N views."""
    restore: Annotated[float, Meta(ge=0, le=1)] = 0.01
    """p: share of parameters set back to the source's after each step."""
    pixel_mean: Channels = PIXEL_MEAN
    pixel_std: Channels = PIXEL_STD
    """How the input was normalised, for the views' colours (cotta_augment.py)."""


class Cotta(DeviceMethod):
    """Student theta, teacher theta', source theta_0; all with the batch's statistics in their batch norms.

    Per batch x, once:

        y'    = f_theta'(x) if mean conf(f_theta0(x)) >= p_th else 1/N sum_i f_theta'(view_i(x))
        L     = - mean_i sum_k y'_ik log f_theta(x)_ik, one step of Adam on theta
        theta' <- alpha theta' + (1 - alpha) theta
        theta <- M theta_0 + (1 - M) theta,  M ~ Bernoulli(p) per number

    The answer is y'. As in the authors' code the confidence is the batch's mean, and views are averaged as logits.
    Dropout stays off, so that a run is repeatable. Without batch norm the statistics do not matter.
    """

    Settings = CottaSettings
    where: ClassVar[Where] = "backward"

    def __init__(self, model: nn.Module, settings: CottaSettings, seed: int) -> None:
        self.settings = settings
        self.source = by_batch(model).requires_grad_(False)
        self.teacher = copy.deepcopy(self.source)
        self.student = copy.deepcopy(self.source).requires_grad_(True)
        self.optimiser = torch.optim.Adam(self.student.parameters(), settings.lr)
        self.generator = torch.Generator().manual_seed(seed)
        self.augment = Augment(self.generator, settings.pixel_mean, settings.pixel_std)

    def predict(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        teacher_BK = self._pseudo_label(images_BCHW)
        self._learn(images_BCHW, teacher_BK)
        self._follow()
        self._restore()
        return teacher_BK.softmax(1).float()

    @torch.no_grad()
    def _pseudo_label(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """y' as logits [B, K]."""
        confidence_B = self.source(images_BCHW).softmax(1).amax(1)
        if float(confidence_B.mean()) >= self.settings.threshold:
            logits_BK: torch.Tensor = self.teacher(images_BCHW)
            return logits_BK
        views = (self.augment(images_BCHW) for _ in range(self.settings.augmentations))
        return torch.stack([self.teacher(view_BCHW) for view_BCHW in views]).mean(0)

    @torch.enable_grad()
    def _learn(self, images_BCHW: torch.Tensor, teacher_BK: torch.Tensor) -> None:
        # cross-entropy = divergence + the teacher's entropy, which has no gradient
        loss = (divergence(teacher_BK, self.student(images_BCHW)) + entropy(teacher_BK)).mean()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()

    @torch.no_grad()
    def _follow(self) -> None:
        for slow, fast in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            slow.lerp_(fast, 1 - self.settings.teacher_momentum)

    @torch.no_grad()
    def _restore(self) -> None:
        for fast, origin in zip(self.student.parameters(), self.source.parameters(), strict=True):
            back = torch.rand(fast.shape, generator=self.generator) < self.settings.restore
            fast.copy_(torch.where(back, origin, fast))
