"""From memory to disk: takes selected samples off ``predict``'s hands, encodes them and commits them in batches.

In: pixels or a camera's own bytes, in a bounded queue that never blocks. Out: samples in the outbox. The same thread
writes ``status.json``. It never waits for the network, so a hanging cloud costs no sample.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import msgspec
import numpy as np

from cema.config import OutboxConfig
from cema.edge.clock import ServerClock
from cema.edge.counters import EdgeCounters
from cema.edge.outbox import OVERFLOW, STALE, Outbox
from cema.errors import CemaError, ImageError, StorageError
from cema.types import Uint8Array
from cema.wire.image import encode_image, read_coding
from cema.wire.messages import SAMPLE_ID_BYTES, Sample

PASS_THROUGH_MAX_BYTES = 64 * 1024
"""A camera's bytes up to this size travel unchanged: encoding again would cost quality and save little."""
STATUS_INTERVAL_S = 2.0
STORAGE, WITHHELD = "storage", "withheld"
_MAGIC = ((b"\xff\xd8\xff", 0, "jpeg"), (b"\x89PNG\r\n\x1a\n", 0, "png"), (b"WEBP", 8, "webp"))


class Captured(NamedTuple):
    """A selected sample as ``predict`` hands it over.

    image: pixels that nobody else changes, uint8 [H, W, 3], or encoded bytes that travel unchanged.
    fingerprint: of the bundle that predicted. seq: of this boot. captured_s: by the monotonic clock.
    """

    image: Uint8Array | bytes
    fingerprint: str
    seq: int
    label: int
    probability: float
    entropy: float
    version: int
    captured_s: float
    revision: int = 0
    domain: int = 0


def image_codec(data: bytes) -> str | None:
    """jpeg | png | webp by the first bytes, None for anything else."""
    return next((codec for magic, at, codec in _MAGIC if data[at : at + len(magic)] == magic), None)


def checked(image: Uint8Array | None) -> Uint8Array | None:
    """What a guard let through, if it is a picture. Raises ImageError."""
    if image is None:
        return None
    image = np.ascontiguousarray(image)
    if image.dtype != np.uint8 or image.ndim != len("HWC") or image.shape[2] != len("RGB") or not image.size:
        raise ImageError(f"expected uint8 [H, W, 3] of before_upload, got {image.dtype} {list(image.shape)}")
    return image


def encode_sample(captured: Captured, captured_at_ms: int, coding: str = "auto") -> Sample:
    """The message for one sample."""
    image = captured.image
    if isinstance(image, bytes):
        codec, data = image_codec(image), image
        assert codec is not None  # predict hands over only bytes whose codec is known
    else:
        chosen = read_coding(coding, *image.shape[:2])
        codec, data = chosen.codec, encode_image(image, chosen)
    return Sample(
        sample_id=os.urandom(SAMPLE_ID_BYTES),
        seq=captured.seq,
        codec=codec,
        image=data,
        label=captured.label,
        probability=captured.probability,
        entropy=captured.entropy,
        update_version=captured.version,
        captured_at_ms=captured_at_ms,
        stats_revision=captured.revision,
        domain=captured.domain or msgspec.UNSET,
    )


class Writer:
    """The bounded memory queue and the thread that empties it into the outbox.

    Parameters
    ----------
    on_commit: called after each commit. write_status: called every STATUS_INTERVAL_S and at the end.
    clock: of the server, as far as known. coding: of pixels, see ``read_coding``.
    guard: makes of pixels what may leave the device, None = nothing.
    """

    def __init__(
        self,
        outbox: Outbox,
        config: OutboxConfig,
        counters: EdgeCounters,
        *,
        on_commit: Callable[[], None],
        write_status: Callable[[], None],
        clock: ServerClock,
        coding: str = "auto",
        guard: Callable[[Uint8Array], Uint8Array | None] | None = None,
    ) -> None:
        self._coding, self._guard = coding, guard
        self._outbox, self._config, self._counters = outbox, config, counters
        self._on_commit, self._write_status, self._clock = on_commit, write_status, clock
        self._queue: deque[Captured] = deque()
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._in_hand = 0
        self._thread = threading.Thread(target=self._run, name="cema-writer", daemon=True)

    def __len__(self) -> int:
        """Samples in memory: waiting, or just being encoded."""
        return len(self._queue) + self._in_hand

    def start(self) -> None:
        self._thread.start()

    def offer(self, captured: list[Captured]) -> None:
        """Queue samples; returns at once. When the queue is full the oldest go, counted as ``overflow``."""
        with self._changed:
            self._queue.extend(captured)
            excess = max(0, len(self._queue) - self._config.memory_samples)
            for _ in range(excess):
                self._queue.popleft()
            self._changed.notify()
        self._counters.lost(OVERFLOW, excess)

    def close(self, timeout_s: float) -> None:
        """Commit what is in memory, write the last status, end the thread."""
        self._closing.set()
        with self._changed:
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        status_due_s = 0.0
        while True:
            if time.monotonic() >= status_due_s:
                self._report()
                status_due_s = time.monotonic() + STATUS_INTERVAL_S
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing.is_set(), STATUS_INTERVAL_S)
            self._closing.wait(self._config.commit_interval_s if self._queue else 0.0)
            last = self._closing.is_set()
            self._commit(self._take())
            if last:
                self._report()
                return

    def _take(self) -> list[Captured]:
        with self._changed:
            taken = list(self._queue)
            self._queue.clear()
            self._in_hand = len(taken)
        return taken

    def _commit(self, taken: list[Captured]) -> None:
        if not taken:
            return
        current = [item for item in taken if item.fingerprint == self._outbox.fingerprint]
        self._counters.lost(STALE, len(taken) - len(current))
        current = [item for item in map(self._guarded, current) if item is not None]
        dated = self._clock.known
        samples = [encode_sample(item, self._clock.at_ms(item.captured_s), self._coding) for item in current]
        try:
            self._outbox.add(samples, dated=dated)
        except StorageError as error:
            self._counters.lost(STORAGE, len(current))
            self._counters.failed(error)
        self._in_hand = 0
        self._on_commit()

    def _guarded(self, item: Captured) -> Captured | None:
        """The sample as it may leave. Whatever the guard does wrong, the picture stays here."""
        if self._guard is None:
            return item
        assert not isinstance(item.image, bytes)  # a camera's own bytes are for devices without a guard
        try:
            allowed = checked(self._guard(item.image))
        except Exception as error:  # the caller's code: nothing is known about what it raises
            self._counters.failed(error if isinstance(error, CemaError) else ImageError(f"before_upload: {error!r}"))
            allowed = None
        if allowed is None:
            self._counters.lost(WITHHELD, 1)
            return None
        return item._replace(image=allowed)

    def _report(self) -> None:
        try:
            self._write_status()
        except StorageError as error:
            self._counters.failed(error)
