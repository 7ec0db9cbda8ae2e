"""The cloud's loop with ``cema`` on a real store: steps of one device in one world, forgetting, manifests, restarts."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import pytest

from cema.cloud.adapt.cema import Cema
from cema.cloud.store.samples import Condition
from cema.wire.bundle import Bundle
from integration.conditions import GROUP, Cloud, same, source


@pytest.fixture
def cloud(tiny_bundle: Bundle) -> Cloud:
    return Cloud(tiny_bundle)


def interleave(cloud: Cloud, rounds: int, each: int, conditions: Sequence[tuple[str, int, int]]) -> None:
    for _ in range(rounds):
        for device, domain, tag in conditions:
            cloud.show(device, domain, tag, each)


def test_a_steps_uploads_and_replay_are_of_one_device_in_one_world(cloud: Cloud) -> None:
    controller, recorder = cloud.controller()
    worlds = [("a", 7, 1), ("b", 7, 2), ("a", 8, 3), ("b", 9, 4)]
    for first, second in ((0, 1), (2, 1), (2, 3), (2, 3)):
        interleave(cloud, 4, 6, [worlds[first], worlds[second]])
        while len(cloud.pending) >= Cema.schedule.least_uploads:
            cloud.tick(controller)
            cloud.show("a", 7, 1, uploads=0)
    seen = {uploads[0]: replayed for uploads, replayed in recorder.steps}
    assert all(len({*uploads, *replayed}) == 1 for uploads, replayed in recorder.steps)
    assert sorted(seen) == [1, 2, 3, 4]
    assert all(seen.values()), "each had replay in the end"
    assert {len(uploads) for uploads, _ in recorder.steps} <= set(range(1, 17))
    assert max(len(replayed) for _, replayed in recorder.steps) == 48


def test_devices_that_upload_in_turns_each_get_steps_of_their_own(cloud: Cloud) -> None:
    controller, recorder = cloud.controller()
    interleave(cloud, 4, 2, [("a", 7, 1), ("b", 5, 2)])
    assert cloud.tick(controller) == 2
    assert recorder.steps == [([1] * 8, []), ([2] * 8, [])]
    cloud.show("a", 7, 1, uploads=9)
    assert cloud.tick(controller) == 1
    assert recorder.steps[2:] == [([1] * 9, [1] * 8)]


def test_a_trickle_from_each_of_many_devices_is_gathered_by_device(cloud: Cloud) -> None:
    controller, recorder = cloud.controller()
    cameras = [("a", 1, 1), ("b", 2, 2), ("c", 3, 3), ("d", 4, 4)]
    made = []
    for _ in range(3):
        interleave(cloud, 1, 3, cameras)
        made.append(cloud.tick(controller))
    assert made == [0, 0, 4]
    assert [uploads for uploads, _ in recorder.steps] == [[tag] * 9 for _, _, tag in cameras]


def test_a_device_with_little_to_say_holds_no_other_up(cloud: Cloud) -> None:
    controller, recorder = cloud.controller()
    cloud.show("quiet", 7, 1, uploads=2)
    cloud.show("busy", 5, 2, uploads=40)
    assert cloud.tick(controller) == 2
    assert [uploads for uploads, _ in recorder.steps] == [[2] * 16] * 2
    assert cloud.pending == [("quiet", 7)] * 2 + [("busy", 5)] * 8


def test_what_is_left_of_a_world_is_learned_before_the_next_one(cloud: Cloud) -> None:
    controller, recorder = cloud.controller()
    cloud.show("a", 7, 1, uploads=5)
    assert cloud.tick(controller) == 0
    cloud.show("a", 8, 2, uploads=8)
    assert cloud.tick(controller) == 2
    assert [uploads for uploads, _ in recorder.steps] == [[1] * 5, [2] * 8]
    assert cloud.pending == []


def test_a_trickle_is_gathered_before_it_is_learned_from(cloud: Cloud) -> None:
    controller, recorder = cloud.controller()
    waiting = []
    for _ in range(8):
        cloud.show("a", 7, 1, uploads=3)
        cloud.tick(controller)
        waiting.append(len(cloud.pending))
    assert waiting == [3, 6, 0, 3, 6, 0, 3, 6]
    assert [len(uploads) for uploads, _ in recorder.steps] == [9, 9]


@pytest.mark.parametrize("count", [8, 15])
def test_a_tick_with_a_few_uploads_makes_a_step_and_learns_once_there_is_replay(cloud: Cloud, count: int) -> None:
    controller, recorder = cloud.controller()
    cloud.show("a", 7, 1, uploads=count)
    assert cloud.tick(controller) == 1
    assert recorder.learned == [False], "statistics of so few say little"
    row = cloud.store.group(GROUP)
    assert (row.pending, row.latest_version, row.ticks_done) == (0, 0, 1)
    assert len(cloud.store.replay(GROUP)) == count
    cloud.show("a", 7, 1, uploads=8)
    assert cloud.tick(controller) == 1
    assert recorder.learned == [False, True]
    assert cloud.store.group(GROUP).latest_version == 1


def test_without_uploads_a_tick_is_counted_and_nothing_learned_however_full_replay_is(cloud: Cloud) -> None:
    controller, recorder = cloud.controller()
    cloud.show("a", 7, 1, uploads=400)
    assert cloud.tick(controller) == 25
    cloud.show("a", 7, 1, uploads=0)
    assert cloud.tick(controller) == 0
    assert len(recorder.steps) == 25
    row = cloud.store.group(GROUP)
    assert (row.ticks_done, row.latest_version) == (2, 25)


def test_the_only_device_in_another_world_makes_the_cloud_forget_everything(cloud: Cloud) -> None:
    controller, _ = cloud.controller()
    cloud.show("a", 7, 1, uploads=32)
    cloud.tick(controller)
    assert not same(cloud.newest().parameters, source())
    cloud.show("a", 8, 2, uploads=16)
    cloud.tick(controller)
    twin = Cloud(cloud.bundle)
    fresh, _ = twin.controller()
    twin.sent = 32
    twin.show("a", 8, 2, uploads=16)
    twin.tick(fresh)
    assert same(cloud.newest().parameters, twin.newest().parameters), "it learns as if the old world had never been"


def test_one_of_two_devices_in_another_world_makes_it_forget_half_and_a_third_one_a_third(cloud: Cloud) -> None:
    controller, recorder = cloud.controller()
    for device in ("a", "b"):
        cloud.show(device, 7, 1, uploads=16)
        cloud.tick(controller)
    cloud.show("a", 8, 2, uploads=16)
    cloud.tick(controller)
    assert recorder.forgotten == [0.5]
    cloud.show("c", 9, 3, uploads=16)
    cloud.show("b", 9, 3, uploads=16)
    cloud.tick(controller)
    assert recorder.forgotten == [0.5, 1 / 3], "a new device is no change"


def test_a_version_says_that_the_edge_owns_statistics_and_for_one_device_in_which_world(cloud: Cloud) -> None:
    controller, recorder = cloud.controller()
    cloud.show("a", 7, 1, uploads=16)
    cloud.tick(controller)
    assert (cloud.manifest().stats_owner, cloud.manifest().domain) == ("edge", 7)
    for name, value in source().items():
        if name.startswith("bn.running"):
            np.testing.assert_array_equal(cloud.newest().parameters[name], value)
    cloud.show("a", 8, 2, uploads=16)
    cloud.tick(controller)
    assert (cloud.manifest().version, cloud.manifest().domain) == (2, 8)
    cloud.show("b", 5, 3, uploads=16)
    cloud.tick(controller)
    assert (cloud.manifest().version, cloud.manifest().stats_owner) == (3, "edge")
    assert cloud.manifest().domain is msgspec.UNSET
    assert same(recorder.edge_parameters(), cloud.newest().parameters)  # type: ignore[operator]


def test_weights_of_a_device_that_watches_no_worlds_are_good_in_all(cloud: Cloud) -> None:
    controller, _ = cloud.controller()
    for _ in range(2):
        cloud.show("a", None, 1, uploads=16)
        cloud.tick(controller)
    assert cloud.manifest().version == 2
    assert cloud.manifest().domain is msgspec.UNSET


def test_a_visit_to_another_world_does_not_take_the_weights_away(cloud: Cloud) -> None:
    controller, _ = cloud.controller()
    for _ in range(2):
        cloud.show("a", 7, 1, uploads=16)
        cloud.tick(controller)
    cloud.show("a", 8, 2, uploads=5)
    cloud.show("a", 7, 1, uploads=3)
    cloud.tick(controller)
    assert cloud.manifest().domain == 7
    cloud.show("a", 7, 1, uploads=5)
    cloud.tick(controller)
    assert cloud.manifest().domain == 7
    assert cloud.pending == []


def test_a_visit_is_not_published_even_if_the_next_version_is_not_due_yet(tiny_bundle: Bundle) -> None:
    """At most one version in ten seconds: the visited world's would keep the present one's from going out."""
    cloud = Cloud(tiny_bundle, interval_ms=10_000)
    controller, _ = cloud.controller()
    for _ in range(2):
        cloud.show("a", 7, 1, uploads=16)
        cloud.tick(controller)
        cloud.now_ms += 10_000
    version = cloud.manifest().version
    cloud.show("a", 8, 2, uploads=16)
    cloud.show("a", 7, 1, uploads=16)
    assert cloud.tick(controller) == 2
    assert (cloud.manifest().version, cloud.manifest().domain) == (version + 1, 7)


def test_devices_that_do_not_watch_are_of_one_world(cloud: Cloud) -> None:
    controller, recorder = cloud.controller()
    for _ in range(2):
        cloud.show("a", None, 1, uploads=16)
        cloud.tick(controller)
    assert controller.replay.keys() == [Condition("a", 0)] * 32
    assert recorder.forgotten == []


def test_after_a_restart_replay_and_worlds_are_known_again(cloud: Cloud) -> None:
    controller, _ = cloud.controller()
    interleave(cloud, 2, 8, [("a", 7, 1), ("b", 5, 2)])
    while cloud.pending:
        cloud.tick(controller)
        cloud.show("a", 7, 1, uploads=0)
    again, recorder = cloud.controller()
    for condition in (Condition("a", 7), Condition("b", 5)):
        before, after = (each.replay.draw(99, np.random.default_rng(0), condition) for each in (controller, again))
        assert len(after) == 16
        assert np.array_equal(before, after), "the same pictures, and a draw finds them in the same order"
    cloud.show("b", 5, 2, uploads=8)
    cloud.tick(again)
    assert (recorder.forgotten, recorder.steps) == ([], [([2] * 8, [2] * 16)])
    cloud.show("b", 6, 3, uploads=16)
    cloud.tick(again)
    assert recorder.forgotten == [0.5]


def test_a_worker_that_died_between_steps_goes_on_to_the_same_bytes(cloud: Cloud) -> None:
    twin = Cloud(cloud.bundle)
    straight, _ = twin.controller()
    worlds = [("a", 1, 1), ("b", 2, 2), ("a", 1, 1), ("a", 3, 3), ("b", 2, 2), ("b", 4, 4), ("a", 3, 3)]
    for world in worlds:
        controller, _ = cloud.controller()
        for each, loop in ((cloud, controller), (twin, straight)):
            each.show(*world, uploads=16)
            each.tick(loop)
    assert cloud.newest().data == twin.newest().data
