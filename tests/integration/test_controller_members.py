"""Which devices a group of ``cema`` has: those that went, and those that only listen. What another method keeps."""

from __future__ import annotations

import msgspec
import pytest

from cema.cloud.adapt import create_adapter
from cema.cloud.controller import Publishing
from cema.wire.bundle import Bundle
from integration.conditions import GROUP, Cloud, same, source
from integration.conditions import controller as of_group
from integration.tiny_net import TinyNet


@pytest.fixture
def cloud(tiny_bundle: Bundle) -> Cloud:
    return Cloud(tiny_bundle)


def test_a_device_that_took_the_place_of_a_revoked_one_begins_at_the_source(cloud: Cloud) -> None:
    controller, recorder = cloud.controller()
    for device in ("old", "new"):
        cloud.store.enrol(device, GROUP, device, cloud.now_ms)
    for _ in range(2):
        cloud.show("old", 7, 1, uploads=16)
        cloud.tick(controller)
    learned = cloud.newest().parameters
    assert not same(learned, source())
    cloud.store.revoke("old", cloud.now_ms)
    for world, tag in ((8, 2), (9, 3)):
        cloud.show("new", world, tag, uploads=8)  # too few to learn from by themselves
        cloud.tick(controller)
        assert cloud.manifest().domain == world
        assert same(cloud.newest().parameters, source())
        assert recorder.forgotten == [], "worlds of its own, not a share of the group's"
    again, _ = cloud.controller()
    assert again.worlds.now == {"new": 9}, "what the old one left in replay makes it no device again"


def test_a_device_that_went_to_another_group_counts_no_more(cloud: Cloud) -> None:
    cloud.store.put_group("other", cloud.bundle.manifest.fingerprint, "bundle", "on", cloud.now_ms)
    controller, recorder = cloud.controller()
    for device in ("old", "new"):
        cloud.store.enrol(device, GROUP, device, cloud.now_ms)
    cloud.show("old", 7, 1, uploads=16)
    cloud.tick(controller)
    cloud.store.revoke("old", cloud.now_ms)
    cloud.store.enrol("old", "other", "another token", cloud.now_ms + 1)
    cloud.now_ms += 2
    for world, tag in ((8, 2), (9, 3)):
        cloud.show("new", world, tag, uploads=16)
        cloud.tick(controller)
        assert cloud.manifest().domain == world
    assert recorder.forgotten == []
    again, _ = cloud.controller()
    assert again.worlds.now == {"new": 9}


def test_weights_that_several_devices_use_are_good_in_all_worlds_even_if_one_alone_sends(cloud: Cloud) -> None:
    controller, _ = cloud.controller()
    for device in ("sends", "listens"):
        cloud.store.enrol(device, GROUP, device, cloud.now_ms)
    cloud.show("sends", 7, 1, uploads=16)
    cloud.tick(controller)
    assert cloud.manifest().domain is msgspec.UNSET
    cloud.store.revoke("listens", cloud.now_ms)
    cloud.show("sends", 7, 1, uploads=16)
    cloud.tick(controller)
    assert cloud.manifest().domain == 7


def test_pictures_that_another_method_does_not_keep_are_deleted(cloud: Cloud) -> None:
    controller, _ = cloud.controller()
    cloud.show("a", 7, 1, uploads=16)
    cloud.tick(controller)
    assert len(cloud.store.replay(GROUP)) == 16
    other = of_group(cloud, create_adapter("bn", TinyNet(1), None, {}), Publishing("bn", None, 0))
    cloud.show("a", None, 1, uploads=0)
    cloud.tick(other)
    assert cloud.store.replay(GROUP) == []
