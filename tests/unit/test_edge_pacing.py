"""Which samples a device with its own statistics sends: how many at most, which of them, and when it is silent."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cema.config import SelectionConfig
from cema.edge.pacing import PacedSelector, PacingSettings
from cema.edge.selection import BoolArray, FollowsStream, entropy, softmax
from cema.types import Float32Array

CLASSES = 10
SURE, MIDDLING, VAGUE = 0.999, 0.85, 0.3
"""Probability of the first class: entropies of 0.01, 0.75 and 2.15 nats, of which 0.23 to 0.92 is sent."""
logits = hnp.arrays(np.float32, st.tuples(st.integers(0, 40), st.just(CLASSES)), elements=st.floats(-8, 8, width=32))
batches = st.lists(st.tuples(logits, st.floats(0, 1)), max_size=30)


def selector(seed: int = 0, classes: int = CLASSES, **settings: float) -> PacedSelector:
    return PacedSelector(SelectionConfig(), classes, np.random.default_rng(seed), PacingSettings(**settings))


def answers(labels: Sequence[int], probability: float, classes: int = CLASSES) -> Float32Array:
    """Softmax outputs with this probability for the label, the rest even over the other classes."""
    found = np.full((len(labels), classes), (1 - probability) / (classes - 1), np.float32)
    found[np.arange(len(labels)), list(labels)] = probability
    return found


def sent(chooser: PacedSelector, probabilities_BK: Float32Array) -> BoolArray:
    mask_B = chooser.select(probabilities_BK, entropy(probabilities_BK))
    assert mask_B.shape == (len(probabilities_BK),)
    assert mask_B.dtype == np.bool_
    return mask_B


def counted(
    chooser: PacedSelector, labels: Sequence[int], probability: float = MIDDLING, batch: int = 8, classes: int = CLASSES
) -> list[int]:
    """How many of each batch are sent."""
    parts = (labels[start : start + batch] for start in range(0, len(labels), batch))
    return [int(sent(chooser, answers(part, probability, classes)).sum()) for part in parts]


def mixed(count: int) -> list[int]:
    return [index % CLASSES for index in range(count)]


def test_it_follows_the_stream() -> None:
    assert isinstance(selector(), FollowsStream)


def test_the_examples_stand_where_they_should() -> None:
    sure, middling, vague = (float(entropy(answers([0], p))[0] / math.log(CLASSES)) for p in (SURE, MIDDLING, VAGUE))
    assert sure < PacingSettings().e_min < middling < SelectionConfig().e_max < vague


@given(batches, st.integers(0, 9), st.floats(0.01, 1), st.floats(1, 40), st.floats(1, 40))
@settings(deadline=None)
def test_never_more_is_sent_than_there_are_tokens(
    stream: list[tuple[Float32Array, float]], seed: int, rate: float, start: float, most: float
) -> None:
    chooser = selector(seed, rate=rate, start=start, most=most)
    counts, refills = [], []
    for logits_BK, trust in stream:
        chooser.follow(trust, False, False)
        counts.append(int(sent(chooser, softmax(logits_BK)).sum()))
        refills.append(rate * trust * len(logits_BK))
    assert sum(counts) <= start + sum(refills) + 1e-6
    for first in range(1, len(counts)):  # what is saved up is bounded
        assert sum(counts[first:]) <= max(start, most) + sum(refills[first:]) + 1e-6
    assert all(count <= most for count in counts)


def test_a_stream_of_many_samples_uses_its_tokens_up() -> None:
    counts = counted(selector(), mixed(8000))
    assert sum(counts) == 32 + 0.25 * 8000
    assert counts[0] == 8  # at first there are plenty
    assert set(counts[50:]) == {2}


def test_what_is_saved_up_is_bounded() -> None:
    chooser = selector(random_share=0)
    assert sum(counted(chooser, mixed(4000), SURE)) == 0
    assert counted(chooser, mixed(1000), batch=1000) == [64]


@pytest.mark.parametrize("trust", [0.2, 0.6, 1.0])
def test_tokens_come_as_fast_as_the_stream_is_to_be_trusted(trust: float) -> None:
    chooser = selector()
    chooser.follow(trust, False, False)
    assert sum(counted(chooser, mixed(4000))) == pytest.approx(32 + trust * 0.25 * 4000, abs=1)


def test_without_trust_the_first_tokens_are_the_last() -> None:
    chooser = selector()
    chooser.follow(0.0, False, False)
    counts = counted(chooser, mixed(400))
    assert sum(counts) == 32
    assert sum(counts[10:]) == 0
    chooser.follow(1.0, False, False)
    assert sum(counted(chooser, mixed(400))) == 100


def test_a_tenth_of_confident_samples_is_sent_and_a_tenth_of_vague_ones() -> None:
    for probability in (SURE, VAGUE):
        counts = counted(selector(), mixed(8000), probability)
        assert sum(counts) == pytest.approx(800, abs=4 * math.sqrt(8000 * 0.1 * 0.9))


def test_the_random_tenth_prefers_no_class() -> None:
    chooser, labels = selector(), mixed(8000)
    masks = [sent(chooser, answers(labels[start : start + 10], SURE)) for start in range(0, 8000, 10)]
    per_class = np.sum(masks, axis=0)
    assert per_class.min() > 80 - 4 * math.sqrt(72)
    assert per_class.max() < 80 + 4 * math.sqrt(72)


def test_with_few_tokens_the_choice_among_the_good_samples_is_random() -> None:
    chooser = selector(start=4, random_share=0, rate=0)
    first = np.zeros(40, np.bool_)
    picks = answers(mixed(40), MIDDLING)
    picks[20:] = answers(mixed(20), SURE)
    first |= sent(chooser, picks)
    assert first.sum() == 4
    assert not first[20:].any()
    assert not first[:4].all()  # not the earliest ones


def choices(seed: int) -> Iterator[list[bool]]:
    chooser, rng = selector(seed), np.random.default_rng(3)
    for _ in range(60):
        yield sent(chooser, softmax(rng.normal(0, 3, (8, CLASSES)).astype(np.float32))).tolist()


def test_the_choice_is_the_rngs_alone() -> None:
    assert [*choices(1)] == [*choices(1)]
    assert [*choices(1)] != [*choices(2)]


def test_a_narrow_stream_is_silent_and_saves_its_tokens() -> None:
    chooser = selector()
    chooser.follow(1.0, False, True)
    assert sum(counted(chooser, mixed(160))) == 0
    chooser.follow(1.0, False, False)
    assert counted(chooser, mixed(100), batch=100) == [64]


@pytest.mark.parametrize("changed", [False, True])
def test_a_changed_world_starts_the_bounds_anew(changed: bool) -> None:
    chooser = selector(random_share=0, e_max_warmup=8)
    chooser.follow(1.0, False, False)
    assert counted(chooser, mixed(8)) == [8]
    counted(chooser, mixed(400), SURE)  # the mean entropy falls, and the upper bound with it
    assert counted(chooser, mixed(8)) == [0]
    chooser.follow(1.0, changed, False)
    assert counted(chooser, mixed(8)) == ([8] if changed else [0])


def test_a_changed_world_gives_no_new_tokens() -> None:
    chooser = selector(rate=0)
    assert sum(counted(chooser, mixed(80))) == 32
    chooser.follow(1.0, True, False)
    assert sum(counted(chooser, mixed(80))) == 0


def test_an_empty_batch_sends_nothing_and_changes_nothing() -> None:
    chooser, other = selector(), selector()
    assert sent(chooser, np.zeros((0, CLASSES), np.float32)).tolist() == []
    assert counted(chooser, mixed(80)) == counted(other, mixed(80))


def test_selection_switched_off_sends_everything() -> None:
    chooser = PacedSelector(SelectionConfig(enabled=False), CLASSES, np.random.default_rng(0))
    assert counted(chooser, mixed(80), SURE) == [8] * 10
