"""A device recognises a world that it has left, and has its statistics back at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from cema.edge.measuring import MeasuringSession
from cema.edge.memory import ClassMemory, pixel_style
from cema.edge.statistics import LocalStatistics, StatisticsSettings
from cema.edge.worlds import UNLIKE_MOST, LeftWorlds, World, apart, unlike
from cema.types import NormParameters, Uint8Array
from unit.looks import bars, blinds, day, night, small_bundle, snowfall

CLASSES = ["a", "b", "c", "d", "e"]
KNOWN = 96
"""Pictures after which a world is known well."""


@pytest.fixture(scope="module")
def measuring() -> MeasuringSession:
    return MeasuringSession(small_bundle(CLASSES), threads=1)


def statistics(measuring: MeasuringSession, **settings: float) -> LocalStatistics:
    """Worlds are told apart by their looks: channels of so small a network are too few and too alike to be a sample.
    ``found_out`` goes by what is measured, too."""
    numbers = StatisticsSettings(**{"unlike": UNLIKE_MOST, "anew": UNLIKE_MOST, **settings})  # type: ignore[arg-type]
    return LocalStatistics(measuring, len(CLASSES), np.random.default_rng(0), numbers)


def found_out(measuring: MeasuringSession) -> LocalStatistics:
    return statistics(measuring, unlike=StatisticsSettings().unlike)


def changes(own: LocalStatistics, images: Uint8Array, batch: int = 16, classes: int = 5) -> Iterator[bool]:
    """Show pictures, measuring whenever that is due; yields whether a batch was of another world."""
    source = own._measuring.bundle.source_parameters()
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        yield own.arrive(part)
        if own.take_in(part, [(start + index) % classes for index in range(len(part))]) != "no":
            own.refresh(source)


def live(own: LocalStatistics, images: Uint8Array, batch: int = 16, classes: int = 5) -> int:
    """The domain at the end."""
    assert [*changes(own, images, batch, classes)]
    return own.domain


def same(one: NormParameters, other: NormParameters) -> bool:
    return all(np.array_equal(value, other[name]) for name, value in one.items())


def test_a_world_that_comes_back_has_its_domain_and_its_statistics_before_anything_is_measured(
    measuring: MeasuringSession,
) -> None:
    own = statistics(measuring)
    domain, known, shift = live(own, day(KNOWN, 1)), own.latest, own.shift
    assert live(own, night(KNOWN, 2)) != domain
    assert not same(own.latest, known)
    assert own.arrive(day(16, 3))
    assert (own.domain, own.shift) == (domain, shift)
    assert same(own.latest, known)


def test_it_is_measured_anew_with_its_first_pictures_which_are_answered_again(measuring: MeasuringSession) -> None:
    own = statistics(measuring)
    live(own, day(KNOWN, 1))
    live(own, night(KNOWN, 2))
    own.arrive(day(16, 3))
    assert own.take_in(day(16, 3), [0, 1] * 8) == "now"
    own.refresh(measuring.bundle.source_parameters())
    domain = live(own, day(64, 4))
    assert (own.domain, own.asks(16)) == (domain, "no"), "then as ever"


def test_a_new_world_is_not_taken_for_one_of_the_others(measuring: MeasuringSession) -> None:
    own = statistics(measuring)
    domains = {live(own, day(KNOWN, 1)), live(own, night(KNOWN, 2)), live(own, snowfall(KNOWN, 3))}
    assert len(domains) == 3


@pytest.mark.parametrize("batch", [1, 8, 64])
def test_a_world_that_only_looks_like_another_is_found_out(batch: int, measuring: MeasuringSession) -> None:
    own = found_out(measuring)
    lying = live(own, blinds(128, 1), batch)
    live(own, night(128, 2), batch)
    found = []
    for start in range(0, 128, batch):
        found.append(live(own, bars(128, 3)[start : start + batch], batch))
    assert (found[0] == lying) == (batch == 8), "single pictures are judged later, 64 are measured at once"
    assert lying in found or batch == 64
    assert found[-1] != lying
    assert found[-1] == found[48 // batch], "within so many pictures"
    assert apart(pixel_style(bars(128, 3)), own._now.memory.styles()) < 0.5


def test_a_world_that_is_found_out_has_its_own_pictures_and_statistics_alone(measuring: MeasuringSession) -> None:
    moved, fresh = found_out(measuring), found_out(measuring)
    live(moved, blinds(128, 1))
    live(moved, night(128, 2))
    for own in (moved, fresh):
        live(own, bars(64, 3), 64)
    assert moved.shift == fresh.shift
    for name, value in fresh.latest.items():
        np.testing.assert_array_equal(moved.latest[name], value)


def test_a_world_that_is_found_out_is_measured_by_the_sources_weights(measuring: MeasuringSession) -> None:
    """Those of the world that it was taken for are good there alone."""
    moved, fresh = found_out(measuring), found_out(measuring)
    source = measuring.bundle.source_parameters()
    there = {name: value * 2 if name.endswith("weight") else value for name, value in source.items()}
    lying = live(moved, blinds(128, 1))
    live(moved, night(128, 2))
    for own, weights in ((moved, there), (fresh, source)):
        own.arrive(bars(64, 3))
        own.take_in(bars(64, 3), [index % 5 for index in range(64)])
        own.refresh(weights, lying)
    assert moved.domain != lying
    assert same(moved.latest, fresh.latest)


def test_a_world_that_was_left_before_it_was_measured_is_a_new_one_when_it_comes_back(
    measuring: MeasuringSession,
) -> None:
    """As when pictures of several worlds wait while one measurement takes long."""
    own = found_out(measuring)
    live(own, day(128, 1))
    own.arrive(night(64, 2))
    own.take_in(night(64, 2), [index % 5 for index in range(64)])
    gone = own.domain
    live(own, snowfall(128, 3))
    assert live(own, night(64, 4), 64) != gone


def test_each_of_several_worlds_is_recognised_again_and_again(measuring: MeasuringSession) -> None:
    own = statistics(measuring)
    worlds = day, night, snowfall
    first = [live(own, world(KNOWN, seed)) for seed, world in enumerate(worlds)]
    for turn in range(1, 4):
        assert [live(own, world(KNOWN, 10 * turn + seed)) for seed, world in enumerate(worlds)] == first


@pytest.mark.parametrize("batch", [1, 4, 8, 64])
def test_it_is_recognised_in_batches_of_any_size(batch: int, measuring: MeasuringSession) -> None:
    own = statistics(measuring)
    first = live(own, day(128, 1), batch), live(own, night(128, 2), batch)
    for start in range(3, 9, 2):
        assert (live(own, day(64, start), batch), live(own, night(64, start + 1), batch)) == first


def test_coming_back_in_single_pictures_is_one_change_and_one_recognition(measuring: MeasuringSession) -> None:
    own = statistics(measuring)
    live(own, day(KNOWN, 1), batch=1)
    live(own, night(KNOWN, 2), batch=1)
    assert sum(changes(own, day(KNOWN, 3), batch=1)) == 2


def test_a_world_of_which_little_was_seen_is_not_remembered(measuring: MeasuringSession) -> None:
    own = statistics(measuring)
    live(own, day(KNOWN, 1))
    glimpse = live(own, night(32, 2))
    live(own, day(KNOWN, 3))
    assert live(own, night(KNOWN, 4)) != glimpse


@pytest.mark.parametrize("settings", [{"again": 0.0}, {"change": 1e9}])
def test_recognising_worlds_can_be_switched_off(settings: dict[str, float], measuring: MeasuringSession) -> None:
    own = statistics(measuring, **settings)
    changed = [
        list(changes(own, world(KNOWN, seed))).count(True) for seed, world in enumerate((day, night, day, night))
    ]
    assert changed == ([0, 1, 1, 1] if "again" in settings else [0, 0, 0, 0])


def test_a_world_that_is_left_before_it_was_confirmed_stays_as_it_was(measuring: MeasuringSession) -> None:
    own = statistics(measuring)
    first = live(own, day(KNOWN, 1)), live(own, night(KNOWN, 2))
    before = {world.domain: (world, len(world.memory), world.rounds) for world in own._left._worlds}
    for turn in range(3, 9):
        assert live(own, (day if turn % 2 else night)(16, turn)) == first[0 if turn % 2 else 1]
        assert all(world.left is None for world in own._left._worlds), "nothing piles up"
    world, pictures, rounds = before[first[0]]
    assert any(each is world for each in own._left._worlds)
    assert (len(world.memory), world.rounds) == (pictures, rounds)


def test_of_more_worlds_than_are_remembered_the_oldest_is_forgotten(measuring: MeasuringSession) -> None:
    own = statistics(measuring, worlds=1)
    first = [live(own, world(KNOWN, seed)) for seed, world in enumerate((day, night, snowfall))]
    assert live(own, night(KNOWN, 4)) == first[1]
    assert live(own, day(KNOWN, 5)) != first[0]


def test_a_world_is_put_aside_with_as_many_pictures_as_one_measurement_takes(measuring: MeasuringSession) -> None:
    own = statistics(measuring, measured=24)
    live(own, day(KNOWN, 1))
    live(own, night(KNOWN, 2))
    size = day(1, 0).nbytes
    assert [world.memory.size_bytes for world in own._left._worlds] == [24 * size]
    assert own._now.memory.size_bytes > 90 * size


def left(number: int, pictures: Uint8Array) -> World:
    memory = ClassMemory(96, len(CLASSES))
    memory.add(list(pictures), pixel_style(pictures), [index % 5 for index in range(len(pictures))])
    return World(number, memory, {}, 64)


def test_what_is_put_aside_stays_within_its_bytes() -> None:
    size = left(0, day(50, 0)).memory.size_bytes
    worlds = LeftWorlds(8, int(1.5 * size))
    for number, world in enumerate((day, night, snowfall)):
        worlds.put(left(number, world(50, number)))
    assert worlds.like(pixel_style(day(16, 9)), 1.0) is None
    found = worlds.like(pixel_style(night(16, 9)), 1.0)
    assert found is not None
    assert found.domain == 1


def test_the_nearest_is_taken() -> None:
    worlds = LeftWorlds(8, 1 << 24)
    for number, light in enumerate((8, 5, 6)):
        worlds.put(left(number, day(64, number) // np.uint8(light)))
    found = worlds.like(pixel_style(day(64, 9) // np.uint8(5)), 5.0)
    assert found is not None
    assert found.domain == 1


def test_looks_are_apart_by_the_number_that_differs_most() -> None:
    rng = np.random.default_rng(0)
    known_NS = rng.normal(0, 1, (1000, 6)).astype(np.float32)
    looks_NS = rng.normal(0, 1, (1000, 6)).astype(np.float32)
    assert apart(looks_NS, known_NS) < 0.2
    looks_NS[:, 4] -= 3
    assert apart(looks_NS, known_NS) == pytest.approx(3, abs=0.2)


def test_variances_are_unlike_by_more_than_their_error() -> None:
    rng = np.random.default_rng(0)
    errors = [np.full(100, 0.04, np.float32)] * 4
    alike = [rng.normal(0, 0.2, 100).astype(np.float32) for _ in range(4)]
    assert unlike(alike, errors) == pytest.approx(1, abs=0.2)
    assert unlike([ratio_C + 1 for ratio_C in alike], errors) > 15
    assert unlike([np.full(100, np.float32(0.04))] * 4, [np.zeros(100, np.float32)] * 4) < 1, "exact, and 4 % off"


def test_layers_that_show_no_light_or_sensor_do_not_make_a_world_unlike() -> None:
    errors = [np.full(10, 0.01, np.float32)] * 6
    ratios = [np.full(10, 5 if layer in {0, 3, 4, 5} else 0, np.float32) for layer in range(6)]
    assert unlike(ratios, errors) == 0
    ratios[1] = np.array([9, *[0] * 9], np.float32)
    assert unlike(ratios, errors) == 1, "one channel of twenty, which counts for twenty at most"
