"""Streams: which photograph under which corruption, in which order, for every setting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cema.bench.streams import PASSING, SETTINGS, Pictures, Shape, for_edge, make_streams
from cema.errors import ConfigError

LABELS = np.random.default_rng(0).integers(0, 4, 240)
NAMES = ("fog", "snow", "contrast")


class Shelf:
    """A data set whose pictures tell index, corruption and severity by their pixels."""

    mask = None

    def __init__(self) -> None:
        self.labels, self.asked = LABELS, []

    def condition(self, corruption: str, severity: int, seed: int, cache_dir: object) -> np.ndarray:
        self.asked.append((corruption, severity, seed))
        pictures = np.zeros((len(LABELS), 1, 1, 3), np.uint8)
        pictures[:, 0, 0, 0] = np.arange(len(LABELS))
        pictures[:, 0, 0, 1:] = NAMES.index(corruption), severity
        return pictures


@given(st.sampled_from(SETTINGS), st.integers(0, 50), st.integers(1, 5))
def test_same_seed_same_stream_another_seed_another_order(setting: str, seed: int, severity: int) -> None:
    first, again, other = (make_streams(setting, NAMES, severity, LABELS, s) for s in (seed, seed, seed + 1))
    orders = [[s.index_N.tolist() for stream in streams for s in stream.segments] for streams in (first, again, other)]
    assert orders[0] == orders[1] != orders[2]


def test_stored_order_is_that_of_the_data_set_whatever_the_seed() -> None:
    (stream, *_) = make_streams("reset", NAMES, 5, LABELS, 7, Shape(shuffle=False))
    np.testing.assert_array_equal(stream.segments[0].index_N, np.arange(len(LABELS)))
    (by_class, *_) = make_streams("correlated", NAMES, 5, LABELS, 7, Shape(shuffle=False, alpha=0))
    np.testing.assert_array_equal(by_class.segments[0].index_N, np.argsort(LABELS, kind="stable"))


@pytest.mark.parametrize("setting", ["reset", "correlated", "continual", "gradual"])
def test_every_photograph_comes_once_per_corruption(setting: str) -> None:
    for stream in make_streams(setting, NAMES, 3, LABELS, seed=1):
        for segment in stream.segments:
            np.testing.assert_array_equal(np.sort(segment.index_N), np.arange(len(LABELS)))


def test_corruptions_alone_are_streams_of_their_own_and_passing_ones_share_one() -> None:
    alone = make_streams("reset", NAMES, 5, LABELS, 0)
    assert [[s.corruption for s in stream.segments] for stream in alone] == [["fog"], ["snow"], ["contrast"]]
    for setting in PASSING:
        assert len(make_streams(setting, NAMES, 5, LABELS, 0)) == 1


def test_gradual_severity_rises_and_falls_within_a_corruption() -> None:
    (stream,) = make_streams("gradual", NAMES, 3, LABELS, 0)
    segment = stream.segments[1]
    severities = [segment.conditions[which][1] for which in segment.condition_N]
    assert [severities[i] for i in (0, 60, 120, 170, 239)] == [1, 2, 3, 2, 1]
    assert {segment.conditions[which][0] for which in segment.condition_N} == {"snow"}


def test_mixed_draws_a_corruption_for_each_picture() -> None:
    ((segment,),) = [stream.segments for stream in make_streams("mixed", NAMES, 5, LABELS, 0)]
    counts = np.bincount(segment.condition_N, minlength=3)
    assert counts.min() > len(LABELS) / 5
    assert (np.diff(segment.condition_N) != 0).mean() > 0.5


def test_sorted_by_class_at_alpha_zero_and_nearly_so_at_a_small_one() -> None:
    def changes(setting: str, alpha: float) -> int:
        (stream, *_) = make_streams(setting, NAMES, 5, LABELS, 0, Shape(alpha=alpha))
        return int((np.diff(LABELS[stream.segments[0].index_N]) != 0).sum())

    assert changes("correlated", 0.0) == 3
    assert 3 < changes("correlated", 0.1) < 16  # at most one run of each class in each slot
    assert changes("reset", 0.1) > 130


def test_label_shift_makes_one_class_ten_times_as_frequent_as_the_rarest() -> None:
    (stream, *_) = make_streams("label_shift", NAMES, 5, LABELS, 3, Shape(imbalance=10))
    share = np.bincount(LABELS[stream.segments[0].index_N]) / np.bincount(LABELS)
    np.testing.assert_allclose(np.sort(share), 10.0 ** -np.linspace(1, 0, 4), atol=0.02)


def test_recurring_comes_back_with_other_photographs() -> None:
    (stream,) = make_streams("recurring", NAMES, 5, LABELS, 0, Shape(visits=2))
    assert [(s.corruption, s.visit) for s in stream.segments] == [(name, v) for v in (0, 1) for name in NAMES]
    first, second = (set(s.index_N.tolist()) for s in stream.segments if s.corruption == "fog")
    assert not first & second
    assert len(first | second) == len(LABELS)


def test_devices_of_a_group_are_under_different_conditions() -> None:
    (stream,) = make_streams("continual", NAMES, 5, LABELS, 0)
    begins = [for_edge(stream, edge, 3).segments[0].corruption for edge in range(3)]
    assert begins == list(NAMES)


def test_other_devices_get_other_photographs_first_but_an_order_that_matters_stays() -> None:
    def classes_in_a_row(setting: str, **shape: float) -> list[float]:
        (stream, *_) = make_streams(setting, NAMES, 5, LABELS, 0, Shape(**shape))  # type: ignore[arg-type]
        orders = [for_edge(stream, edge, 3).segments[0].index_N for edge in range(3)]
        assert len({tuple(order) for order in orders}) == 3
        assert all(sorted(order) == list(range(len(LABELS))) for order in orders)
        return [float((np.diff(LABELS[order]) == 0).mean()) for order in orders]

    assert min(classes_in_a_row("correlated", alpha=0.1)) > 0.9
    assert max(classes_in_a_row("reset")) < 0.4
    (stored, *_) = make_streams("reset", NAMES, 5, LABELS, 0, Shape(shuffle=False))
    np.testing.assert_array_equal(for_edge(stored, 1, 3).segments[0].index_N, np.roll(np.arange(240), -80))


def test_batches_carry_the_right_picture_and_label_and_end_with_the_segment() -> None:
    (stream,) = make_streams("gradual", NAMES, 2, LABELS, 0)
    shelf = Shelf()
    sizes = []
    for indices, images, labels in Pictures(shelf, seed=7).batches(stream.segments[0], 64):  # type: ignore[arg-type]
        np.testing.assert_array_equal(images[:, 0, 0, 0], indices)
        np.testing.assert_array_equal(LABELS[indices], labels)
        assert set(images[:, 0, 0, 1]) == {0}
        sizes.append(len(labels))
    assert sizes == [64, 64, 64, 48]
    assert sorted(set(shelf.asked)) == [("fog", 1, 7), ("fog", 2, 7)]
    assert len(shelf.asked) == 2


def test_nonsense_is_refused_with_what_was_expected() -> None:
    with pytest.raises(ConfigError, match="continual"):
        make_streams("continuous", NAMES, 5, LABELS, 0)
    with pytest.raises(ConfigError, match="at least one corruption"):
        make_streams("reset", (), 5, LABELS, 0)
    with pytest.raises(ConfigError, match="3 visits"):
        make_streams("recurring", NAMES, 5, LABELS[:2], 0)
    for shape in ({"imbalance": 0.5}, {"alpha": float("nan")}, {"alpha": float("inf")}, {"imbalance": float("inf")}):
        with pytest.raises(ConfigError, match="imbalance"):
            Shape(**shape)


def test_every_pass_has_all_photographs_in_an_order_of_its_own() -> None:
    (once, _), (twice, _) = (make_streams("reset", NAMES[:2], 5, LABELS, 3, Shape(passes=passes)) for passes in (1, 2))
    first_N, second_N = np.split(twice.segments[0].index_N, 2)
    np.testing.assert_array_equal(first_N, once.segments[0].index_N)
    np.testing.assert_array_equal(np.sort(second_N), np.arange(len(LABELS)))
    assert (first_N != second_N).any()


@pytest.mark.parametrize("setting", PASSING)
def test_a_stream_through_several_corruptions_has_one_pass(setting: str) -> None:
    with pytest.raises(ConfigError, match="one pass"):
        make_streams(setting, NAMES, 5, LABELS, 0, Shape(passes=2))
