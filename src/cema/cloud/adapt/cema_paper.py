"""``cema-paper``: the published method, equation by equation. It is the oracle: plain, not fast.

Chen et al., "Towards Robust and Efficient Cloud-Edge Elastic Model Adaptation via Selective Entropy Distillation",
ICLR 2024, arXiv 2402.17316. Per full step: the foundation model adapts on the new uploads by weighted entropy
minimisation; then it teaches the edge model on uploads and replay. Only norm weights and biases are trained;
running statistics follow (adapt/norm.py).
"""

from __future__ import annotations

import logging
import math
from typing import Annotated, Literal

import msgspec
import torch
from msgspec import Meta
from torch import nn

from cema.cloud.adapt import Options
from cema.cloud.adapt.base import EDGE, CloudStatistics, Metrics, Schedule, State, read_options
from cema.cloud.adapt.losses import confidence_weight, edge_loss, entropy
from cema.cloud.adapt.norm import Impl, Start, Targets, adaptable, follow_statistics, norm_train
from cema.cloud.adapt.precision import Precision, is_reduced
from cema.cloud.adapt.teacher import OnnxTeacher
from cema.cloud.adapt.trainable import Trainable
from cema.errors import ConfigError, ExportError
from cema.types import NormParameters

log = logging.getLogger(__name__)

Rate = Annotated[float, Meta(gt=0, le=1)]
Weight = Annotated[float, Meta(ge=0, le=100)]


class CemaPaperSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The method's numbers (paper section 4, and the published configuration where the paper is silent)."""

    e_max: Annotated[float, Meta(gt=0, le=1)] = 0.4  # E_max(0) of the sample weights, fraction of ln C
    foundation_lr: Rate = 0.00025  # SGD on the foundation's norm parameters
    edge_lr: Rate = 0.0025  # SGD on the edge's
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.9  # of both optimisers
    entropy_weight: Weight = 3.0  # a of the edge loss
    divergence_weight: Weight = 3.0  # b
    label_weight: Weight = 1.0  # c
    norm_impl: Impl = "native"  # textbook | native | fused: same mathematics (adapt/norm.py)
    norm_start: Start = "source"  # source | first_batch, of the running statistics
    teacher: Literal["torch", "onnx", "auto"] = "torch"  # who runs the foundation's forward (adapt/teacher.py);
    # auto: torch in bfloat16, else ONNX Runtime, whichever is faster
    precision: Precision = "float32"  # float32 | bfloat16 | auto, of forward and backward (adapt/precision.py)
    norm_targets: Targets = "renorm"  # renorm (as published) | batch (for deep networks; adapt/norm.py, ADR 9)


class CemaPaper(CloudStatistics):
    """The adapter of the paper's method; see ``cema.cloud.adapt.base.Adapter``."""

    schedule = Schedule()

    def __init__(self, edge: nn.Module, foundation: nn.Module | None, options: Options) -> None:
        if foundation is None:
            raise ConfigError("method 'cema-paper' needs a foundation model", hint="set foundation_model of the group")
        self.settings = read_options(CemaPaperSettings, "cema-paper", options)
        s = self.settings
        norms = (s.norm_impl, s.norm_start, s.norm_targets)
        reduced = is_reduced(s.precision)
        onnx = s.teacher == "onnx" or (s.teacher == "auto" and not reduced)
        self.teacher = OnnxTeacher(foundation) if onnx else None
        self.foundation = Trainable(adaptable(foundation, *norms), s.foundation_lr, s.momentum, reduced=reduced)
        self.edge = Trainable(adaptable(edge, *norms), s.edge_lr, s.momentum, reduced=reduced)

    def step(self, uploads_BCHW: torch.Tensor, replayed_BCHW: torch.Tensor | None) -> Metrics | None:
        foundation_loss = self._foundation_step(uploads_BCHW)
        images_BCHW = uploads_BCHW if replayed_BCHW is None else torch.cat([uploads_BCHW, replayed_BCHW])
        return {"foundation_loss": foundation_loss, "edge_loss": self._edge_step(images_BCHW)}

    def replay_step(self, replayed_BCHW: torch.Tensor) -> Metrics | None:
        return {"edge_loss": self._edge_step(replayed_BCHW)}

    def _foundation_step(self, uploads_BCHW: torch.Tensor) -> float:
        """L_f = mean h(x) H(f(x)) on the uploads, one SGD step."""
        norm_train(self.foundation.model, True)
        logits_BK = self.foundation.forward(uploads_BCHW)
        entropy_B = entropy(logits_BK)
        loss = (confidence_weight(entropy_B, self._e_max(logits_BK)) * entropy_B).mean()
        norm_train(self.foundation.model, False)
        follow_statistics(self.foundation.model, uploads_BCHW)
        return self.foundation.descend(loss)

    def _edge_step(self, images_BCHW: torch.Tensor) -> float:
        """L_e = a mean[h_s H(g)] + b mean[h_t KL(f || g)] + c mean[h_t CE(g, argmax f)], one SGD step."""
        teacher_BK = self._teacher_logits(images_BCHW)
        norm_train(self.edge.model, True)
        student_BK = self.edge.forward(images_BCHW)
        norm_train(self.edge.model, False)
        follow_statistics(self.edge.model, images_BCHW)
        s = self.settings
        weights = s.entropy_weight, s.divergence_weight, s.label_weight
        loss = edge_loss(teacher_BK, student_BK, self._e_max(student_BK), weights)
        return self.edge.descend(loss)

    def _teacher_logits(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        if self.teacher is not None:
            try:
                return self.teacher.logits(images_BCHW, self.foundation.model)
            except ExportError as error:
                log.warning("the foundation model answers through torch instead of ONNX Runtime: %s", error)
                self.teacher = None
        with torch.no_grad():
            return self.foundation.forward(images_BCHW)

    def _e_max(self, logits_BK: torch.Tensor) -> float:
        return self.settings.e_max * math.log(logits_BK.shape[1])

    def edge_logits(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return self.edge.logits(images_BCHW)

    def edge_parameters(self) -> NormParameters:
        return self.edge.parameters()

    def state(self) -> State:
        return {**self.edge.state(EDGE), **self.foundation.state("foundation.")}

    def load_state(self, state: State) -> None:
        self.edge.load_state(state, EDGE)
        self.foundation.load_state(state, "foundation.")
