"""What the cloud forgets when a device comes into another world stays forgotten, and is there again when the device
comes back: over short steps, restarts, other groups on the same models, and steps that are taken back."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import pytest
import torch

from cema.cloud.adapt import create_adapter
from cema.cloud.adapt.cema import CemaLite
from cema.cloud.controller import Controller, Publishing
from cema.cloud.sharing import SharedAdapter
from cema.cloud.store.base import NewUpdate
from cema.cloud.store.blobs import MemoryBlobs
from cema.cloud.store.memory import MemoryStore
from cema.cloud.store.samples import Condition
from cema.cloud.worlds import WORLDS
from cema.types import NormParameters
from cema.wire.bundle import Bundle
from cema.wire.image import encode_image
from cema.wire.messages import Sample, SampleBatch
from cema.wire.update import encode_update, open_update
from integration.tiny_net import TinyNet

WORKER = "w"


class Collapsing(CemaLite):
    """A real adapter that a test can let collapse after a step."""

    after_step: Callable[[], None] = staticmethod(lambda: None)

    def step(self, uploads_BCHW: torch.Tensor, replayed_BCHW: torch.Tensor | None) -> dict[str, float] | None:
        metrics = super().step(uploads_BCHW, replayed_BCHW)
        self.after_step()
        return metrics


class Cloud:
    """Groups of one device each, which share a pair of models."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle, self.store, self.blobs = bundle, MemoryStore(), MemoryBlobs()
        self.now_ms, self.sent = 1_000_000, 0
        self.adapter = Collapsing(TinyNet(1), None, {"precision": "float32"})
        self.shared = SharedAdapter(self.adapter)
        self.controllers: dict[str, Controller] = {}

    def start(self, group: str = "g") -> None:
        """A controller as a worker has it that has just loaded the group."""
        row = self.store.put_group(group, self.bundle.manifest.fingerprint, "bundle", "on", self.now_ms)
        self.controllers[group] = Controller(
            row, self.bundle, self.shared, self.store, self.blobs, Publishing("cema-lite", None, 0), worker=WORKER,
            seed=5, clock_ms=lambda: self.now_ms,
        )  # fmt: skip

    def restart(self) -> None:
        self.shared = SharedAdapter(create_adapter("cema-lite", TinyNet(1), None, {"precision": "float32"}))
        self.start()

    def tick(self, domain: int, uploads: int, group: str = "g", device: str = "d") -> None:
        """A device of the group uploads, and the cloud does what is due."""
        numbers = range(self.sent, self.sent + uploads)
        self.sent += uploads
        samples = [
            Sample(
                sample_id=n.to_bytes(16, "big"), seq=n, codec="png", image=picture(n), label=0, probability=0.5,
                entropy=0.5, update_version=0, captured_at_ms=0, domain=domain,
            )
            for n in numbers
        ]  # fmt: skip
        boot_id, fingerprint = self.now_ms.to_bytes(16, "big"), self.bundle.manifest.fingerprint
        batch = SampleBatch(
            device_id=device, boot_id=boot_id, fingerprint=fingerprint, samples_seen=64, samples=samples
        )
        self.store.add_samples(group, batch, self.now_ms)
        row = self.store.claim(WORKER, self.now_ms, lease_ms=1000, tick_images=64, publish_interval_ms=0)
        assert row is not None
        assert row.name == group
        assert self.controllers[group].tick(row) == 1
        self.store.release(group, WORKER)
        self.now_ms += 1

    def published(self) -> NormParameters:
        return open_update(self.blobs.get(self.store.updates("g", 1)[0].blob), self.bundle.manifest).parameters


def picture(number: int) -> bytes:
    return encode_image(np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8), "png")


def source() -> NormParameters:
    return create_adapter("cema-lite", TinyNet(1), None, {}).edge_parameters()


@pytest.fixture
def cloud(tiny_bundle: Bundle) -> Cloud:
    made = Cloud(tiny_bundle)
    made.start()
    return made


@pytest.fixture
def straight(tiny_bundle: Bundle) -> NormParameters:
    """What is published by one worker that goes through two worlds; the second begins with a step that is not made."""
    made = Cloud(tiny_bundle)
    made.start()
    for domain, uploads in ((7, 16), (8, 8), (8, 16)):
        made.tick(domain, uploads)
    assert made.store.group("g").latest_version == 3
    return made.published()


def assert_same(found: NormParameters, expected: NormParameters) -> None:
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_what_is_forgotten_at_a_step_that_is_not_made_stays_forgotten(cloud: Cloud, straight: NormParameters) -> None:
    cloud.tick(7, 16)
    old = cloud.published()
    cloud.tick(8, 8)
    assert_same(cloud.adapter.edge_parameters(), source())
    cloud.tick(8, 16)
    assert_same(cloud.published(), straight)
    assert not np.array_equal(cloud.published()["bn.weight"], old["bn.weight"])


def test_it_stays_forgotten_when_the_worker_restarts(cloud: Cloud, straight: NormParameters) -> None:
    cloud.tick(7, 16)
    cloud.tick(8, 8)
    cloud.restart()
    cloud.tick(8, 16)
    assert_same(cloud.published(), straight)


def test_it_stays_forgotten_when_another_group_has_the_models_in_between(
    cloud: Cloud, straight: NormParameters
) -> None:
    cloud.tick(7, 16)
    cloud.tick(8, 8)
    cloud.start("other")
    sent, cloud.sent = cloud.sent, 1000
    cloud.tick(5, 16, "other")
    cloud.sent = sent
    cloud.tick(8, 16)
    assert_same(cloud.published(), straight)


def test_it_stays_forgotten_when_the_first_step_in_the_new_world_is_taken_back(cloud: Cloud) -> None:
    cloud.tick(7, 16)

    def collapse() -> None:
        state = cloud.adapter.state()
        cloud.adapter.load_state({**state, "edge.bn.weight": state["edge.bn.weight"] * np.float32(np.nan)})

    cloud.adapter.after_step = collapse
    cloud.tick(8, 16)
    cloud.adapter.after_step = lambda: None
    assert cloud.store.group("g").latest_version == 2
    assert_same(cloud.adapter.edge_parameters(), source())


def learned_in_seven(cloud: Cloud) -> NormParameters:
    """The device has learned in the world 7, then in 8."""
    cloud.tick(7, 16)
    cloud.tick(7, 16)
    left = cloud.published()
    cloud.tick(8, 16)
    assert not same(cloud.published(), left)
    return left


def same(found: NormParameters, expected: NormParameters) -> bool:
    return all(np.array_equal(value, expected[name]) for name, value in found.items())


def test_a_world_that_comes_back_goes_on_where_it_was_left(cloud: Cloud) -> None:
    left = learned_in_seven(cloud)
    cloud.tick(7, 8)
    newest = open_update(cloud.blobs.get(cloud.store.updates("g", 1)[0].blob), cloud.bundle.manifest)
    assert newest.manifest.domain == 7
    moved = {name: np.abs(value - left[name]).max() for name, value in newest.parameters.items()}
    away = {name: np.abs(value - source()[name]).max() for name, value in newest.parameters.items()}
    assert 0 < moved["bn.weight"] < away["bn.weight"]


@pytest.mark.parametrize("between", ["nothing", "restart", "another group"])
def test_what_was_learned_there_is_the_very_same(between: str, cloud: Cloud) -> None:
    left = learned_in_seven(cloud)
    if between == "restart":
        cloud.restart()
    if between == "another group":
        cloud.start("other")
        sent, cloud.sent = cloud.sent, 1000
        cloud.tick(5, 16, "other", "e")
        cloud.sent = sent
    cloud.controllers["g"].worlds.enter(Condition("d", 7), cloud.controllers["g"].adapter)
    assert_same(cloud.controllers["g"].adapter.edge_parameters(), left)


def test_after_a_restart_it_knows_in_which_world_it_learned_last(cloud: Cloud) -> None:
    learned_in_seven(cloud)
    cloud.tick(7, 16)
    left = cloud.published()
    cloud.store.enrol("d", "g", "0" * 64, cloud.now_ms)
    cloud.store.delete_samples("d")
    assert cloud.store.replay("g") == []
    cloud.restart()
    worlds, adapter = cloud.controllers["g"].worlds, cloud.controllers["g"].adapter
    for domain in (8, 7):
        assert worlds.enter(Condition("d", domain), adapter)
    assert_same(adapter.edge_parameters(), left)


def test_several_worlds_are_kept_apart(cloud: Cloud) -> None:
    found = {}
    for domain in (7, 8, 9):
        cloud.tick(domain, 16)
        found[domain] = cloud.published()
    worlds = cloud.controllers["g"].worlds
    for domain in (8, 7, 9, 7):
        worlds.enter(Condition("d", domain), cloud.controllers["g"].adapter)
        assert_same(cloud.controllers["g"].adapter.edge_parameters(), found[domain])


def test_of_many_worlds_the_oldest_is_forgotten(cloud: Cloud) -> None:
    cloud.tick(7, 16)
    for domain in range(100, 100 + WORLDS):
        cloud.tick(domain, 16)
    adapter, worlds = cloud.controllers["g"].adapter, cloud.controllers["g"].worlds
    assert [*worlds.learned] == [7, *range(100, 99 + WORLDS)]
    cloud.tick(200, 16)
    assert [*worlds.learned] == [*range(100, 100 + WORLDS)]
    worlds.enter(Condition("d", 7), adapter)
    assert_same(adapter.edge_parameters(), source())


def test_a_glimpse_takes_no_world_its_place(cloud: Cloud) -> None:
    cloud.tick(7, 16)
    for domain in range(100, 101 + WORLDS):
        cloud.tick(domain, 8)  # no step: too few for one
    cloud.tick(8, 16)
    assert [*cloud.controllers["g"].worlds.learned] == [7]


def test_devices_that_share_their_weights_have_no_worlds_of_their_own(cloud: Cloud) -> None:
    learned_in_seven(cloud)
    cloud.tick(5, 16, device="e")
    cloud.tick(7, 8)
    assert cloud.controllers["g"].worlds.learned == {}


def test_what_was_rolled_back_does_not_come_back_with_its_world(cloud: Cloud) -> None:
    learned_in_seven(cloud)
    row = cloud.store.group("g")
    newest = open_update(cloud.blobs.get(cloud.store.updates("g", 1)[0].blob), cloud.bundle.manifest).manifest
    manifest = msgspec.structs.replace(newest, version=row.latest_version + 1, domain=msgspec.UNSET)
    data = encode_update(manifest, source())
    restored = NewUpdate(manifest.version, cloud.blobs.put(data), "", len(data), "cema-lite", {}, newest.version, 0)
    cloud.store.roll_back("g", row.lineage, restored, cloud.now_ms)
    cloud.restart()
    assert cloud.controllers["g"].worlds.learned == {}
    cloud.controllers["g"].worlds.enter(Condition("d", 7), cloud.controllers["g"].adapter)
    assert_same(cloud.controllers["g"].adapter.edge_parameters(), source())
