"""What every run of a method gives back for a batch, whatever the method is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cema.bench.memory_probe import MemoryProbe
from cema.types import Float32Array, Uint8Array


@dataclass
class Answer:
    """One device's batch. probabilities_BK: float32. Bytes as really encoded; updates: those put to use after it."""

    probabilities_BK: Float32Array
    uploads: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    updates: int = 0
    edge_s: float = 0.0
    cloud_s: float = 0.0


class Run(Protocol):
    """A method at work on one group of devices."""

    probe: MemoryProbe

    def step(self, batches: Sequence[Uint8Array | None]) -> list[Answer | None]:
        """One batch uint8 [B, H, W, 3] per device, None for a device whose stream has ended: predict, then adapt."""

    def learn(self, labels: Sequence[NDArray[np.int64] | None]) -> None:
        """The true labels of the last step, for the reference methods; nobody else looks."""
