"""What time it is in the cloud: the device's own clock may be years off at boot, and jump once a time server is heard.

The last answer's time goes on by the monotonic clock, which nobody can set. Before the first answer there is only the
device's clock; what is dated by it is not dated.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class ServerClock:
    """Milliseconds since 1970 as the cloud counts them. Thread-safe.

    clock: the device's, Unix seconds. ticks: seconds since whenever, never set back.
    """

    def __init__(self, clock: Callable[[], float] = time.time, ticks: Callable[[], float] = time.monotonic) -> None:
        self._clock, self.ticks = clock, ticks
        self._heard: tuple[int, float] | None = None

    @property
    def known(self) -> bool:
        """Whether the cloud has said what time it is."""
        return self._heard is not None

    def hear(self, server_ms: int) -> None:
        """The cloud has just said that it is ``server_ms``."""
        self._heard = server_ms, self.ticks()

    def now_ms(self) -> int:
        return self.at_ms(self.ticks())

    def at_ms(self, tick_s: float) -> int:
        """What time it was when ``ticks`` gave ``tick_s``."""
        if self._heard is None:
            return round((self._clock() - (self.ticks() - tick_s)) * 1000)
        server_ms, heard_s = self._heard
        return server_ms + round((tick_s - heard_s) * 1000)
