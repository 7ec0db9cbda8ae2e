"""How much one device may ask of the cloud: a bucket per device that refills at the configured rate.

In memory, per web process: what a restart forgives is a few seconds' worth. Only devices that were authenticated get a
bucket, so there are never more than enrolled ones.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from cema.errors import OverloadedError

BURST_S = 10.0
"""A bucket holds what refills in this time: a device that was away hands in its outbox at once."""


class Allowance:
    """``rate_per_s`` of something for each device, 0 = unlimited. Thread-safe. clock: seconds, monotonic."""

    def __init__(self, rate_per_s: float, key: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate_per_s, self._key, self._clock = rate_per_s, key, clock
        self._levels: dict[str, tuple[float, float]] = {}  # device -> what was left, and when
        self._lock = threading.Lock()

    def check(self, device_id: str) -> None:
        """Raises OverloadedError, with ``retry_after_s``, while the device owes more than it has."""
        if not self._rate_per_s:
            return
        with self._lock:
            level, _ = self._now(device_id)
        if level <= 0:
            raise OverloadedError(
                f"device {device_id!r} asks for more than {self._rate_per_s:g}/s ({self._key})",
                hint=f"wait, then go on; raise {self._key} in cema.toml if it is right to",
                retry_after_s=-level / self._rate_per_s,
            )

    def spend(self, device_id: str, amount: float) -> None:
        """Take it from the bucket, and owe what is not in it."""
        if self._rate_per_s:
            with self._lock:
                level, now_s = self._now(device_id)
                self._levels[device_id] = level - amount, now_s

    def _now(self, device_id: str) -> tuple[float, float]:
        full, now_s = self._rate_per_s * BURST_S, self._clock()
        level, then_s = self._levels.get(device_id, (full, now_s))
        return min(full, level + (now_s - then_s) * self._rate_per_s), now_s
