"""``source``: no adaptation. The line that every method has to beat; it learns nothing and publishes nothing."""

from __future__ import annotations

import msgspec
import torch
from torch import nn

from cema.cloud.adapt import Options
from cema.cloud.adapt.base import CloudStatistics, Metrics, Schedule, State, read_options
from cema.cloud.norms import read_parameters
from cema.types import NormParameters


class SourceSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """There is nothing to set."""


class Source(CloudStatistics):
    """The adapter that leaves the model alone; see ``cema.cloud.adapt.base.Adapter``."""

    schedule = Schedule(replay_capacity=0)

    def __init__(self, edge: nn.Module, foundation: nn.Module | None, options: Options) -> None:
        read_options(SourceSettings, "source", options)
        self.model = edge.eval()

    def step(self, uploads_BCHW: torch.Tensor, replayed_BCHW: torch.Tensor | None) -> Metrics | None:
        return None

    def replay_step(self, replayed_BCHW: torch.Tensor) -> Metrics | None:
        return None

    @torch.no_grad()
    def edge_logits(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        logits_BK: torch.Tensor = self.model(images_BCHW)
        return logits_BK

    def edge_parameters(self) -> NormParameters:
        return read_parameters(self.model)

    def state(self) -> State:
        return {}

    def load_state(self, state: State) -> None:
        """There is no state."""
