"""Comparisons that a noisy machine cannot turn round: the rivals take turns, and a ratio is taken within each turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

Timings = dict[str, list[float]]
"""Seconds of each round, by contestant."""


def take_turns(
    contestants: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> Timings:
    """Each of them once per round, in turns that begin with another one each time; ``warm_up`` rounds do not count."""
    names = list(contestants)
    taken: Timings = {name: [] for name in names}
    for number in range(warm_up + rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            started_s = clock()
            contestants[name]()
            if number >= warm_up:
                taken[name].append(clock() - started_s)
    return taken


def ratio(timings: Timings, slow: str, fast: str) -> float:
    """Median over the rounds of slow / fast."""
    return statistics.median(a / b for a, b in zip(timings[slow], timings[fast], strict=True))


def median_ms(timings: Timings, name: str) -> float:
    return 1000 * statistics.median(timings[name])
