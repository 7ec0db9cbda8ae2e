"""What an agent counts about itself since boot: the numbers behind ``status()`` and ``status.json``."""

from __future__ import annotations

import threading
from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np

from cema.errors import CemaError

LATENCY_WINDOW = 1024
"""Calls of ``predict`` over which p50 and p99 are taken."""


@dataclass
class EdgeCounters:
    """Numbers since boot; change them only through the methods, which are safe to call from any thread.

    samples_seen: images predicted. selected: kept by the filters. uploaded: acknowledged by the cloud.
    bytes_up, bytes_down: bodies of requests and answers. dropped: samples lost, by reason.
    """

    samples_seen: int = 0
    selected: int = 0
    uploaded: int = 0
    uploads: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    updates_applied: int = 0
    updates_refused: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    last_error: str | None = None
    _latency_s: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCY_WINDOW))
    _mutex: threading.Lock = field(default_factory=threading.Lock)

    def predicted(self, images: int, selected: int, latency_s: float) -> None:
        with self._mutex:
            self.samples_seen += images
            self.selected += selected
            self._latency_s.append(latency_s)

    def acknowledged(self, samples: int) -> None:
        with self._mutex:
            self.uploads += 1
            self.uploaded += samples

    def moved(self, *, up: int = 0, down: int = 0) -> None:
        with self._mutex:
            self.bytes_up += up
            self.bytes_down += down

    def update(self, *, applied: bool) -> None:
        with self._mutex:
            self.updates_applied += applied
            self.updates_refused += not applied

    def lost(self, reason: str, samples: int = 1) -> None:
        if samples:
            with self._mutex:
                self.dropped[reason] += samples

    def failed(self, error: Exception) -> None:
        """Remember what went wrong last; what is no CemaError is a fault of ours."""
        if not isinstance(error, CemaError):
            error = CemaError(f"unexpected {type(error).__name__}: {error}")
        self.last_error = f"{error.code}: {error}"

    def latency_ms(self) -> tuple[float, float]:
        """p50 and p99 of the last calls of ``predict``; 0 before the first."""
        with self._mutex:
            window = list(self._latency_s)
        if not window:
            return 0.0, 0.0
        p50, p99 = np.percentile(window, (50, 99)) * 1000
        return float(p50), float(p99)
