"""``rotta``: a teacher answers, a student learns from a balanced memory, statistics move slowly.

Yuan et al., "Robust Test-Time Adaptation in Dynamic Scenarios", CVPR 2023, arXiv 2303.13899. Made for streams whose
classes come in runs. Needs back-propagation on the device and two copies of the model.
"""

from __future__ import annotations

import copy
from typing import Annotated, ClassVar

import msgspec
import torch
from msgspec import Meta
from torch import nn
from torch.nn import functional

from cema.bench.methods.base import DeviceMethod
from cema.bench.methods.cotta_augment import PIXEL_MEAN, PIXEL_STD, Augment, Channels
from cema.bench.methods.rotta_memory import Memory
from cema.bench.rows import Where
from cema.cloud.adapt.losses import entropy
from cema.errors import ConfigError

Weight = Annotated[float, Meta(ge=0, le=100)]


class RottaSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The method's numbers (the released configuration, one for CIFAR-10-C and CIFAR-100-C; none for ImageNet-C)."""

    lr: Annotated[float, Meta(gt=0, le=1)] = 0.001
    """Of Adam, betas 0.9 and 0.999, on weights and biases of the batch norms."""
    statistics_rate: Annotated[float, Meta(gt=0, le=1)] = 0.05
    """alpha: how far the statistics move towards a batch of the memory."""
    teacher_rate: Annotated[float, Meta(ge=0, le=1)] = 0.001
    """nu: how far the teacher moves towards the student."""
    capacity: Annotated[int, Meta(ge=1, le=10_000)] = 64
    """N: images remembered."""
    update_every: Annotated[int, Meta(ge=1, le=10_000)] = 64
    """Images between two updates."""
    lambda_t: Weight = 1.0
    """Of an image's age in the memory's score."""
    lambda_u: Weight = 1.0
    """Of its uncertainty."""
    pixel_mean: Channels = PIXEL_MEAN
    pixel_std: Channels = PIXEL_STD
    """How the input was normalised, for the colours of the student's view (cotta_augment.py)."""


class Rotta(DeviceMethod):
    """The teacher answers each batch by its own slow statistics; its labels and entropies fill the memory
    (rotta_memory.py). After every ``update_every`` images the memory is one batch:

        L = 1/N sum_i E(A_i) CE(teacher(x_i), student(view(x_i))),   E(A) = exp(-A/N) / (1 + exp(-A/N))

    one step of Adam on gamma and beta of the student, then theta' <- (1 - nu) theta' + nu theta. The view is
    ``cotta``'s. Both networks' batch norms are ``RobustNorm``; those of the teacher see x, the student's the view.
    """

    Settings = RottaSettings
    where: ClassVar[Where] = "backward"

    def __init__(self, model: nn.Module, settings: RottaSettings, seed: int) -> None:
        self.settings = settings
        self.teacher = robust(model, settings.statistics_rate).requires_grad_(False)
        self.student = copy.deepcopy(self.teacher)
        norms = [layer for layer in self.student.modules() if isinstance(layer, RobustNorm)]
        trained = [parameter.requires_grad_(True) for layer in norms for parameter in layer.parameters()]
        if not trained:
            raise ConfigError(
                "method 'rotta' trains weights and biases of batch norms, and the model has none",
                hint="use a model with batch norm, or a method without gradients",
            )
        self.optimiser = torch.optim.Adam(trained, settings.lr)
        self.augment = Augment(torch.Generator().manual_seed(seed), settings.pixel_mean, settings.pixel_std)
        self.memory: Memory | None = None
        self.seen = 0

    def predict(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            logits_BK = self.teacher(images_BCHW)
        if self.memory is None:
            self.memory = self._new_memory(logits_BK.shape[1])
        labels, entropies = logits_BK.argmax(1).tolist(), entropy(logits_BK).tolist()
        for image_CHW, label, uncertainty in zip(images_BCHW, labels, entropies, strict=True):
            self.memory.add(image_CHW, label, uncertainty)
            self.seen += 1
            if self.seen % self.settings.update_every == 0:
                self._update(self.memory)
        probabilities_BK: torch.Tensor = logits_BK.softmax(1).float()
        return probabilities_BK

    def _new_memory(self, classes: int) -> Memory:
        return Memory(self.settings.capacity, classes, self.settings.lambda_t, self.settings.lambda_u)

    @torch.enable_grad()
    def _update(self, memory: Memory) -> None:
        images_BCHW = torch.stack([item.image for item in memory.all()])
        age_B = images_BCHW.new_tensor([item.age for item in memory.all()]) / memory.capacity
        for network in (self.teacher, self.student):
            move_statistics(network, True)
        teacher_BK = self.teacher(images_BCHW)
        student_BK = self.student(self.augment(images_BCHW))
        for network in (self.teacher, self.student):
            move_statistics(network, False)
        cross_B = functional.cross_entropy(student_BK, teacher_BK.softmax(1), reduction="none")
        loss = (torch.sigmoid(-age_B) * cross_B).mean()  # exp(-A) / (1 + exp(-A)) is the sigmoid of -A
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        self._follow()

    @torch.no_grad()
    def _follow(self) -> None:
        for slow, fast in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            slow.lerp_(fast, self.settings.teacher_rate)


class RobustNorm(nn.modules.batchnorm._BatchNorm):
    """Takes the place of a batch norm. Eval mode: by the running statistics. Train mode:

        mu <- (1 - alpha) mu + alpha mu_batch,   var likewise (biased),   then normalise by mu and var

    with the gradient through the batch's part of them.
    """

    def __init__(self, layer: nn.modules.batchnorm._BatchNorm, rate: float) -> None:
        if layer.running_mean is None or layer.running_var is None:
            raise ConfigError(
                "method 'rotta' moves the source's running statistics, and a batch norm of the model has none",
                hint="use a model that was trained with track_running_stats=True",
            )
        super().__init__(layer.num_features, layer.eps, affine=False)
        self.weight, self.bias = layer.weight, layer.bias
        self.running_mean, self.running_var = layer.running_mean.clone(), layer.running_var.clone()
        self.rate = rate

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        assert self.running_mean is not None
        assert self.running_var is not None
        if not self.training:
            return functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        axes = [axis for axis in range(input.dim()) if axis != 1]
        var_C, mean_C = torch.var_mean(input, axes, correction=0)
        mean_C = torch.lerp(self.running_mean, mean_C, self.rate)
        var_C = torch.lerp(self.running_var, var_C, self.rate)
        self.running_mean, self.running_var = mean_C.detach(), var_C.detach()
        shape = (1, -1) + (1,) * (input.dim() - 2)
        output = (input - mean_C.view(shape)) * torch.rsqrt(var_C + self.eps).view(shape)
        return output * self.weight.view(shape) + self.bias.view(shape) if self.weight is not None else output


def robust(model: nn.Module, rate: float) -> nn.Module:
    """``model`` with every batch norm replaced by a ``RobustNorm`` in eval mode, in place."""
    if isinstance(model, nn.modules.batchnorm._BatchNorm):
        return RobustNorm(model, rate).eval()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(parent, name, RobustNorm(child, rate).eval())
    return model


def move_statistics(model: nn.Module, mode: bool) -> None:
    """Let the robust norms follow what they see, or not; dropout stays off."""
    for layer in model.modules():
        if isinstance(layer, RobustNorm):
            layer.train(mode)
