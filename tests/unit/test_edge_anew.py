"""A world that changes while its pictures look much the same: statistics of before count no longer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from cema.edge.measuring import MeasuringSession
from cema.edge.memory import pixel_style
from cema.edge.statistics import LocalStatistics, StatisticsSettings
from cema.edge.worlds import UNLIKE_MOST
from cema.types import Uint8Array
from unit.looks import bars, blinds, day, night, small_bundle, snowfall

Look = Callable[[int, int], Uint8Array]
CLASSES = ["a", "b", "c", "d", "e"]


@pytest.fixture(scope="module")
def measuring() -> MeasuringSession:
    return MeasuringSession(small_bundle(CLASSES), threads=1)


def statistics(measuring: MeasuringSession, anew: float = StatisticsSettings().anew) -> LocalStatistics:
    """UNLIKE_MOST: never."""
    return LocalStatistics(measuring, len(CLASSES), np.random.default_rng(0), StatisticsSettings(anew=anew))


def live(own: LocalStatistics, images: Uint8Array, batch: int = 16) -> int:
    """Show pictures, measuring whenever that is due; the domain at the end."""
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        own.arrive(part)
        if own.take_in(part, [(start + index) % len(CLASSES) for index in range(len(part))]) != "no":
            own.refresh(own._measuring.bundle.source_parameters())
    return own.domain


def distance(one: LocalStatistics, other: LocalStatistics) -> float:
    """Between the logarithms of the variances that are measured, on average."""
    pairs = zip(one._now.pool, other._now.pool, strict=True)
    return float(np.mean([np.abs(np.log(a) - np.log(b)).mean() for (_, a), (_, b) in pairs]))


@pytest.mark.parametrize("batch", [1, 8, 64])
def test_a_world_that_changes_but_looks_the_same_is_measured_anew(batch: int, measuring: MeasuringSession) -> None:
    own, late, fresh = statistics(measuring), statistics(measuring, UNLIKE_MOST), statistics(measuring)
    domains = [live(each, blinds(192, 1), batch) for each in (own, late)]
    domains += [live(each, bars(128, 3), batch) for each in (own, late)]
    live(fresh, bars(128, 3), batch)
    assert len(set(domains)) == 1, "weights that were learned here stay in use"
    assert distance(own, fresh) < distance(late, fresh) / 2


def test_measured_anew_only_what_came_since_is_remembered(measuring: MeasuringSession) -> None:
    own = statistics(measuring)
    live(own, blinds(192, 1))
    live(own, bars(128, 3))
    bars_NS = pixel_style(bars(128, 3))
    assert len(own.remembered()) == 5 * 19, "the quota of each class"
    for _, each in own.remembered():
        assert np.isclose(bars_NS, each.style).all(axis=1).any()


@pytest.mark.parametrize("look", [day, night, snowfall, bars])
def test_a_world_that_stays_keeps_what_was_measured(look: Look, measuring: MeasuringSession) -> None:
    """But for the first measurements, which are made while statistics are still far from it."""
    own = statistics(measuring)
    live(own, look(1600, 1))
    assert own._now.rounds >= 11


def test_other_weights_without_a_new_picture_leave_something_to_measure(measuring: MeasuringSession) -> None:
    own, source = statistics(measuring), measuring.bundle.source_parameters()
    live(own, day(448, 1))
    own.refresh(source)
    own.refresh({name: value * 3 if name.endswith("weight") else value for name, value in source.items()})
    assert own._now.rounds == 1, "such a jump is measured anew"
    assert len(own.remembered()) == StatisticsSettings().least
