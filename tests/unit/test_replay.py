"""The replay buffer: order, bound and draws."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cema.cloud.replay import Replay


def picture(number: int) -> np.ndarray:
    return np.full((1, 1, 3), number % 256, np.uint8)


@given(st.integers(0, 20), st.lists(st.integers(0, 9), max_size=12))
def test_keeps_the_newest_and_reports_every_row_that_leaves_once_in_order(capacity: int, batches: list[int]) -> None:
    replay, added, evicted = Replay(capacity), 0, []
    for size in batches:
        rows = list(range(added + 1, added + size + 1))
        evicted += replay.extend(rows, [picture(row) for row in rows])
        added += size
        assert len(replay) <= capacity
    assert evicted == list(range(1, max(0, added - capacity) + 1))
    assert len(replay) == min(added, capacity)


def test_draws_are_without_replacement_and_repeatable() -> None:
    replay = Replay(100)
    replay.extend(list(range(50)), [picture(row) for row in range(50)])
    drawn = [int(image[0, 0, 0]) for image in replay.draw(30, np.random.default_rng(1))]
    assert len(set(drawn)) == 30
    assert drawn == [int(image[0, 0, 0]) for image in replay.draw(30, np.random.default_rng(1))]
    assert len(replay.draw(80, np.random.default_rng(1))) == 50
