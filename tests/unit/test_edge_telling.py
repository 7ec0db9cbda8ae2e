"""Looks that alternate: new ones get statistics of their own, those that the model was trained on do not."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cema.cloud.export import build_bundle
from cema.edge import mixed, telling
from cema.edge.measuring import MeasuringSession
from cema.edge.mixed import MixedStatistics
from cema.edge.session import EdgeSession
from cema.types import Uint8Array
from cema.wire.messages import Preprocess
from cema.wire.preprocess import preprocess
from unit.looks import SIZE_PX, day

CLASSES = ["red", "green", "blue"]
RECIPE = Preprocess(size=(SIZE_PX, SIZE_PX))
STREAM = 768
WIDTH = 16


def scenes(count: int, seed: int, *, dark: float) -> tuple[Uint8Array, np.ndarray]:
    """Pictures in which one colour alone has structure, its class; a share of them dark, in random order."""
    rng = np.random.default_rng(seed)
    class_N, dark_N = rng.integers(len(CLASSES), size=count), rng.random(count) < dark
    images = day(count, seed)
    images[dark_N] //= 2
    flat = images.mean(axis=(1, 2), keepdims=True).astype(np.uint8)
    shows = np.arange(len(CLASSES)) == class_N[:, None, None, None]
    return np.where(shows, images, flat), class_N


@functools.cache
def trained(dark: float) -> MeasuringSession:
    """A network that knows its classes in pictures of which this share is dark."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for channels in (3, WIDTH, WIDTH):
        layers += [nn.Conv2d(channels, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH), nn.ReLU()]
    module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, len(CLASSES)))
    images, class_N = scenes(256, 1, dark=dark)
    inputs, targets = torch.from_numpy(preprocess(list(images), RECIPE)), torch.from_numpy(class_N)
    optimiser = torch.optim.Adam(module.parameters(), 0.01)
    for _ in range(80):
        optimiser.zero_grad()
        nn.functional.cross_entropy(module(inputs), targets).backward()
        optimiser.step()
    return MeasuringSession(build_bundle(module, name="net", preprocess=RECIPE, classes=CLASSES), threads=1)


def right(measuring: MeasuringSession, images: Uint8Array, class_N: np.ndarray) -> float:
    bundle = measuring.bundle
    return float((EdgeSession(bundle, bundle.source_parameters(), 0).predict(images).label_B == class_N).mean())


class Asked:
    """A device's statistics, shown pictures; when it was asked whether looks shall have statistics of their own."""

    def __init__(self, measuring: MeasuringSession, monkeypatch: pytest.MonkeyPatch) -> None:
        self.own = MixedStatistics(measuring, len(CLASSES), np.random.default_rng(0))
        self.source = measuring.bundle.source_parameters()
        self.answers: list[tuple[int, bool]] = []
        self.shown = 0

        def told_more(*given: Any) -> float:
            gain = telling.told_more(*given)
            self.answers.append((self.shown, gain > self.own.settings.gain))
            return gain

        monkeypatch.setattr(mixed, "told_more", told_more)

    def show(self, images: Uint8Array, class_N: np.ndarray, batch: int) -> None:
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            self.own.arrive(part)
            self.shown += len(part)
            if self.own.take_in(part, class_N[start : start + batch].tolist()) != "no":
                self.own.refresh(self.source, None)


@pytest.mark.parametrize(("trained_on", "several"), [(0.5, False), (0.0, True)], ids=["known looks", "new looks"])
@pytest.mark.parametrize("batch", [8, 32])
def test_looks_have_statistics_of_their_own_only_if_they_are_new_to_the_model(
    trained_on: float, several: bool, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked(trained(trained_on), monkeypatch)
    images, class_N = scenes(STREAM, 2, dark=0.5)
    assert (right(trained(trained_on), images, class_N) > 0.95) is not several, "what was trained on is known"
    asked.show(images, class_N, batch)
    assert {answer for _, answer in asked.answers} == {several}
    assert (asked.own.looks > 1) is several


def test_looks_that_were_refused_are_asked_about_more_and_more_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(trained(0.5), monkeypatch)
    asked.show(*scenes(4 * STREAM, 3, dark=0.5), batch=32)
    waits = np.diff([at for at, _ in asked.answers])
    assert len(waits) >= 2
    assert (waits[1:] >= 2 * waits[:-1]).all()
