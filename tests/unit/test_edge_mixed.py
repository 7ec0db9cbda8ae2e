"""A stream in which looks alternate: statistics of each, beside the one-look statistics that are the oracle."""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from cema.cloud.export import build_bundle
from cema.edge.measuring import MeasuringSession
from cema.edge.memory import pixel_style
from cema.edge.mixed import MixedStatistics
from cema.edge.mixture import Mixture, MixtureSettings, look_of
from cema.edge.routing import RoutedSession, Session, following_session
from cema.edge.session import EdgeSession
from cema.edge.statistics import LocalStatistics, StatisticsSettings
from cema.types import NormParameters, Uint8Array
from cema.wire.messages import Preprocess
from cema.wire.preprocess import preprocess
from unit.looks import SIZE_PX, day, night, snowfall

CLASSES = ["a", "b", "c", "d", "e"]
KNOWN = 384
"""Pictures after which looks that alternate are known well."""


def in_turns(count: int, seed: int, block: int = 1) -> tuple[Uint8Array, np.ndarray]:
    """Day, night and snowfall in random order, in stretches of so many; which is which."""
    kind_N = np.random.default_rng(seed).integers(3, size=count // block + 1).repeat(block)[:count]
    worlds = np.stack([day(count, seed), night(count, seed), snowfall(count, seed)])
    return worlds[kind_N, np.arange(count)], kind_N


@pytest.fixture(scope="module")
def measuring() -> MeasuringSession:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for channels in (3, 8, 8):
        layers += [nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8, momentum=None), nn.ReLU()]
    head = nn.Linear(8, len(CLASSES))
    module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    recipe = Preprocess(size=(SIZE_PX, SIZE_PX))
    with torch.no_grad():
        module.train()(torch.from_numpy(preprocess(list(day(256, 9)), recipe)))  # day is what it knows
        head.weight.mul_(30)  # answers that say something: by those of a model that knows nothing no look is new
    return MeasuringSession(build_bundle(module, name="net", preprocess=recipe, classes=CLASSES), threads=1)


def statistics(measuring: MeasuringSession, **settings: float) -> MixedStatistics:
    numbers = MixtureSettings(**settings)  # type: ignore[arg-type]
    return MixedStatistics(measuring, len(CLASSES), np.random.default_rng(0), mixture=numbers)


def batches(images: Uint8Array, size: int = 32) -> Iterable[Uint8Array]:
    return (images[start : start + size] for start in range(0, len(images), size))


def live(own: MixedStatistics, images: Uint8Array, batch: int = 32) -> list[int]:
    """Show pictures, measuring whenever that is due; how many looks there were after each batch."""
    source, found = own._measuring.bundle.source_parameters(), []
    for part in batches(images, batch):
        own.arrive(part)
        if own.take_in(part, [index % len(CLASSES) for index in range(len(part))]) != "no":
            own.refresh(source, None)
        found.append(1 if own.mixture is None else len(own.mixture))
    return found


def nearest(own: MixedStatistics, images: Uint8Array) -> np.ndarray:
    assert own.mixture is not None
    return own.mixture.nearest(look_of(pixel_style(images)))


@pytest.mark.parametrize("world", [day, night, snowfall])
@pytest.mark.parametrize("batch", [1, 8, 32])
def test_one_look_is_followed_as_if_there_were_no_mixtures(world, batch: int, measuring: MeasuringSession) -> None:  # type: ignore[no-untyped-def]
    own, plain = statistics(measuring), LocalStatistics(measuring, len(CLASSES), np.random.default_rng(0))
    source = measuring.bundle.source_parameters()
    for part in batches(np.concatenate([world(300, 0), day(300, 1)]), batch):
        labels = [index % len(CLASSES) for index in range(len(part))]
        assert own.arrive(part) == plain.arrive(part)
        assert own.asks(len(part)) == plain.asks(len(part))
        due = plain.take_in(part, labels)
        assert own.take_in(part, labels) == due
        if due != "no":
            own.refresh(source, None)
            plain.refresh(plain.in_use(source, None))
        assert (own.domain, own.trusted(), own.settled) == (plain.domain, plain.trusted(), plain.settled)
        mixture, ((revision, values),) = own.in_use(source, None)
        assert mixture is None
        assert revision == own.revision
        for name, value in plain.in_use(source, None).items():
            np.testing.assert_array_equal(values[name], value)


@pytest.mark.parametrize("batch", [1, 8, 64])
def test_looks_that_alternate_are_found_and_told_apart(batch: int, measuring: MeasuringSession) -> None:
    own = statistics(measuring)
    looks = live(own, in_turns(KNOWN, 0)[0], batch)
    assert looks[0] == 1
    assert looks[-1] >= 3
    images, kind_N = in_turns(200, 1)
    part_N = nearest(own, images)
    right = sum(np.bincount(kind_N[part_N == part]).max() for part in np.unique(part_N))
    assert right > 0.95 * len(images)


def test_each_look_has_the_statistics_of_its_own_pictures(measuring: MeasuringSession) -> None:
    """Of the same pictures, a device that never saw another look measures the same."""
    own, source = statistics(measuring), measuring.bundle.source_parameters()
    images, _ = in_turns(KNOWN, 0)
    for part in batches(images, 64):
        own.arrive(part)
        if own.take_in(part, [index % len(CLASSES) for index in range(len(part))]) != "no":
            own.refresh(source, None)
        if own.mixture is not None:
            break
    numbers = msgspec.structs.replace(StatisticsSettings(), change=math.inf)
    seen = [pair for pair in zip(own._now[1], own.in_use(source, None)[1], strict=True) if pair[0].remembered()]
    assert len(seen) >= 3
    for component, (_, values) in seen:
        known = component.remembered()
        assert len({int(each) for each in nearest(own, np.stack([each.picture for _, each in known]))}) == 1
        alone = LocalStatistics(measuring, len(CLASSES), np.random.default_rng(0), numbers)
        pictures = np.stack([each.picture for _, each in known])
        alone.arrive(pictures)
        alone.take_in(pictures, [label for label, _ in known])
        alone.refresh(source)
        for name, value in alone.in_use(source, None).items():
            np.testing.assert_allclose(values[name], value, rtol=1e-5, atol=1e-6)


def test_while_looks_alternate_there_is_no_world_to_send_samples_of(measuring: MeasuringSession) -> None:
    own = statistics(measuring)
    live(own, day(KNOWN, 0))
    before = own.domain
    assert before > 0
    live(own, in_turns(KNOWN, 1)[0])
    assert own.domain == 0
    live(own, snowfall(KNOWN, 2))
    assert own.domain not in (0, before)


@pytest.mark.parametrize("world", [day, night, snowfall])
def test_when_looks_alternate_no_more_there_is_one_again(world, measuring: MeasuringSession) -> None:  # type: ignore[no-untyped-def]
    own = statistics(measuring)
    assert live(own, in_turns(KNOWN, 0)[0])[-1] >= 3
    assert live(own, world(KNOWN, 1))[-1] == 1
    known = np.stack([each.picture for _, each in own._one.remembered()])
    fresh = look_of(pixel_style(world(200, 2)))
    assert np.abs(look_of(pixel_style(known)).mean(axis=0) - fresh.mean(axis=0)).max() < 0.2, "of this look alone"


def test_another_look_among_those_that_alternate_is_found(measuring: MeasuringSession) -> None:
    own = statistics(measuring)
    two = np.stack([day(KNOWN, 0), night(KNOWN, 0)], axis=1).reshape(-1, SIZE_PX, SIZE_PX, 3)
    live(own, two)
    pictures = snowfall(100, 5)
    before = own.mixture
    assert before is not None
    far = before.distances(look_of(pixel_style(pictures))).min(axis=1)
    live(own, in_turns(KNOWN, 1)[0])
    assert own.mixture is not None
    assert np.median(own.mixture.distances(look_of(pixel_style(pictures))).min(axis=1)) < 8 < np.median(far)


def test_a_look_of_which_no_picture_is_remembered_goes_on_with_statistics_of_the_one_most_like_it(
    measuring: MeasuringSession,
) -> None:
    own = statistics(measuring)
    live(own, np.stack([day(KNOWN, 0), night(KNOWN, 0)], axis=1).reshape(-1, SIZE_PX, SIZE_PX, 3))
    before, parts = own._now
    assert before is not None
    lower, higher = before.mean_KL[0] - 9, before.mean_KL[1] + 9  # where nothing is remembered
    mixture = Mixture(before.share_K, np.array([higher, lower]), before.covariance_LL)
    own._change_to(mixture, measuring.bundle.source_parameters(), None)
    name = measuring.layers[0].mean
    for now, then in zip(own._now[1], reversed(parts), strict=True):
        assert not now.remembered()
        np.testing.assert_array_equal(now.latest[name], then.latest[name])


def test_looks_in_long_stretches_are_worlds_not_a_mixture(measuring: MeasuringSession) -> None:
    own = statistics(measuring)
    assert set(live(own, in_turns(8 * 96, 0, block=96)[0], batch=16)) == {1}


def test_all_looks_together_have_as_much_memory_as_worlds_that_were_left(measuring: MeasuringSession) -> None:
    numbers = StatisticsSettings(aside_bytes=3 * 40 * day(1, 0).nbytes)
    own = MixedStatistics(measuring, len(CLASSES), np.random.default_rng(0), numbers)
    live(own, in_turns(2 * KNOWN, 0)[0])
    assert {component.settings.memory for component in own._now[1]} == {40}
    small = msgspec.structs.replace(numbers, aside_bytes=1)
    own = MixedStatistics(measuring, len(CLASSES), np.random.default_rng(0), small)
    live(own, in_turns(2 * KNOWN, 0)[0])
    assert {component.settings.memory for component in own._now[1]} == {small.measured}, "one measurement needs so many"


def test_after_one_change_looks_are_of_the_new_world_alone_after_many_of_all(measuring: MeasuringSession) -> None:
    """A memory that is balanced over predicted classes may hold one look alone, and every other is another world."""
    own = statistics(measuring)
    live(own, day(200, 0), 8)
    live(own, night(64, 1), 8)
    assert len(own._looks) == 64
    for turn in range(6):
        live(own, (day, night)[turn % 2](24, turn), 8)
    assert len(own._looks) > 4 * 24


def test_looks_that_come_in_stretches_from_now_on_are_worlds_again(measuring: MeasuringSession) -> None:
    own = statistics(measuring)
    assert live(own, in_turns(KNOWN, 0)[0])[-1] >= 3
    stretches = [(day, night)[turn % 2](128, turn) for turn in range(6)]
    assert live(own, np.concatenate(stretches))[-1] == 1


def test_black_pictures_now_and_then_leave_one_look(measuring: MeasuringSession) -> None:
    own, images = statistics(measuring), day(1024, 0)
    images[::33] = 0
    assert set(live(own, images)) == {1}
    assert own.domain > 0


def test_mixtures_can_be_switched_off(measuring: MeasuringSession) -> None:
    assert set(live(statistics(measuring, most=1), in_turns(KNOWN, 0)[0])) == {1}


def test_weights_of_a_world_are_not_used_while_looks_alternate(measuring: MeasuringSession) -> None:
    own, source = statistics(measuring), measuring.bundle.source_parameters()
    live(own, day(KNOWN, 0))
    weights: NormParameters = {name: value + 1 for name, value in source.items()}
    domain = own.domain
    live(own, in_turns(KNOWN, 1)[0])
    for given, expected in ((domain, source), (None, weights)):
        for _, values in own.in_use(weights, given)[1]:
            name = next(name for name in values if name.endswith("bias"))
            np.testing.assert_array_equal(values[name], expected[name])


class Builds:
    """Sessions of one version, counted."""

    def __init__(self, measuring: MeasuringSession, version: int) -> None:
        self.bundle, self.version, self.count = measuring.bundle, version, 0

    def __call__(self, values: NormParameters, revision: int = 0) -> EdgeSession:
        self.count += 1
        return EdgeSession(self.bundle, values, self.version, revision=revision, threads=1)


def followed(own: MixedStatistics, builds: Builds, before: Session | None = None) -> Session:
    source = own._measuring.bundle.source_parameters()
    return following_session(own, source, None, builds.version, builds, before)


def test_each_picture_is_answered_by_the_session_of_its_look(measuring: MeasuringSession) -> None:
    own = statistics(measuring)
    live(own, in_turns(KNOWN, 0)[0])
    session = followed(own, Builds(measuring, 3))
    assert isinstance(session, RoutedSession)
    assert (session.version, session.revision) == (3, own.revision)
    assert session.fingerprint == measuring.bundle.manifest.fingerprint
    images, _ = in_turns(50, 2)
    answers, logits_BK = session.predict(images), session.logits(images)
    for index, part in enumerate(nearest(own, images)):
        alone = session.sessions[part].predict(images[index : index + 1])
        np.testing.assert_allclose(answers.probabilities_BK[index], alone.probabilities_BK[0], rtol=1e-4, atol=1e-6)
        assert answers.label_B[index] == alone.label_B[0]
        assert answers.entropy_B[index] == pytest.approx(float(alone.entropy_B[0]), abs=1e-4)
        assert answers.confidence_B[index] == pytest.approx(float(alone.confidence_B[0]), abs=1e-4)
        np.testing.assert_allclose(
            logits_BK[index], session.sessions[part].logits(images[index : index + 1])[0], rtol=1e-3, atol=1e-4
        )


def test_a_session_is_built_again_only_where_something_changed(measuring: MeasuringSession) -> None:
    own, builds = statistics(measuring), Builds(measuring, 1)
    live(own, in_turns(KNOWN, 0)[0])
    first = followed(own, builds)
    assert isinstance(first, RoutedSession)
    assert builds.count == len(first.sessions)
    assert followed(own, builds, first).revision == first.revision
    assert builds.count == len(first.sessions)
    own._measure(own._now[1][1], measuring.bundle.source_parameters(), None)
    again = followed(own, builds, first)
    assert isinstance(again, RoutedSession)
    assert [one is other for one, other in zip(first.sessions, again.sessions, strict=True)].count(False) == 1
    other = Builds(measuring, 2)
    assert followed(own, other, again).version == 2
    assert other.count == len(again.sessions)
