"""The vectorised filters against a loop in plain Python that follows the equations one sample at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cema.config import SelectionConfig
from cema.edge.selection import Selector, entropy, softmax
from cema.errors import ConfigError

CLASSES = 5
logits = hnp.arrays(np.float32, st.tuples(st.integers(1, 6), st.just(CLASSES)), elements=st.floats(-8, 8, width=32))
configs = st.builds(
    SelectionConfig,
    e_max=st.floats(0.1, 1), e_min=st.floats(0, 0.1), e_max_lambda=st.floats(0.25, 2),
    e_max_warmup_samples=st.integers(0, 12), dynamic=st.booleans(), d_margin=st.sampled_from([0.4, 0.9, 1.0]),
)  # fmt: skip


def plain_selection(config: SelectionConfig, batches: list[np.ndarray]) -> list[list[tuple[bool, float]]]:
    """Per sample: kept, and by how much the nearest decision was cleared (to leave out ties of rounding)."""
    largest = math.log(CLASSES)
    bound = config.e_max * largest
    everything: list[float] = []
    reference: float | None = None
    mean: list[float] | None = None
    result = []
    for batch in batches:
        entropies = [-sum(p * math.log(p) for p in map(float, row) if p > 0) for row in batch]
        everything += entropies
        average = sum(everything) / len(everything)
        if config.dynamic and len(everything) >= config.e_max_warmup_samples:
            reference = average if reference is None else reference
            ratio = average / reference if reference > 0 else 1.0
            bound = max(config.e_min * largest, min(largest, config.e_max * largest * config.e_max_lambda * ratio))
        kept, verdicts = [], []
        for row, value in zip(batch, entropies, strict=True):
            margins = [abs(value - bound), abs(value - config.e_min * largest)]
            keep = config.e_min * largest < value < bound
            if config.d_margin < 1 and mean is not None:
                dot = sum(float(a) * b for a, b in zip(row, mean, strict=True))
                cosine = dot / math.sqrt(sum(float(a) ** 2 for a in row)) / math.sqrt(sum(b * b for b in mean))
                margins.append(abs(abs(cosine) - config.d_margin))
                keep = keep and abs(cosine) < config.d_margin
            verdicts.append((keep, min(margins)))
            if keep:
                kept.append(row)
        if config.d_margin < 1 and kept:
            fresh = [sum(float(row[k]) for row in kept) / len(kept) for k in range(CLASSES)]
            mean = fresh if mean is None else [0.9 * m + 0.1 * f for m, f in zip(mean, fresh, strict=True)]
        result.append(verdicts)
    return result


@given(configs, st.lists(logits, min_size=1, max_size=6))
@settings(max_examples=200, deadline=None)
def test_the_masks_are_those_of_a_plain_loop(config: SelectionConfig, stream: list[np.ndarray]) -> None:
    batches = [softmax(batch) for batch in stream]
    selector = Selector(config, CLASSES)
    for batch, expected in zip(batches, plain_selection(config, batches), strict=True):
        mask = selector.select(batch, entropy(batch))
        if min(margin for _, margin in expected) < 1e-4:
            return  # float32 and float64 may differ on a tie, and all that follows with them
        assert mask.tolist() == [keep for keep, _ in expected]


@given(logits)
def test_softmax_and_entropy_stay_in_range(logits_BK: np.ndarray) -> None:
    probabilities_BK = softmax(logits_BK * np.float32(1000))
    assert probabilities_BK.dtype == np.float32
    np.testing.assert_allclose(probabilities_BK.sum(axis=1), 1, rtol=1e-5)
    entropy_B = entropy(probabilities_BK)
    assert (entropy_B >= 0).all()
    assert (entropy_B <= math.log(CLASSES) + 1e-5).all()


def test_uniform_output_has_entropy_ln_c_and_certain_output_zero() -> None:
    values = entropy(np.array([[0.25] * 4, [1, 0, 0, 0]], np.float32))
    np.testing.assert_allclose(values, [math.log(4), 0], atol=1e-6)


def test_the_bound_moves_only_after_the_warm_up_and_not_compounded() -> None:
    selector = Selector(SelectionConfig(e_max=0.4, e_max_lambda=0.5, e_max_warmup_samples=4), 10)
    start = 0.4 * math.log(10)
    flat = np.full((2, 10), 0.1, np.float32)
    bounds = []
    for value in (1.0, 1.0, 0.5, 0.5):
        selector.select(flat, np.full(2, value, np.float32))
        bounds.append(selector.e_max)
    np.testing.assert_allclose(bounds, [start, start * 0.5, start * 0.5 * (5 / 6), start * 0.5 * 0.75], rtol=1e-6)


def test_selection_switched_off_keeps_everything() -> None:
    probabilities_BK = softmax(np.zeros((3, 10), np.float32))
    assert Selector(SelectionConfig(enabled=False), 10).select(probabilities_BK, entropy(probabilities_BK)).all()


def test_one_class_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 2 classes"):
        Selector(SelectionConfig(), 1)
