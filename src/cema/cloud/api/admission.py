"""How much the uploads of all devices together may hold: memory while they arrive, and places before the store.

An allowance (allowance.py) bounds one device, this bounds their sum. What goes beyond is refused at once and told when
to come back; the times are handed out one after the other, as fast as the store has lately taken uploads, so that those
who were refused do not come back together. All methods belong to the event loop.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from cema.config import ServerConfig
from cema.errors import OverloadedError

DEVICE_UPLOADS = 2
"""Of one device at once: it has one sender, whose last connection may have broken without anybody noticing yet. One
stolen key can thus not hold every place by sending its bodies byte by byte."""
FIRST_TURN_S = 0.02
"""Time of one upload, before it was measured: that of one core with photographs of 224 pixels."""
WEIGHT = 0.1
"""Of the last upload in the mean time of one."""
MIN_PAUSE_S, MAX_PAUSE_S = 1.0, 60.0
"""Of those who are refused; the longest is a device's own longest pause, too."""
BY_DEVICE, BY_BYTES, BY_PLACES = "device", "bytes", "places"
"""Why an upload is refused."""


class Upload:
    """One that is under way."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.size_bytes = 0

    def grow(self, size_bytes: int) -> None:
        """So much more of its body is in memory. Raises OverloadedError."""
        self._admission.check_bytes(size_bytes)
        self._admission.held_bytes += size_bytes
        self.size_bytes += size_bytes


class Admission:
    """Bounds of ``server``. clock: seconds, monotonic. on_refusal: told why, each time.

    held_bytes: of all bodies in memory. queued: uploads whose body is complete, waiting for the store or in it.
    """

    def __init__(
        self,
        server: ServerConfig,
        clock: Callable[[], float] = time.monotonic,
        on_refusal: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._server, self._clock, self._on_refusal = server, clock, on_refusal
        self._devices: Counter[str] = Counter()
        self._turn_s, self._booked_s = FIRST_TURN_S, -float("inf")
        self._ended_s: float | None = None  # the last upload, if others were waiting then
        self.held_bytes = self.queued = 0

    @property
    def in_flight(self) -> int:
        """Uploads under way, complete or not."""
        return sum(self._devices.values())

    @contextmanager
    def upload(self, device_id: str) -> Iterator[Upload]:
        """From a request's head to its answer; releases what it held. Raises OverloadedError."""
        if self._devices[device_id] >= DEVICE_UPLOADS:
            self._refuse(
                BY_DEVICE, f"device {device_id!r} has {DEVICE_UPLOADS} uploads under way", "end one, then go on",
                MIN_PAUSE_S,
            )  # fmt: skip
        self.check_bytes(1)
        self._check_places()
        upload = Upload(self)
        self._devices[device_id] += 1
        try:
            yield upload
        finally:
            self.held_bytes -= upload.size_bytes
            self._devices[device_id] -= 1
            if not self._devices[device_id]:
                del self._devices[device_id]

    @contextmanager
    def turn(self) -> Iterator[None]:
        """From a complete body to its receipt. Raises OverloadedError."""
        self._check_places()
        self.queued += 1
        try:
            yield
        finally:
            self.queued -= 1
            self._measure()

    def check_bytes(self, size_bytes: int) -> None:
        """Whether there is memory for so many. Raises OverloadedError."""
        if self.held_bytes + size_bytes > self._server.max_queued_bytes:
            self._refuse(
                BY_BYTES, f"uploads hold {self.held_bytes} bytes of memory (server.max_queued_bytes)",
                "wait, then go on", self._appointment_s(),
            )  # fmt: skip

    def _check_places(self) -> None:
        if self.queued >= self._server.max_queued_uploads:
            self._refuse(
                BY_PLACES, f"{self.queued} uploads wait already (server.max_queued_uploads)", "wait, then go on",
                self._appointment_s(),
            )  # fmt: skip

    def _measure(self) -> None:
        """One upload has ended: if this one had to wait for the one before, the time in between is that of one."""
        now_s = self._clock()
        if self._ended_s is not None:
            self._turn_s += WEIGHT * (now_s - self._ended_s - self._turn_s)
        self._ended_s = now_s if self.queued else None

    def _appointment_s(self) -> float:
        now_s = self._clock()
        self._booked_s = max(now_s, self._booked_s) + self._turn_s
        if self._booked_s > now_s + MAX_PAUSE_S:  # the book is full: a second one for each time, from the first on
            self._booked_s = now_s + min(self._turn_s, MAX_PAUSE_S)
        return max(MIN_PAUSE_S, self._booked_s - now_s)

    def _refuse(self, reason: str, message: str, hint: str, pause_s: float) -> NoReturn:
        self._on_refusal(reason)
        raise OverloadedError(message, hint=hint, retry_after_s=pause_s)
