"""The end that somebody asks a process for: SIGTERM and SIGINT set a flag that its main loop looks at.

An ``Event`` will not do: the signal may meet the main thread inside the event's own lock, and ``set`` then waits for it
for ever. ``SimpleQueue.put`` is the one thing in the standard library that may be called at any point.
"""

from __future__ import annotations

import signal
from queue import Empty, SimpleQueue
from typing import Protocol, Self


class Stopping(Protocol):
    """What a loop asks: a ``Stop``, or an ``Event`` of whoever runs the loop in a thread."""

    def is_set(self) -> bool: ...

    def wait(self, timeout: float) -> bool: ...


class Stop:
    """Set once, by a signal handler; for the main thread to look at and to wait for."""

    def __init__(self) -> None:
        self._asked: SimpleQueue[None] = SimpleQueue()

    @classmethod
    def on_signals(cls) -> Self:
        """One that SIGTERM and SIGINT set from now on."""
        stop = cls()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        return stop

    def set(self) -> None:
        self._asked.put(None)

    def is_set(self) -> bool:
        return not self._asked.empty()

    def wait(self, timeout: float) -> bool:
        """Whether it is set, within so many seconds."""
        try:
            self._asked.get(timeout=timeout)
        except Empty:
            return False
        self.set()  # it stays set
        return True
