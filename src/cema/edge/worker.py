"""A background thread that repeats one step until it is told to stop, and pauses longer after each failure."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable

from cema.config import UplinkConfig
from cema.edge.counters import EdgeCounters
from cema.errors import CemaError

_DOUBLINGS = 32
"""Beyond this many failures the exponential pause no longer grows (it reached its maximum long before)."""
log = logging.getLogger(__name__)


class Backoff:
    """Exponential backoff with full jitter: uniform in [0, min(max, min * 2^failures)] s.

    A fleet that lost its cloud at one instant thus does not come back at one instant. A cloud that says when to come
    back (Retry-After) has spread its devices already: on top of that, at most as long again.
    """

    def __init__(self, config: UplinkConfig, rng: random.Random) -> None:
        self._config, self._rng = config, rng
        self._failures = 0

    def reset(self) -> None:
        self._failures = 0

    def pause_s(self, error: Exception) -> float:
        """How long to wait after this failure, at least what the cloud asked for."""
        ceiling = min(self._config.backoff_max_s, self._config.backoff_min_s * 2.0 ** min(self._failures, _DOUBLINGS))
        self._failures += 1
        asked = error.values.get("retry_after_s") if isinstance(error, CemaError) else None
        asked_s = float(asked) if isinstance(asked, int | float) else 0.0
        return asked_s + self._rng.uniform(0.0, min(ceiling, asked_s or ceiling))


class Worker:
    """Runs ``step`` again and again in a daemon thread; a step that raises is counted, logged and tried again later."""

    def __init__(self, name: str, step: Callable[[], None], backoff: Backoff, counters: EdgeCounters) -> None:
        self.closing = threading.Event()
        self._step, self._backoff, self._counters = step, backoff, counters
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        """Wait for the end; ``closing`` must be set before. A thread that was never started has ended."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self.closing.is_set():
            try:
                self._step()
                self._backoff.reset()
            except Exception as error:  # the thread must outlive whatever happens in one step
                if self.closing.is_set():
                    return
                self._report(error)
                self.closing.wait(self._backoff.pause_s(error))

    def _report(self, error: Exception) -> None:
        self._counters.failed(error)
        if isinstance(error, CemaError):
            log.warning("%s: %s", self._thread.name, error, extra={"code": error.code})
        else:
            log.error("%s failed", self._thread.name, exc_info=error)
