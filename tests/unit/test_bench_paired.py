"""Paired differences between two methods: when they are more than luck."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cema.bench.paired import MEAN, compare, interval, pack, unpack
from cema.bench.rows import Row
from cema.errors import ConfigError

PHOTOGRAPHS = 400


def row(method: str, right_N: np.ndarray, corruption: str = "fog", seed: int = 0, photographs: int = 0) -> Row:
    accuracy = float(right_N.mean())
    return Row(
        method=method, where="none", dataset="digits", corruption=corruption, severity=5, setting="reset",
        batch_size=64, seed=seed, samples=len(right_N), accuracy=accuracy, accuracy_second_half=accuracy,
        error=1 - accuracy, ece=0.0, uploads=0, bytes_up=0, bytes_down=0, edge_s=0.0, edge_ms_p50=0.0, edge_ms_p99=0.0,
        cloud_s=0.0, peak_rss_mb=1.0, photographs=photographs or len(right_N), right=pack(right_N),
    )  # fmt: skip


def answers(rate: float, seed: int, count: int = PHOTOGRAPHS) -> np.ndarray:
    return np.random.default_rng(seed).random(count) < rate


@given(st.lists(st.booleans(), min_size=1, max_size=100))
def test_what_is_packed_comes_out_again(right: list[bool]) -> None:
    np.testing.assert_array_equal(unpack(row("bn", np.array(right))), right)


def test_answers_of_several_passes_are_one_share_for_each_photograph() -> None:
    by_photograph = np.array([[True, True], [False, True], [False, False]])
    np.testing.assert_array_equal(unpack(row("bn", by_photograph.ravel(), photographs=3)), [1, 0.5, 0])


def test_a_clear_difference_is_told_from_none() -> None:
    worse = answers(0.5, 0)
    better = worse | answers(0.2, 1)
    (line,) = compare([row("bn", better), row("source", worse)], "bn", "source")
    assert line.difference == pytest.approx(100 * (better.mean() - worse.mean()))
    assert 0 < line.low < line.difference < line.high
    (same,) = compare([row("bn", answers(0.5, 2)), row("source", answers(0.5, 3))], "bn", "source")
    assert same.low < 0 < same.high


def test_pairs_are_photographs_so_that_what_both_get_wrong_costs_no_certainty() -> None:
    base = answers(0.5, 0)
    paired = base.copy()
    paired[np.flatnonzero(~base)[:20]] = True
    (close,) = compare([row("bn", paired), row("source", base)], "bn", "source")
    (loose,) = compare([row("bn", np.random.default_rng(5).permutation(paired)), row("source", base)], "bn", "source")
    assert close.difference == pytest.approx(loose.difference)
    assert close.high - close.low < (loose.high - loose.low) / 2


def test_seeds_are_taken_together_and_the_mean_is_over_all_corruptions() -> None:
    rows = [
        row(method, answers(rate, seed + 10 * index), name, seed)
        for index, (method, rate) in enumerate((("bn", 0.7), ("source", 0.5)))
        for name in ("fog", "snow")
        for seed in (0, 1)
    ]
    lines = compare([*rows, row("bn", answers(0.1, 9), "fog", seed=2)], "bn", "source")
    assert [(line.corruption, line.seeds, line.photographs) for line in lines] == [
        ("snow", (0, 1), PHOTOGRAPHS), ("fog", (0, 1), PHOTOGRAPHS), (MEAN, (0, 1), PHOTOGRAPHS)
    ]  # fmt: skip
    assert lines[2].difference == pytest.approx((lines[0].difference + lines[1].difference) / 2)


def test_rows_that_cannot_be_paired_are_refused() -> None:
    old = msgspec.structs.replace(row("bn", answers(0.5, 0)), right="", photographs=0)
    with pytest.raises(ConfigError, match="which answers were right"):
        compare([old, row("source", answers(0.5, 1))], "bn", "source")
    with pytest.raises(ConfigError, match="got none"):
        compare([row("bn", answers(0.5, 0))], "bn", "source")
    with pytest.raises(ConfigError, match="got none"):
        compare([row("bn", answers(0.5, 0), seed=0), row("source", answers(0.5, 0), seed=1)], "bn", "source")


def test_the_interval_has_the_width_that_theory_gives() -> None:
    values = answers(0.5, 0, 2500).astype(float)
    low, high = interval(values, np.random.default_rng(0))
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 50, rel=0.1)
