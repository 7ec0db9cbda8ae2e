"""``cema``: our own method. The device owns its norm statistics; the cloud trains weights and biases by them.

Per step, on uploads and replay of one device under one condition (docs/method.md has the reasons):

    student and foundation model follow the batch, by the rule of the device (wire/blend.py); the foundation model is
    never trained and has no state
    Q = 1/2 foundation + 1/2 student, each the mean over a picture and its mirror image
    L = a mean[h_s H(g)] + b mean[h_Q KL(Q || g)] + c mean[h_Q CE(g, argmax Q)],  one step of SGD

The loss is the paper's (adapt/cema_paper.py) with Q in the place of the foundation model. The step is scaled by how far
the stream is from the source: a clean one teaches nothing.
"""

from __future__ import annotations

import copy
import math
from typing import Annotated, ClassVar

import msgspec
import numpy as np
import torch
from msgspec import Meta
from torch import nn

from cema.cloud.adapt import Options
from cema.cloud.adapt.base import EDGE, Metrics, Schedule, State, StatsOwner, read_options
from cema.cloud.adapt.blended import Blended
from cema.cloud.adapt.losses import edge_loss
from cema.cloud.adapt.norm import adaptable, norm_train
from cema.cloud.adapt.precision import Precision, is_reduced
from cema.cloud.adapt.trainable import Trainable
from cema.errors import ConfigError
from cema.types import NormParameters
from cema.wire.blend import diversity, shares, trust

Rate = Annotated[float, Meta(gt=0, le=1)]
Weight = Annotated[float, Meta(ge=0, le=100)]
_SMALLEST = 1e-12
"""Of a probability before its logarithm."""


class CemaSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The method's numbers; those of the loss are the paper's, the others were chosen as docs/method.md says."""

    e_max: Annotated[float, Meta(gt=0, le=1)] = 0.4  # E_max(0) of the sample weights, fraction of ln C
    edge_lr: Rate = 0.0025  # SGD on the edge's norm parameters, at full trust
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    entropy_weight: Weight = 3.0  # a
    divergence_weight: Weight = 3.0  # b
    label_weight: Weight = 1.0  # c
    student_share: Annotated[float, Meta(ge=0, le=1)] = 0.5  # of the student in Q
    least_images: Annotated[int, Meta(ge=1, le=1024)] = 16  # of a step: statistics of fewer say little
    precision: Precision = "auto"  # float32 | bfloat16 | auto, of forward and backward (adapt/precision.py)


class Cema:
    """The adapter of our method; see ``cema.cloud.adapt.base.Adapter``."""

    name: ClassVar[str] = "cema"
    schedule = Schedule(step_uploads=16, least_uploads=8, replay_draw=48, replay_min=1, replay_only=0)
    stats_owner: StatsOwner = "edge"

    def __init__(self, edge: nn.Module, foundation: nn.Module | None, options: Options) -> None:
        if foundation is None:
            raise ConfigError(
                "method 'cema' needs a foundation model",
                hint="set foundation_model of the group, or take the method 'cema-lite'",
            )
        self._set_up(edge, foundation, options)

    def _set_up(self, edge: nn.Module, foundation: nn.Module | None, options: Options) -> None:
        self.settings = s = read_options(CemaSettings, self.name, options)
        reduced = is_reduced(s.precision)
        self.edge = Trainable(adaptable(edge, "fused", "source", "batch"), s.edge_lr, s.momentum, reduced=reduced)
        layout = self.edge.layout
        self.student = Blended(self.edge.model, layout, reduced=reduced)
        self.source = self.student.source()
        self._start = [parameter.detach().clone() for parameter in self.edge.trained]
        self.teacher = None if foundation is None else _frozen(foundation, layout, reduced)

    @torch.no_grad()
    def forget(self, share: float) -> None:
        for parameter, source in zip(self.edge.trained, self._start, strict=True):
            parameter.lerp_(source, share)
        for state in self.edge.optimiser.state.values():
            state["momentum_buffer"].mul_(1 - share)

    def step(self, uploads_BCHW: torch.Tensor, replayed_BCHW: torch.Tensor | None) -> Metrics | None:
        images_BCHW = uploads_BCHW if replayed_BCHW is None else torch.cat([uploads_BCHW, replayed_BCHW])
        if len(images_BCHW) < self.settings.least_images:
            return None
        trusted = self._normalise_as_the_device(images_BCHW)
        soft_BK = self._soft_labels(images_BCHW, trusted)
        return {"edge_loss": self._descend(images_BCHW, soft_BK, trusted), "trust": trusted}

    def replay_step(self, replayed_BCHW: torch.Tensor) -> Metrics | None:
        return None

    def _normalise_as_the_device(self, images_BCHW: torch.Tensor) -> float:
        """Let the student follow the batch by the device's rule; returns the trust in that the stream differs, 0..1."""
        layers = len(self.student.layers)
        if not layers:
            return 1.0
        first = self.student.follow(images_BCHW, shares(len(images_BCHW), 1.0, 1.0, layers))
        trusted = trust(first.shift)
        self.student.follow(images_BCHW, shares(len(images_BCHW), trusted, _shown(first.logits_BK), layers))
        return trusted

    def _soft_labels(self, images_BCHW: torch.Tensor, trusted: float) -> torch.Tensor:
        """Q, float32 [B, K]: whom the student shall follow."""
        both = torch.cat([images_BCHW, images_BCHW.flip(3)])
        student_BK = _over_mirror(self.student.logits(both))
        if self.teacher is None:
            return student_BK
        share_L = shares(len(images_BCHW), trusted, _shown(student_BK), len(self.teacher.layers))
        teacher_BK = _over_mirror(self.teacher.follow(both, share_L).logits_BK)
        return torch.lerp(teacher_BK, student_BK, self.settings.student_share)

    def _descend(self, images_BCHW: torch.Tensor, soft_BK: torch.Tensor, trusted: float) -> float:
        """L with Q, one SGD step; the running statistics rest, the gradient sees the batch's (adapt/norm.py)."""
        s = self.settings
        norm_train(self.edge.model, True)
        student_BK = self.edge.forward(images_BCHW)
        norm_train(self.edge.model, False)
        e_max = s.e_max * math.log(student_BK.shape[1])
        weights = s.entropy_weight, s.divergence_weight, s.label_weight
        loss = edge_loss(soft_BK.clamp_min(_SMALLEST).log(), student_BK, e_max, weights)
        for group in self.edge.optimiser.param_groups:
            group["lr"] = s.edge_lr * trusted
        return self.edge.descend(loss)

    def edge_logits(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return self.edge.logits(images_BCHW)

    def edge_parameters(self) -> NormParameters:
        """Trained weights and biases; the source's statistics, which every device replaces by its own."""
        return {**self.edge.parameters(), **self.source}

    def state(self) -> State:
        return self.edge.state(EDGE)

    def load_state(self, state: State) -> None:
        self.edge.load_state(state, EDGE)


class CemaLite(Cema):
    """``cema-lite``: without a foundation model, for small clouds. Q is the student's own mean over a picture and its
    mirror image."""

    name = "cema-lite"

    def __init__(self, edge: nn.Module, foundation: nn.Module | None, options: Options) -> None:
        self._set_up(edge, None, options)


def _frozen(model: nn.Module, layout: torch.memory_format, reduced: bool) -> Blended:
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for weight in (parameter for parameter in model.parameters() if parameter.dim() == 4):
        weight.data = weight.data.contiguous(memory_format=layout)
    return Blended(model, layout, reduced=reduced)


def _over_mirror(logits_BK: torch.Tensor) -> torch.Tensor:
    """Mean probabilities over pictures (the first half) and their mirror images (the second), [B / 2, K]."""
    straight_BK, mirrored_BK = logits_BK.softmax(1).chunk(2)
    return (straight_BK + mirrored_BK) / 2


def _shown(scores_BK: torch.Tensor) -> float:
    """Diversity of the classes that are seen in a batch."""
    _, counts = np.unique(scores_BK.argmax(1).numpy(), return_counts=True)
    return diversity(counts, scores_BK.shape[1])
