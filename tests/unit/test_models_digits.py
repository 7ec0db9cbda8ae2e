"""The embedded digits: a fixed split, and committed weights that do what they promise on what they never saw."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from cema.cloud.models import digits, load_model
from cema.cloud.models.registry import DIGITS_PREPROCESS, WEIGHTS_FOLDER
from cema.wire.preprocess import normalise

FIRST_TRAIN = [2, 5, 8, 12, 13]


def test_the_split_is_disjoint_complete_and_always_the_same() -> None:
    train, stream = digits.split()
    assert len(stream) >= 700
    assert sorted([*train, *stream]) == list(range(1797))
    assert np.array_equal(digits.split().stream, stream)
    assert train[:5].tolist() == FIRST_TRAIN  # another order would show trained pictures to the demo


def test_images_are_rgb_of_32_px_and_labels_balanced() -> None:
    images, labels = digits.digit_images()
    assert images.dtype == np.uint8
    assert images.shape == (1797, 32, 32, 3)
    assert images.min() == 0
    assert images.max() == 255
    assert np.bincount(labels).min() > 150


@pytest.mark.parametrize(("name", "at_least"), [("digits-edge", 0.97), ("digits-foundation", 0.98)])
def test_held_out_accuracy_is_the_recorded_one(name: str, at_least: float) -> None:
    images, labels = digits.digit_images()
    rows = digits.split().stream
    with torch.no_grad():
        logits_BK = load_model(name).module(torch.from_numpy(normalise(images[rows], DIGITS_PREPROCESS)))
    accuracy = float((logits_BK.argmax(1).numpy() == labels[rows]).mean())
    assert accuracy >= at_least
    recorded = json.loads((WEIGHTS_FOLDER / "digits.json").read_text())
    assert accuracy == pytest.approx(recorded[name]["accuracy_held_out"], abs=2 / len(rows))


def test_committed_weights_stay_small() -> None:
    assert sum(file.stat().st_size for file in WEIGHTS_FOLDER.iterdir()) < 500_000


def test_noise_hurts_the_edge_network_more_than_the_foundation_network() -> None:
    images, labels = digits.digit_images()
    rows = digits.split().stream
    noise = np.random.default_rng(0).normal(0, 0.3 * 255, images[rows].shape)
    noisy = np.clip(images[rows] + noise, 0, 255).astype(np.uint8)
    x = torch.from_numpy(normalise(noisy, DIGITS_PREPROCESS))
    accuracy = {}
    for name in ("digits-edge", "digits-foundation"):
        with torch.no_grad():
            accuracy[name] = float((load_model(name).module(x).argmax(1).numpy() == labels[rows]).mean())
    assert accuracy["digits-edge"] < 0.9
    assert accuracy["digits-foundation"] > 0.97
