"""What a method is: it learns from uploaded images and says which norm parameters the edge should use.

The controller owns queue, replay buffer, clock and store; an adapter owns the models. Everything that an
adapter must remember over a crash is in ``state``; calling the same steps on the same state gives the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from cema.cloud.adapt import Options
from cema.errors import ConfigError
from cema.types import NormParameters

State = dict[str, NDArray[np.float32]]
Metrics = dict[str, float]
StatsOwner = Literal["cloud", "edge"]


@dataclass(frozen=True)
class Schedule:
    """When steps run and on how many images (CEMA, ICLR 2024, section 4 and its published configuration).

    tick_images: images seen by the group per tick. step_uploads: new samples U of a full step. least_uploads: with
    fewer than step_uploads pending, a tick still makes a full step of them if there are so many; for ``stats_owner``
    edge both count by device and world. replay_draw: replay samples added to U. replay_min: replay size from which it
    is used. replay_only: images of a step without uploads, 0 = there is none. replay_capacity: uploads kept, first in
    first out.
    """

    tick_images: int = 64
    step_uploads: int = 32
    least_uploads: int = 32
    replay_draw: int = 96
    replay_min: int = 256
    replay_only: int = 128
    replay_capacity: int = 10_000


class Adapter(Protocol):
    """One method at work on one group. Images are preprocessed float32 [B, 3, H, W].

    stats_owner: whose running statistics the devices use. For ``edge``, all images of a step are of one device under
    one condition.
    """

    schedule: Schedule
    stats_owner: StatsOwner

    def forget(self, share: float) -> None:
        """Go back to the source by this share, 0..1: so much of what was learned is about a world that is gone."""

    def step(self, uploads_BCHW: torch.Tensor, replayed_BCHW: torch.Tensor | None) -> Metrics | None:
        """Learn from new uploads, with replay samples when there are enough.

        Returns losses and the like; None if nothing changed."""

    def replay_step(self, replayed_BCHW: torch.Tensor) -> Metrics | None:
        """Learn from replay alone; None if the method does not."""

    def edge_logits(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """What the edge would answer with the present parameters, [B, K]; changes nothing."""

    def edge_parameters(self) -> NormParameters:
        """What the edge should use now."""

    def state(self) -> State: ...

    def load_state(self, state: State) -> None: ...


class CloudStatistics:
    """What adapters have in common that move the running statistics themselves."""

    stats_owner: StatsOwner = "cloud"

    def forget(self, share: float) -> None:
        """The published methods know no change of the world."""


EDGE = "edge."
"""What the names of the edge model's tensors begin with in every adapter's state."""


def restarted(initial: State, parameters: NormParameters) -> State:
    """The state of a group that starts from these parameters of the edge model: no momentum, the foundation model as it
    came. A method without such tensors has no state to restart."""
    own = {f"{EDGE}{name}": value for name, value in parameters.items() if f"{EDGE}{name}" in initial}
    started = {name: np.ones_like(initial[name]) for name in (f"{EDGE}started",) if name in initial}
    return {**initial, **own, **started}


S = TypeVar("S", bound=msgspec.Struct)


def read_options(kind: type[S], method: str, options: Options) -> S:
    """A method's settings struct with the user's overrides. Raises ConfigError for unknown keys and wrong ranges."""
    values: dict[str, Any] = dict(options)
    try:
        return msgspec.convert(values, type=kind)
    except msgspec.ValidationError as error:
        known = ", ".join(kind.__struct_fields__)
        raise ConfigError(f"options of method {method!r}: {error}", hint=f"known options: {known}") from error
