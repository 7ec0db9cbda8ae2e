"""The lock-step simulator on digits: the real edge, codec, store and controller, without network and clock."""

from __future__ import annotations

import numpy as np
import pytest

from cema.bench.corruptions import corrupted
from cema.bench.datasets import load_dataset
from cema.bench.simulate import Outcome, Pair, Plan, Simulator
from cema.cloud.export import build_bundle
from cema.cloud.models import load_model
from cema.config import SelectionConfig

IMAGES = 640
FILTERS = SelectionConfig(e_max_warmup_samples=64)


@pytest.fixture(scope="module")
def pair() -> Pair:
    edge, foundation = load_model("digits-edge"), load_model("digits-foundation")
    assert edge.preprocess is not None
    assert edge.classes is not None
    bundle = build_bundle(edge.module, name=edge.name, preprocess=edge.preprocess, classes=edge.classes)
    return Pair(bundle, edge.module, foundation.module)


def run(pair: Pair, **changes: object) -> Outcome:
    digits = load_dataset("digits", None, IMAGES)
    images = corrupted(digits.images, "contrast", 5, seed=0)
    return Simulator(pair, Plan(selection=FILTERS, threads=1, **changes)).run(images, digits.labels)  # type: ignore[arg-type]


def test_cema_paper_and_bn_recover_what_contrast_took_and_count_real_bytes(pair: Pair) -> None:
    source, bn, paper = (run(pair, method=method) for method in ("source", "bn", "cema-paper"))
    assert source.accuracy < 0.6
    assert source.bytes_down == 0
    for adapted in (bn, paper):
        assert adapted.accuracy_second_half > source.accuracy + 0.15
        assert 0 < adapted.uploads < IMAGES
        assert adapted.bytes_up > 300 * adapted.uploads
        assert adapted.bytes_down > 3000


def test_same_seed_gives_the_same_predictions(pair: Pair) -> None:
    first, second = run(pair, seed=3), run(pair, seed=3)
    np.testing.assert_array_equal(first.correct, second.correct)
    assert (first.uploads, first.bytes_up, first.bytes_down) == (second.uploads, second.bytes_up, second.bytes_down)


def test_late_updates_help_later(pair: Pair) -> None:
    prompt, late = run(pair), run(pair, delay=4)
    np.testing.assert_array_equal(late.correct[: 64 * 4], run(pair, method="source").correct[: 64 * 4])
    assert late.accuracy < prompt.accuracy


def test_first_batch_start_normalises_the_first_batch_by_itself(pair: Pair) -> None:
    started, source = run(pair, first_batch=True), run(pair)
    assert started.correct[:64].mean() > source.correct[:64].mean() + 0.2
