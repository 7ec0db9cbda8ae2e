"""The replay buffer: the last uploads, decoded, first in first out (CEMA section 3.2).

Rows live in the store; this is the worker's decoded copy, filled again from the store after a restart. Pixels are uint8
at the model's input size in a file without a name, which ends with the process: 10,000 pictures of 224 px take
1.5 GB of disk and no memory that the kernel could not have back. Sealed, they are encrypted with a key that is in the
memory of the process alone: after it nobody can read what is left on the disk.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from nacl.exceptions import CryptoError
from nacl.secret import Aead
from nacl.utils import random

from cema.errors import StorageError
from cema.types import Uint8Array

_SEAL_BYTES = Aead.NONCE_SIZE + Aead.MACBYTES
_HINT = "free space below data_dir, or allow the worker more open files; the samples are safe in the store"


class Replay:
    """Bounded FIFO of (row id, image uint8 [H, W, 3], key); all images have one size. A draw can be limited to a
    key.

    folder: of the file; None = the system's for temporary files. sealed: whether the file is encrypted.
    """

    def __init__(self, capacity: int, folder: Path | None = None, *, sealed: bool = False) -> None:
        self.capacity = capacity
        self._box = Aead(random(Aead.KEY_SIZE)) if sealed else None
        self._rows: deque[int] = deque()
        self._keys: deque[Hashable] = deque()
        self._first = 0
        self._shape: tuple[int, ...] = ()
        self._folder = folder
        self._descriptor: int | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def keys(self) -> list[Hashable]:
        """Of all images, oldest first."""
        return list(self._keys)

    def count(self, key: Hashable) -> int:
        """How many images of that key there are."""
        return self._keys.count(key)

    def extend(
        self, rows: Sequence[int], images: Sequence[Uint8Array], keys: Sequence[Hashable] | None = None
    ) -> list[int]:
        """Add uploads in order; returns the rows that no longer fit, oldest first. Raises StorageError."""
        evicted = []
        for row, image, key in zip(rows, images, keys or [None] * len(rows), strict=True):
            if len(self._rows) == self.capacity:
                evicted.append(self._rows.popleft() if self._rows else row)
                if self._keys:
                    self._keys.popleft()
                self._first += 1
            if self.capacity:
                self._write(image, (self._first + len(self._rows)) % self.capacity)
                self._rows.append(row)
                self._keys.append(key)
        return evicted

    def draw(self, count: int, rng: np.random.Generator, key: Hashable = None) -> Uint8Array:
        """``count`` different images (all, if there are fewer) in random order, [N, H, W, 3]; of ``key``, if given.

        Raises StorageError.
        """
        if key is None:
            chosen = rng.choice(len(self._rows), min(count, len(self._rows)), replace=False)
        else:
            having = np.array([index for index, each in enumerate(self._keys) if each == key], np.int64)
            chosen = rng.choice(having, min(count, len(having)), replace=False)
        images = np.empty((len(chosen), *self._shape), np.uint8)
        for image, index in zip(images, chosen.tolist(), strict=True):
            self._read(image, (self._first + index) % self.capacity)
        return images

    def _read(self, image: Uint8Array, place: int) -> None:
        stored = image if self._box is None else np.empty(image.nbytes + _SEAL_BYTES, np.uint8)
        with _storage("read"):
            read = os.preadv(self._opened(), [stored.data], place * stored.nbytes)
        if read != stored.nbytes:
            raise StorageError(f"expected {stored.nbytes} bytes of a replay picture, found {read}", hint=_HINT)
        if self._box is not None:
            try:
                image.reshape(-1)[:] = np.frombuffer(self._box.decrypt(stored.tobytes()), np.uint8)
            except CryptoError as error:
                raise StorageError("a replay picture is not what was written", hint=_HINT) from error

    def _write(self, image: Uint8Array, place: int) -> None:
        self._shape = self._shape or image.shape
        stored = image.tobytes() if self._box is None else self._box.encrypt(image.tobytes())
        with _storage("written"):
            written = os.pwrite(self._opened(), stored, place * len(stored))
        if written != len(stored):
            raise StorageError("the replay buffer could not be written: the disk is full", hint=_HINT)

    def _opened(self) -> int:
        """The file, made when the first picture comes: methods without replay never have one."""
        if self._descriptor is None:
            with tempfile.TemporaryFile(dir=self._folder) as file:
                self._descriptor = os.dup(file.fileno())
            weakref.finalize(self, os.close, self._descriptor)
        return self._descriptor


@contextmanager
def _storage(done: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"the replay buffer could not be {done}: {error.strerror}", hint=_HINT) from error
