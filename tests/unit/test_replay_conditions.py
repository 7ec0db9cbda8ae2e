"""The replay buffer's keys: draws of one condition alone, counts, and what eviction leaves of them."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cema.cloud.replay import Replay

KEYS = ("a", ("cam", 1), ("cam", 2))


def picture(row: int) -> np.ndarray:
    """Its pixels say which row it is."""
    return np.array([row // 256, row % 256, 7], np.uint8).reshape(1, 1, 3)


def rows_of(drawn_NHWC: np.ndarray) -> list[int]:
    return [int(high) * 256 + int(low) for high, low, _ in drawn_NHWC.reshape(-1, 3)]


def filled(capacity: int, keys: list[object], first: int = 0) -> Replay:
    replay = Replay(capacity)
    rows = range(first, first + len(keys))
    replay.extend(rows, [picture(row) for row in rows], keys)
    return replay


def test_a_draw_of_a_key_has_its_pictures_alone_each_once_and_in_random_order() -> None:
    replay = filled(1000, [KEYS[row % 3] for row in range(900)])
    drawn = rows_of(replay.draw(200, np.random.default_rng(1), KEYS[1]))
    assert len(set(drawn)) == 200
    assert {row % 3 for row in drawn} == {1}
    assert drawn != sorted(drawn)
    assert drawn == rows_of(replay.draw(200, np.random.default_rng(1), KEYS[1]))
    assert drawn != rows_of(replay.draw(200, np.random.default_rng(2), KEYS[1]))


def test_a_draw_of_more_than_there_are_gives_all_of_the_key() -> None:
    replay = filled(10, ["a", "b", "a", "b", "a"])
    assert sorted(rows_of(replay.draw(48, np.random.default_rng(0), "a"))) == [0, 2, 4]
    assert sorted(rows_of(replay.draw(48, np.random.default_rng(0)))) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("capacity", [0, 10])
def test_of_a_key_that_is_not_there_nothing_is_drawn(capacity: int) -> None:
    replay = filled(capacity, ["a", "b"])
    assert (replay.count("c"), len(replay.draw(48, np.random.default_rng(0), "c"))) == (0, 0)


def test_pictures_without_keys_and_with_them_can_share_a_buffer() -> None:
    replay = Replay(10)
    replay.extend([0, 1], [picture(0), picture(1)])
    replay.extend([2], [picture(2)], ["a"])
    assert replay.keys() == [None, None, "a"]
    assert rows_of(replay.draw(9, np.random.default_rng(0), "a")) == [2]


def test_as_many_keys_as_pictures_must_be_given() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Replay(10).extend([0, 1], [picture(0), picture(1)], ["a"])


@given(st.integers(0, 12), st.lists(st.lists(st.sampled_from(KEYS), max_size=7), max_size=8))
def test_keys_counts_and_draws_follow_what_is_evicted(capacity: int, batches: list[list[object]]) -> None:
    replay, expected, added = Replay(capacity), deque[tuple[int, object]](maxlen=capacity), 0
    for keys in batches:
        rows = list(range(added, added + len(keys)))
        replay.extend(rows, [picture(row) for row in rows], keys)
        expected.extend(zip(rows, keys, strict=True))
        added += len(keys)
        assert replay.keys() == [key for _, key in expected]
        for key in KEYS:
            having = [row for row, each in expected if each == key]
            assert replay.count(key) == len(having)
            assert sorted(rows_of(replay.draw(99, np.random.default_rng(0), key))) == having
