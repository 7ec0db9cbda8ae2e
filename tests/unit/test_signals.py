"""The flag that signals set: at whatever point of the main thread they come."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from cema.signals import Stop

HAMMERED = """
import os, signal, threading
from cema.signals import Stop

stops = 0
signal.signal(signal.SIGALRM, lambda *_: current.set())
current = Stop()
signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)  # meets the main thread everywhere in wait, is_set and set
while stops < 2000:
    current.wait(0.0001)
    if current.is_set():
        stops, current = stops + 1, Stop()
signal.setitimer(signal.ITIMER_REAL, 0)
print("ended")
"""


def test_it_stays_set_and_waits_no_longer_than_told() -> None:
    stop = Stop()
    assert not stop.is_set()
    assert not stop.wait(0.001)
    stop.set()
    assert stop.wait(60)
    assert stop.wait(60)
    assert stop.is_set()


def test_a_signal_sets_it_while_it_is_waited_for() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        stop = Stop.on_signals()
        signal.raise_signal(signal.SIGTERM)
        assert stop.wait(60)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_signals_at_any_point_never_hang_the_main_thread() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HAMMERED], capture_output=True, text=True, timeout=60, env=os.environ, check=False
    )
    assert done.stdout == "ended\n", done.stderr
