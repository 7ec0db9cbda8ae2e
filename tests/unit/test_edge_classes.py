"""Which classes a stream shows: when it counts as narrow, and what that does to answers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cema.edge.classes import ClassesSettings, RecentClasses
from cema.edge.selection import softmax
from cema.types import Float32Array

logits = hnp.arrays(np.float32, st.tuples(st.integers(1, 20), st.just(10)), elements=st.floats(-20, 20, width=32))


def answers(labels: Sequence[int], classes: int = 10, probability: float = 0.7) -> Float32Array:
    found = np.full((len(labels), classes), (1 - probability) / (classes - 1), np.float32)
    found[np.arange(len(labels)), list(labels)] = probability
    return found


def shown(recent: RecentClasses, labels: Sequence[int]) -> RecentClasses:
    for start in range(0, len(labels), 8):
        part = list(labels[start : start + 8])
        recent.take_in(answers(part, recent.classes), part)
    return recent


def mixed(count: int, classes: int = 10) -> list[int]:
    return [index % classes for index in range(count)]


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
def test_one_class_is_narrow_and_all_of_them_are_not(classes: int) -> None:
    drawn = np.random.default_rng(0).integers(0, classes, 400).tolist()
    assert not shown(RecentClasses(classes), drawn).narrow
    assert shown(RecentClasses(classes), [1] * 80).narrow


def test_a_thousand_classes_drawn_evenly_never_count_as_narrow() -> None:
    recent, rng = RecentClasses(1000), np.random.default_rng(0)
    assert not any(shown(recent, rng.integers(0, 1000, 8).tolist()).narrow for _ in range(200))


def test_a_stream_narrows_and_opens_again() -> None:
    recent = shown(RecentClasses(10), mixed(320))
    assert shown(recent, [7] * 64).narrow
    assert not shown(recent, mixed(64)).narrow


def test_a_stream_that_always_had_one_class_comes_to_count_as_ordinary() -> None:
    recent = shown(RecentClasses(10), [7] * 160)
    assert recent.narrow
    assert not shown(recent, [7] * 2000).narrow


def test_few_answers_are_no_evidence() -> None:
    assert not shown(RecentClasses(10), [7]).narrow


def test_an_ordinary_stream_is_answered_as_the_model_says() -> None:
    recent, given_BK = shown(RecentClasses(10), mixed(160)), answers([3, 4])
    assert recent.correct(given_BK) is given_BK


def test_a_doubtful_answer_goes_to_the_class_that_shows() -> None:
    recent = shown(RecentClasses(10), [7] * 80)
    doubtful = np.full((1, 10), 0.02, np.float32)
    doubtful[0, [2, 7]] = 0.44, 0.40
    corrected = recent.correct(doubtful)
    assert corrected.argmax() == 7
    certain = answers([2], probability=0.9999)
    assert recent.correct(certain).argmax() == 2  # a class that has not shown can still be seen


def test_the_estimate_is_expectation_maximisation_with_a_flat_prior() -> None:
    settings = ClassesSettings(rounds=2, prior=4.0, window=16)
    recent = RecentClasses(4, settings)
    before = answers([0] * 15 + [1], 4)
    recent.take_in(before, [0] * 16)
    assert recent.narrow
    new = answers([0, 2], 4, 0.4)
    seen, share = np.concatenate([before[-14:], new]).astype(np.float64), np.full(4, 0.25)
    for _ in range(2):
        weighed = seen * share / (seen * share).sum(axis=1, keepdims=True)
        share = (weighed.sum(axis=0) + 1.0) / (16 + 4.0)
    expected = new * share / (new * share).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(recent.correct(new), expected, rtol=1e-5)


@pytest.mark.parametrize("batch", [1, 63, 64, 65, 128])
def test_answers_before_the_window_do_not_count(batch: int) -> None:
    recent, fresh = shown(RecentClasses(10), [*mixed(320), *[0] * 64]), RecentClasses(10)
    fresh.take_in(answers([0] * max(0, recent.settings.window - batch)), [])
    fresh.narrow = True
    given_BK = answers([1] * batch, probability=0.4)
    np.testing.assert_array_equal(recent.correct(given_BK), fresh.correct(given_BK))


def test_no_rounds_mean_no_correction() -> None:
    recent, given_BK = shown(RecentClasses(10, ClassesSettings(rounds=0)), [7] * 80), answers([1])
    assert recent.narrow
    assert recent.correct(given_BK) is given_BK


@given(logits)
def test_corrected_answers_are_probabilities(logits_BK: Float32Array) -> None:
    recent = shown(RecentClasses(10), [1, 2] * 40)
    corrected_BK = recent.correct(softmax(logits_BK))
    assert corrected_BK.shape == logits_BK.shape
    assert np.isfinite(corrected_BK).all()
    np.testing.assert_allclose(corrected_BK.sum(axis=1), 1, atol=1e-5)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=300), st.sampled_from([1.5, 20.0, 1000.0]))
def test_running_counts_agree_with_counting_anew(labels: list[int], memory: float) -> None:
    settings = ClassesSettings(window=16, memory=memory, start=8.0, sigmas=1.0)
    recent, weights = shown(RecentClasses(5, settings), labels), np.full(5, 8 / 5)
    for label in labels:
        weights *= 1 - 1 / memory
        weights[label] += 1
    latest = labels[-16:]
    alike = sum(a == b for a, b in combinations(latest, 2))
    expected = float(((weights / weights.sum()) ** 2).sum()) * len(latest) * (len(latest) - 1) / 2
    assert recent._recent.pairs == alike
    assert recent._lasting.alike == pytest.approx(float(((weights / weights.sum()) ** 2).sum()), rel=1e-6)
    assert recent.narrow == (alike * 0.6 > expected + 0.6 * np.sqrt(expected))


def test_shares_stay_finite_however_long_a_device_runs() -> None:
    settings = ClassesSettings(memory=1.01)  # forgets so fast that its weights are written anew every fifty labels
    recent = shown(RecentClasses(10, settings), mixed(10_000))
    assert recent._lasting.alike == pytest.approx(1.0, abs=0.03)  # the latest label is nearly all that it knows
