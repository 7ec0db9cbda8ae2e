"""How long a background thread waits after a failure, and that nothing but its end ends it."""

from __future__ import annotations

import random
import threading

from cema.config import UplinkConfig
from cema.edge.counters import EdgeCounters
from cema.edge.worker import Backoff, Worker
from cema.errors import OverloadedError, TransportError


def test_backoff_doubles_with_full_jitter() -> None:
    backoff = Backoff(UplinkConfig(backoff_min_s=1.0, backoff_max_s=8.0), random.Random(0))
    for ceiling in (1, 2, 4, 8, 8):
        assert 0 <= backoff.pause_s(TransportError("down")) <= ceiling
    backoff.reset()
    assert backoff.pause_s(TransportError("down")) <= 1
    pauses = {Backoff(UplinkConfig(), random.Random(seed)).pause_s(TransportError("down")) for seed in range(20)}
    assert len(pauses) == 20


def test_a_cloud_that_says_when_to_come_back_is_not_left_alone_for_much_longer() -> None:
    backoff = Backoff(UplinkConfig(backoff_min_s=1.0, backoff_max_s=60.0), random.Random(0))
    for _ in range(8):  # it was away for a while
        backoff.pause_s(TransportError("down"))
    pauses = [backoff.pause_s(OverloadedError("later", retry_after_s=5.0)) for _ in range(50)]
    assert 5 <= min(pauses) < 6
    assert 9 < max(pauses) <= 10
    assert backoff.pause_s(OverloadedError("full, and no word of when")) <= 60


def test_a_step_that_breaks_does_not_end_the_thread() -> None:
    calls = threading.Semaphore(0)

    def step() -> None:
        calls.release()
        raise ZeroDivisionError

    counters = EdgeCounters()
    quick = UplinkConfig(backoff_min_s=0.001, backoff_max_s=0.002)
    worker = Worker("w", step, Backoff(quick, random.Random(0)), counters)
    worker.start()
    assert all(calls.acquire(timeout=10) for _ in range(3))
    worker.closing.set()
    worker.join(10)
    assert "ZeroDivisionError" in str(counters.last_error)
