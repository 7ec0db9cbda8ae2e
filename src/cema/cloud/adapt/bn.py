"""``bn``: running statistics follow the uploads, no gradient (as a cloud method; Schneider et al., NeurIPS 2020).

Shows how much of the gain comes from the statistics alone.
"""

from __future__ import annotations

import msgspec
import torch
from torch import nn

from cema.cloud.adapt import Options
from cema.cloud.adapt.base import EDGE, CloudStatistics, Metrics, Schedule, State, read_options
from cema.cloud.adapt.norm import Start, Targets, adaptable, follow_statistics, norm_train
from cema.cloud.adapt.trainable import Trainable
from cema.types import NormParameters


class BatchStatisticsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The method's settings."""

    norm_start: Start = "source"  # source | first_batch, of the running statistics
    norm_targets: Targets = "renorm"  # renorm | batch (adapt/norm.py, ADR 9)


class BatchStatistics(CloudStatistics):
    """The adapter that only moves running means and variances; see ``cema.cloud.adapt.base.Adapter``."""

    schedule = Schedule(replay_capacity=0)

    def __init__(self, edge: nn.Module, foundation: nn.Module | None, options: Options) -> None:
        settings = read_options(BatchStatisticsSettings, "bn", options)
        self.edge = Trainable(
            adaptable(edge, "native", settings.norm_start, settings.norm_targets), lr=0.0, momentum=0.0
        )

    def step(self, uploads_BCHW: torch.Tensor, replayed_BCHW: torch.Tensor | None) -> Metrics | None:
        norm_train(self.edge.model, True)
        self.edge.logits(uploads_BCHW)
        norm_train(self.edge.model, False)
        follow_statistics(self.edge.model, uploads_BCHW)
        return {}

    def replay_step(self, replayed_BCHW: torch.Tensor) -> Metrics | None:
        return None

    def edge_logits(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return self.edge.logits(images_BCHW)

    def edge_parameters(self) -> NormParameters:
        return self.edge.parameters()

    def state(self) -> State:
        return self.edge.state(EDGE)

    def load_state(self, state: State) -> None:
        self.edge.load_state(state, EDGE)
