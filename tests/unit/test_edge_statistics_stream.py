"""When a device measures its stream, and when the world counts as another: ``take_in`` and ``arrive``."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import nn

from cema.cloud.export import build_bundle
from cema.edge.measuring import MeasuringSession
from cema.edge.statistics import DOMAINS, Due, LocalStatistics, StatisticsSettings
from cema.types import Uint8Array
from cema.wire.messages import Preprocess

CLASSES = ["a", "b", "c", "d", "e"]
SIZE_PX = 16
Turn = Callable[[Uint8Array], Uint8Array]


def scenes(count: int, seed: int) -> Uint8Array:
    """Smooth pictures of middling light, each another."""
    coarse = torch.rand((count, 3, 4, 4), generator=torch.Generator().manual_seed(seed)) * 120 + 60
    fine = nn.functional.interpolate(coarse, (SIZE_PX, SIZE_PX), mode="bilinear", align_corners=True)
    return fine.permute(0, 2, 3, 1).to(torch.uint8).contiguous().numpy()


def static_scene(count: int) -> Uint8Array:
    """One picture again and again, as a camera on a wall sees it at night."""
    flicker = np.random.default_rng(0).integers(-2, 3, (count, SIZE_PX, SIZE_PX, 3))
    return (np.repeat(scenes(1, 1), count, axis=0) + flicker).astype(np.uint8)


def darkened(images: Uint8Array) -> Uint8Array:
    return images // np.uint8(4)


def noisy(images: Uint8Array) -> Uint8Array:
    noise = np.random.default_rng(0).normal(0, 40, images.shape)
    return np.clip(images + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def measuring() -> MeasuringSession:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=None), nn.ReLU(), nn.Conv2d(4, 4, 3),
        nn.BatchNorm2d(4, momentum=None), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, len(CLASSES)),
    )  # fmt: skip
    recipe = Preprocess(size=(SIZE_PX, SIZE_PX))
    return MeasuringSession(build_bundle(module, name="net", preprocess=recipe, classes=CLASSES), threads=1)


@pytest.fixture
def own(measuring: MeasuringSession) -> LocalStatistics:
    return statistics(measuring)


def statistics(measuring: MeasuringSession, seed: int = 0, **settings: int) -> LocalStatistics:
    return LocalStatistics(measuring, len(CLASSES), np.random.default_rng(seed), StatisticsSettings(**settings))


def refresh(own: LocalStatistics, measuring: MeasuringSession) -> None:
    own.refresh(measuring.bundle.source_parameters())


def shown(own: LocalStatistics, images: Uint8Array, batch: int = 8, classes: int = 5) -> Iterator[tuple[bool, Due]]:
    """Per batch: whether the world has changed, and what is due."""
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        changed = own.arrive(part)
        yield changed, own.take_in(part, [(start + index) % classes for index in range(len(part))])


def schedule(
    own: LocalStatistics, measuring: MeasuringSession, count: int, batch: int, classes: int = 5
) -> dict[int, Due]:
    """After how many pictures something was due, if it is done each time."""
    found: dict[int, Due] = {}
    for index, (changed, due) in enumerate(shown(own, scenes(count, 0), batch, classes)):
        assert not changed
        if due != "no":
            found[(index + 1) * batch] = due
            refresh(own, measuring)
    return found


def test_single_pictures_are_measured_ever_more_rarely_and_after_the_answer(
    own: LocalStatistics, measuring: MeasuringSession
) -> None:
    found = schedule(own, measuring, 400, batch=1)
    assert list(found) == [1, 2, 3, 4, 6, 10, 18, 34, 98, 226, 354]  # half as many again as are known, then periods
    assert set(found.values()) == {"later"}


def test_the_first_batches_are_answered_again_and_then_periods_begin(
    own: LocalStatistics, measuring: MeasuringSession
) -> None:
    found = schedule(own, measuring, 400, batch=8)
    assert found == {8: "now", 16: "now", 24: "now", 40: "now", 104: "later", 232: "later", 360: "later"}


def test_batches_below_the_least_are_never_answered_again(own: LocalStatistics, measuring: MeasuringSession) -> None:
    assert set(schedule(own, measuring, 140, batch=7).values()) == {"later"}


def test_a_batch_that_fills_half_the_memory_is_answered_again_once(
    own: LocalStatistics, measuring: MeasuringSession
) -> None:
    assert schedule(own, measuring, 512, batch=64) == {64: "now", 192: "later", 320: "later", 448: "later"}


def test_the_period_doubles_to_its_maximum_once_half_the_memory_is_full(measuring: MeasuringSession) -> None:
    own = statistics(measuring, memory=20, period=4, period_max=32)
    found = [*schedule(own, measuring, 140, batch=1)]
    assert found == [1, 2, 3, 4, 6, 10, 18, 34, 66, 98, 130]
    roomy = statistics(measuring, memory=200, period=4, period_max=32)
    assert [*schedule(roomy, measuring, 30, batch=1)] == [1, 2, 3, 4, 6, 10, 14, 18, 22, 26, 30]


def test_what_is_due_stays_due_until_it_is_done(own: LocalStatistics, measuring: MeasuringSession) -> None:
    dues = [due for _, due in shown(own, scenes(48, 0))]
    assert dues == ["now"] * 6
    assert [due for _, due in shown(own, scenes(64, 0), batch=4)] == ["no"] * 3 + ["later"] * 13
    refresh(own, measuring)
    assert [due for _, due in shown(own, scenes(16, 0))] == ["no", "no"]


@pytest.mark.parametrize(
    "classes",
    [
        5,
        3,
        1,
    ],
)
def test_in_the_long_run_no_batch_is_answered_again(
    classes: int, own: LocalStatistics, measuring: MeasuringSession
) -> None:
    found = schedule(own, measuring, 960, batch=16, classes=classes)
    late = {count: due for count, due in found.items() if count > 480}
    assert "now" not in late.values()
    assert len(late) <= 480 / 64


@pytest.mark.parametrize("turned", [darkened, noisy])
@pytest.mark.parametrize("batch", [4, 8, 16, 32])
def test_another_look_is_noticed_in_the_first_batch_and_once(batch: int, turned: Turn, own: LocalStatistics) -> None:
    assert not any(changed for changed, _ in shown(own, scenes(64, 1), batch))
    domain = own.domain
    changes = [changed for changed, _ in shown(own, turned(scenes(96, 2)), batch)]
    assert changes.count(True) == 1
    assert changes.index(True) * batch < 8  # within so many pictures
    assert own.domain != domain
    assert next(shown(own, scenes(batch, 3), batch))[0]  # and the way back


def test_what_is_left_of_the_old_look_is_no_second_change(own: LocalStatistics) -> None:
    assert not any(changed for changed, _ in shown(own, scenes(64, 1), batch=2))
    changes = [changed for changed, _ in shown(own, noisy(scenes(96, 2)), batch=2)]
    assert changes.count(True) == 1


@pytest.mark.parametrize("turned", [darkened, noisy])
@pytest.mark.parametrize(
    "known",
    [
        64,
        96,
    ],
)
def test_another_look_is_noticed_in_single_pictures(known: int, turned: Turn, own: LocalStatistics) -> None:
    assert not any(changed for changed, _ in shown(own, scenes(known, 1), batch=1))
    assert sum(changed for changed, _ in shown(own, turned(scenes(64, 2)), batch=1)) == 1


@pytest.mark.parametrize("turned", [darkened, noisy])
def test_after_a_change_nothing_of_the_old_world_is_left(turned: Turn, measuring: MeasuringSession) -> None:
    moved, fresh = statistics(measuring), statistics(measuring)
    for _ in shown(moved, scenes(64, 1)):
        refresh(moved, measuring)
    assert moved.shift is not None
    new = turned(scenes(24, 2))
    assert moved.arrive(new)
    assert moved.shift is None
    assert moved.trusted() == 1
    assert not fresh.arrive(new)
    for own in (moved, fresh):
        assert own.take_in(new, [0, 1, 2] * 8) == "now"
        refresh(own, measuring)
    assert moved.shift == fresh.shift
    for name, value in fresh.latest.items():
        np.testing.assert_array_equal(moved.latest[name], value)


def test_the_same_look_with_other_classes_is_no_change(own: LocalStatistics) -> None:
    for start in range(0, 320, 8):
        images = scenes(8, start)
        assert not own.arrive(images)
        own.take_in(images, [start // 64] * 8)  # one class after the other


@pytest.mark.parametrize("known", [1, 7])
def test_a_small_memory_is_no_world_to_leave(known: int, own: LocalStatistics) -> None:
    images = static_scene(8)
    assert [changed for changed, _ in shown(own, images[:known])] == [False]
    assert not own.arrive(darkened(images))


def test_a_small_window_is_no_look(measuring: MeasuringSession) -> None:
    own = statistics(measuring, least=8, window=4)
    assert not any(changed for changed, _ in shown(own, scenes(32, 1)))
    assert not any(changed for changed, _ in shown(own, darkened(scenes(32, 1))))


@pytest.mark.parametrize(
    "stream",
    [
        scenes,
        lambda count, _: static_scene(count),
    ],
    ids=["varied", "static"],
)
def test_one_odd_picture_is_no_other_world(stream: Callable[[int, int], Uint8Array], own: LocalStatistics) -> None:
    images = stream(80, 1)
    images[40] = darkened(images[40])
    assert not any(changed for changed, _ in shown(own, images, batch=1))


def test_domains_are_drawn_from_the_rng_and_never_zero(measuring: MeasuringSession) -> None:
    def domains(seed: int) -> list[int]:
        own = statistics(measuring, seed)
        found = [own.domain]
        for turn in range(6):
            images = scenes(32, turn)
            [*shown(own, darkened(images) if turn % 2 else images, batch=16)]
            found.append(own.domain)
        return found[1:]

    assert len(set(domains(1))) == 6
    assert domains(1) == domains(1)
    assert not set(domains(1)) & set(domains(2))
    assert all(0 < domain < DOMAINS for domain in domains(1))
