"""The replay buffer: the last uploads, decoded, first in first out (CEMA section 3.2).

Rows live in the store; this is the worker's decoded copy, filled again from the store after a restart. Pixels are uint8
at the model's input size in a file without a name, which ends with the process: 10,000 pictures of 224 px take
1.5 GB of disk and no memory that the kernel could not have back.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cema.errors import StorageError
from cema.types import Uint8Array


class Replay:
    """Bounded FIFO of (row id, image uint8 [H, W, 3]); all images have one size.

    folder: of the file; None = the system's for temporary files.
    """

    def __init__(self, capacity: int, folder: Path | None = None) -> None:
        self.capacity = capacity
        self._rows: deque[int] = deque()
        self._first = 0
        self._shape: tuple[int, ...] = ()
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  # lives as long as the buffer
        weakref.finalize(self, self._file.close)

    def __len__(self) -> int:
        return len(self._rows)

    def extend(self, rows: Sequence[int], images: Sequence[Uint8Array]) -> list[int]:
        """Add uploads in order; returns the rows that no longer fit, oldest first. Raises StorageError."""
        evicted = []
        for row, image in zip(rows, images, strict=True):
            if len(self._rows) == self.capacity:
                evicted.append(self._rows.popleft() if self._rows else row)
                self._first += 1
            if self.capacity:
                self._write(image, (self._first + len(self._rows)) % self.capacity)
                self._rows.append(row)
        return evicted

    def draw(self, count: int, rng: np.random.Generator) -> Uint8Array:
        """``count`` different images (all, if there are fewer) in random order, [N, H, W, 3]. Raises StorageError."""
        chosen = rng.choice(len(self._rows), min(count, len(self._rows)), replace=False)
        images = np.empty((len(chosen), *self._shape), np.uint8)
        for image, index in zip(images, chosen.tolist(), strict=True):
            place = (self._first + index) % self.capacity
            if os.preadv(self._file.fileno(), [image.data], place * image.nbytes) != image.nbytes:
                raise StorageError(f"expected {image.nbytes} bytes of a replay picture, found fewer")
        return images

    def _write(self, image: Uint8Array, place: int) -> None:
        self._shape = self._shape or image.shape
        try:
            written = os.pwrite(self._file.fileno(), np.ascontiguousarray(image).data, place * image.nbytes)
        except OSError as error:
            raise StorageError(f"the replay buffer could not be written: {error.strerror}") from error
        if written != image.nbytes:
            raise StorageError("the replay buffer could not be written: the disk is full")
