"""How far norm layers follow a stream: the rule against numbers worked out by hand, and what it never does."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cema.types import Float32Array
from cema.wire.blend import BLEND, BlendSettings, diversity, log_ratio, shares, shift_size, trust

PLAIN = BlendSettings(share_max=0.6, evidence=8, shift_half=0.1, shift_power=2, trust_least=0.25, classes=4)
"""Round numbers, so that what a method tunes does not move the sums below."""
fractions = st.floats(0, 1)


def floats(*values: float) -> Float32Array:
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("pictures", "trusted", "shown", "expected"),
    [
        (8, 1.0, 1.0, (0.3, 0.3, 0.3)),  # 0.6 * 8/16
        (24, 1.0, 1.0, (0.45, 0.45, 0.45)),  # 0.6 * 24/32
        (8, 0.0, 1.0, (0.075, 0.075, 0.075)),  # the quarter that any stream gets
        (8, 0.5, 1.0, (0.1875, 0.1875, 0.1875)),  # 0.25 + 0.75 * 0.5 = 0.625
        (8, 1.0, 0.5, (0.3, 0.225, 0.15)),
        (24, 0.5, 0.2, (0.28125, 0.16875, 0.05625)),  # 0.45 * 0.625 * (1, 0.6, 0.2)
        (0, 1.0, 1.0, (0.0, 0.0, 0.0)),
    ],
)
def test_shares_are_those_of_the_formula(
    pictures: int, trusted: float, shown: float, expected: tuple[float, ...]
) -> None:
    share_L = shares(pictures, trusted, shown, 3, PLAIN)
    assert share_L.dtype == np.float32
    np.testing.assert_allclose(share_L, expected, rtol=1e-6)


def test_a_model_of_one_layer_follows_whatever_classes_it_shows() -> None:
    np.testing.assert_allclose(shares(8, 1.0, 0.1, 1, PLAIN), [0.3], rtol=1e-6)


@given(st.integers(0, 10_000), fractions, fractions, st.integers(1, 60))
@settings(deadline=None)
def test_a_share_stays_between_nothing_and_its_maximum(n: int, trusted: float, shown: float, layers: int) -> None:
    share_L = shares(n, trusted, shown, layers)
    assert share_L.shape == (layers,)
    assert (share_L >= 0).all()
    assert (share_L <= BLEND.share_max).all()


@given(st.integers(1, 200), fractions, st.floats(0, 0.95), st.integers(2, 60))
@settings(deadline=None)
def test_few_classes_hold_deep_layers_back_and_leave_the_first_alone(
    n: int, trusted: float, shown: float, layers: int
) -> None:
    few_L, all_L = shares(n, trusted, shown, layers), shares(n, trusted, 1.0, layers)
    assert few_L[0] == all_L[0]
    assert (few_L[1:] < all_L[1:]).all()
    assert (np.diff(few_L) < 0).all()
    np.testing.assert_allclose(few_L[-1], shown * all_L[-1], rtol=1e-5, atol=1e-7)


@given(st.integers(0, 500), st.integers(0, 500), fractions, fractions)
@settings(deadline=None)
def test_more_pictures_and_more_trust_never_mean_a_smaller_share(n: int, more: int, trusted: float, add: float) -> None:
    less, most = shares(n, trusted, 0.5, 5), shares(n + more, min(1.0, trusted + add), 0.5, 5)
    assert (most >= less - 1e-7).all()


@pytest.mark.parametrize(("shift", "expected"), [(0.0, 0.0), (0.05, 0.2), (0.1, 0.5), (0.2, 0.8), (1e9, 1.0)])
def test_trust_rises_from_nothing_over_a_half_to_one(shift: float, expected: float) -> None:
    assert trust(shift, PLAIN) == pytest.approx(expected)


@given(st.floats(0, 1e6), st.floats(0, 1e6))
@settings(deadline=None)
def test_trust_never_falls_with_the_shift(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert 0 <= trust(low) <= trust(high) <= 1


def test_a_log_ratio_is_that_of_the_variances() -> None:
    np.testing.assert_allclose(log_ratio(floats(2, 1, 0.5), floats(1, 1, 2)), np.log([2, 1, 0.25]), rtol=1e-6)


def test_dead_channels_give_finite_numbers() -> None:
    ratio_C = log_ratio(floats(0, 0, 1, -1e-9), floats(0, 1, 0, 1))
    assert np.isfinite(ratio_C).all()
    assert ratio_C[0] == 0
    assert ratio_C[1] < 0 < ratio_C[2]
    assert np.isfinite(shift_size([ratio_C, ratio_C]))


def test_the_shift_is_the_median_square_of_the_early_layers_behind_the_first() -> None:
    far = floats(9, 9, 9)
    ratios = [far, floats(0.1, -0.2), floats(0.3, 0.4, -0.5), far, far, far]
    assert shift_size(ratios) == pytest.approx(0.09, rel=1e-5)  # of 0.01 0.04 0.09 0.16 0.25
    assert shift_size([far, floats(0.5)]) == pytest.approx(0.25)
    assert shift_size([far, floats(0.5), far]) == pytest.approx(0.25)
    assert shift_size([floats(0.5)]) == pytest.approx(0.25)  # there is no other


def test_what_noise_explains_is_no_shift() -> None:
    ratios = [floats(9), floats(0.3, -0.3, 0.3), floats(9), floats(9)]
    noises = [floats(0), floats(0.04, 0.04, 0.04), floats(0), floats(0)]
    assert shift_size(ratios, noises) == pytest.approx(0.05, rel=1e-5)
    noises[1] = floats(1, 1, 1)
    assert shift_size(ratios, noises) == 0


def test_a_stream_like_the_source_has_no_shift_and_no_trust() -> None:
    same_C = floats(0.5, 2, 0, 1e3)
    shift = shift_size([log_ratio(same_C, same_C)] * 6)
    assert shift == 0
    assert trust(shift) == 0


@pytest.mark.parametrize(
    ("counts", "classes", "expected"),
    [
        ([5], 10, 1 / 4),  # four classes are enough by these settings
        ([5], 3, 1 / 3),  # and the model's if there are fewer
        ([7, 7], 10, 2 / 4),
        ([3, 1], 10, math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))) / 4),
        ([2, 2, 2, 2], 10, 1.0),
        ([1] * 10, 10, 1.0),
    ],
)
def test_diversity_is_the_effective_number_of_classes(counts: list[int], classes: int, expected: float) -> None:
    assert diversity(np.array(counts), classes, PLAIN) == pytest.approx(expected)


def test_one_class_of_ten_is_a_tenth() -> None:
    shown = diversity(np.array([32]), 10)
    assert shown == pytest.approx(0.1)
    share_L = shares(32, 1.0, shown, 20)
    assert share_L[-1] == pytest.approx(0.1 * share_L[0], rel=1e-5)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=100), st.integers(0, 1000))
@settings(deadline=None)
def test_diversity_is_a_fraction_whatever_is_counted(counts: list[int], more: int) -> None:
    shown = diversity(np.array(counts), len(counts) + more)
    assert 0 < shown <= 1
