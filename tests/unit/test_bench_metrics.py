"""The benchmark's measures against values worked out by hand, and against plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from cema.bench import metrics
from cema.bench.corruptions import COMMON
from cema.errors import ConfigError

RIGHT_WRONG = np.array([True, False, True, True, False])


def test_accuracies_of_five_answers() -> None:
    assert metrics.accuracy(RIGHT_WRONG) == pytest.approx(0.6)
    assert metrics.accuracy_second_half(RIGHT_WRONG) == pytest.approx(2 / 3), "the middle one counts as second half"


def test_no_answers_are_refused() -> None:
    nothing = np.zeros(0, np.bool_)
    for measure in (metrics.accuracy, metrics.accuracy_second_half):
        with pytest.raises(ConfigError, match="at least one of the answers to measure, got none"):
            measure(nothing)
    with pytest.raises(ConfigError, match="at least one"):
        metrics.expected_calibration_error(np.zeros(0), nothing)


def test_calibration_error_by_hand() -> None:
    # Two bins: (0, .5] holds .5 (right) and .2 (wrong): gap |.35 - .5| = .15; (.5, 1] holds .6, 1, both right: .2.
    confidence = np.array([0.5, 0.2, 0.6, 1.0])
    correct = np.array([True, False, True, True])
    assert metrics.expected_calibration_error(confidence, correct, bins=2) == pytest.approx(0.5 * 0.15 + 0.5 * 0.2)


def test_calibration_error_is_that_of_a_plain_loop() -> None:
    rng = np.random.default_rng(3)
    confidence = np.concatenate([rng.uniform(0, 1, 500), [0.0, 1.0, 0.2, 0.4]])
    correct = rng.uniform(size=504) < confidence
    expected = 0.0
    for m in range(15):
        inside = [i for i, c in enumerate(confidence) if m / 15 < c <= (m + 1) / 15 or (m == 0 and c == 0)]
        if inside:
            share = sum(bool(correct[i]) for i in inside) / len(inside)
            mean = sum(float(confidence[i]) for i in inside) / len(inside)
            expected += len(inside) / 504 * abs(share - mean)
    assert metrics.expected_calibration_error(confidence, correct) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("confidence", [[0.5, 1.2], [0.5, -0.1], [0.5, float("nan")], [0.5]])
def test_confidences_that_cannot_be_are_refused(confidence: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"one confidence in 0\.\.1 for each of 2 answers"):
        metrics.expected_calibration_error(np.array(confidence), np.array([True, True]))


def test_the_curves_last_window_may_be_shorter() -> None:
    assert metrics.curve(RIGHT_WRONG, 2) == pytest.approx([0.5, 1.0, 0.0])
    assert metrics.curve(np.zeros(0, np.bool_), 2) == []
    with pytest.raises(ConfigError, match="window of 1 image or more, got 0"):
        metrics.curve(RIGHT_WRONG, 0)


def test_alexnet_has_an_mce_of_one() -> None:
    assert set(metrics.ALEXNET_ERROR) == set(COMMON)
    errors = {(name, s): metrics.ALEXNET_ERROR[name] + (s - 3) / 100 for name in COMMON for s in range(1, 6)}
    assert metrics.mce(errors) == pytest.approx(1.0)
    halved = {key: value / 2 if key[0] == "fog" else value for key, value in errors.items()}
    assert metrics.mce(halved) == pytest.approx(1 - 0.5 / 15)


def test_mce_ignores_other_corruptions_and_refuses_missing_cells() -> None:
    errors = {(name, s): 0.5 for name in COMMON for s in range(1, 6)}
    expected = 0.5 / 15 * sum(1 / value for value in metrics.ALEXNET_ERROR.values())
    assert metrics.mce({**errors, ("saturate", 1): 1.0, ("clean", 0): 1.0}) == pytest.approx(expected)
    del errors["snow", 4]
    with pytest.raises(ConfigError, match=r"got none of snow 4 \(use the mean error\)"):
        metrics.mce(errors)


def test_mean_error_and_worst_corruption() -> None:
    assert metrics.mean_error({"fog": 0.2, "snow": 0.5}) == pytest.approx(0.35)
    assert metrics.worst_corruption({"fog": 0.8, "snow": 0.5, "frost": 0.5}) == ("snow", 0.5)
    with pytest.raises(ConfigError, match="corruptions"):
        metrics.mean_error({})


def test_bytes_per_recovered_point() -> None:
    assert metrics.bytes_per_recovered_point(5000, 0.75, 0.5) == pytest.approx(200)
    assert metrics.bytes_per_recovered_point(0, 0.75, 0.5) == 0
    assert metrics.bytes_per_recovered_point(5000, 0.5, 0.5) is None
    assert metrics.bytes_per_recovered_point(5000, 0.4, 0.5) is None


def test_percentiles_are_per_image_and_in_milliseconds() -> None:
    p50, p99 = metrics.percentiles([0.064, 0.128, 0.03], [64, 64, 10])
    assert p50 == pytest.approx(2.0)
    assert p99 == pytest.approx(2.0 + 0.98 * 1.0)
    with pytest.raises(ConfigError, match="images"):
        metrics.percentiles([0.1], [0])
