"""The replay buffer: the last uploads, decoded, first in first out (CEMA section 3.2).

Rows live in the store; this is the worker's decoded copy, filled again from the store after a restart. Images are
kept as uint8 at the model's input size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from cema.types import Uint8Array


class Replay:
    """Bounded FIFO of (row id, image uint8 [H, W, 3])."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._items: deque[tuple[int, Uint8Array]] = deque()

    def __len__(self) -> int:
        return len(self._items)

    @property
    def last_row(self) -> int:
        """Newest row id, 0 when empty."""
        return self._items[-1][0] if self._items else 0

    def extend(self, rows: Sequence[int], images: Sequence[Uint8Array]) -> list[int]:
        """Add uploads in order; returns the rows that no longer fit, oldest first."""
        self._items.extend(zip(rows, images, strict=True))
        return [self._items.popleft()[0] for _ in range(len(self._items) - self.capacity)]

    def draw(self, count: int, rng: np.random.Generator) -> list[Uint8Array]:
        """``count`` different images (all, if there are fewer), in random order."""
        items = list(self._items)
        chosen = rng.choice(len(items), min(count, len(items)), replace=False)
        return [items[index][1] for index in chosen]
