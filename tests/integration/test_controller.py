"""The cloud's loop on a real store with real adapters: schedule, publication, gate, crash and resume."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from cema.cloud.adapt import create_adapter
from cema.cloud.adapt.base import Adapter, CloudStatistics, Metrics, State
from cema.cloud.controller import Controller, Publishing
from cema.cloud.store.base import BlobStore, Store
from cema.cloud.store.blobs import FolderBlobs, MemoryBlobs
from cema.cloud.store.memory import MemoryStore
from cema.cloud.store.sql import SqlStore
from cema.errors import ConflictError
from cema.types import NormParameters
from cema.wire import signing
from cema.wire.bundle import Bundle
from cema.wire.image import encode_image
from cema.wire.messages import Sample, SampleBatch
from cema.wire.update import open_update
from integration.conditions import GROUP, WORKER, controller
from integration.tiny_net import TinyNet

BOOT = bytes(16)


class Recorder(CloudStatistics):
    """A real adapter that writes down what it was given."""

    def __init__(self, inner: Adapter) -> None:
        self.inner, self.schedule, self.calls = inner, inner.schedule, []
        self.after_step: Callable[[], None] = lambda: None

    def step(self, uploads_BCHW: torch.Tensor, replayed_BCHW: torch.Tensor | None) -> Metrics | None:
        self.calls.append(("step", len(uploads_BCHW), 0 if replayed_BCHW is None else len(replayed_BCHW)))
        metrics = self.inner.step(uploads_BCHW, replayed_BCHW)
        self.after_step()
        return metrics

    def replay_step(self, replayed_BCHW: torch.Tensor) -> Metrics | None:
        self.calls.append(("replay", 0, len(replayed_BCHW)))
        return self.inner.replay_step(replayed_BCHW)

    def edge_logits(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return self.inner.edge_logits(images_BCHW)

    def edge_parameters(self) -> NormParameters:
        return self.inner.edge_parameters()

    def state(self) -> State:
        return self.inner.state()

    def load_state(self, state: State) -> None:
        self.inner.load_state(state)


class Cloud:
    """A group, its store, and devices that have seen ``seen`` images."""

    def __init__(self, bundle: Bundle, store: Store, blobs: BlobStore, interval_ms: int = 0) -> None:
        self.bundle, self.store, self.blobs, self.interval_ms = bundle, store, blobs, interval_ms
        self.now_ms, self.seen, self.sent = 1_000_000, 0, 0
        self.key = signing.generate_key()
        store.put_group(GROUP, bundle.manifest.fingerprint, "bundle", "on", self.now_ms)

    def show(self, images: int, uploads: int, damaged: int = 0) -> None:
        """The device sees ``images`` and uploads some of them, ``damaged`` of which cannot be decoded."""
        self.seen += images
        rng = np.random.default_rng(self.sent)
        samples = []
        for index in range(uploads):
            picture = encode_image(rng.integers(0, 256, (8, 8, 3), np.uint8), "png")
            samples.append(
                Sample(
                    sample_id=(self.sent + index).to_bytes(16, "big"), seq=self.sent + index, codec="png",
                    image=picture[:60] if index < damaged else picture, label=0, probability=0.5, entropy=0.5,
                    update_version=0, captured_at_ms=0,
                )
            )  # fmt: skip
        self.sent += uploads
        batch = SampleBatch(
            device_id="cam", boot_id=BOOT, fingerprint=self.bundle.manifest.fingerprint, samples_seen=self.seen,
            samples=samples,
        )  # fmt: skip
        self.store.add_samples(GROUP, batch, self.now_ms)

    def controller(self, method: str = "cema-paper") -> tuple[Controller, Recorder]:
        recorder = Recorder(create_adapter(method, TinyNet(1), TinyNet(2), {}))
        return controller(self, recorder, Publishing(method, self.key, self.interval_ms)), recorder

    def tick(self, controller: Controller) -> int:
        row = self.store.claim(WORKER, self.now_ms, lease_ms=1000, tick_images=64, publish_interval_ms=self.interval_ms)
        if row is None:
            return -1
        try:
            return controller.tick(row)
        finally:
            self.store.release(GROUP, WORKER)
            self.now_ms += 1


@pytest.fixture(params=["memory", "sql"])
def cloud(request: pytest.FixtureRequest, tiny_bundle: Bundle, tmp_path: Path) -> Iterator[Cloud]:
    if request.param == "memory":
        yield Cloud(tiny_bundle, MemoryStore(), MemoryBlobs())
    else:
        store = SqlStore.open(f"sqlite:///{tmp_path / 'cema.db'}")
        yield Cloud(tiny_bundle, store, FolderBlobs(tmp_path / "blobs"))
        store.close()


def test_schedule_runs_full_steps_on_32_then_replay_only_from_256(cloud: Cloud) -> None:
    controller, recorder = cloud.controller()
    cloud.show(images=63, uploads=40)
    assert cloud.tick(controller) == -1  # no tick before 64 images
    cloud.show(images=1, uploads=0)
    assert cloud.tick(controller) == 1
    assert recorder.calls == [("step", 32, 0)]
    for _ in range(7):  # 8 left; after these 256 have been used
        cloud.show(images=64, uploads=32)
        cloud.tick(controller)
    assert recorder.calls[1:] == [("step", 32, 0)] * 7
    cloud.show(images=64, uploads=0)
    assert cloud.tick(controller) == 1
    cloud.show(images=64, uploads=56)
    assert cloud.tick(controller) == 2
    assert recorder.calls[8:] == [("replay", 0, 128), ("step", 32, 96), ("step", 32, 96)]


def test_uploads_that_arrive_during_a_tick_wait_for_the_next_so_that_other_groups_get_their_turn(cloud: Cloud) -> None:
    controller, recorder = cloud.controller()
    recorder.after_step = lambda: cloud.show(images=64, uploads=32)
    cloud.show(images=64, uploads=64)
    assert cloud.tick(controller) == 2
    assert cloud.store.group(GROUP).pending == 64


def test_tick_without_enough_samples_is_counted_and_changes_no_version(cloud: Cloud) -> None:
    controller, recorder = cloud.controller()
    cloud.show(images=64, uploads=31)
    assert cloud.tick(controller) == 0
    row = cloud.store.group(GROUP)
    assert (row.ticks_done, row.latest_version, row.dirty, row.pending) == (1, 0, False, 31)
    assert recorder.calls == []


def test_missed_ticks_are_dropped_and_counted(cloud: Cloud) -> None:
    controller, recorder = cloud.controller()
    cloud.show(images=64 * 5, uploads=64)
    cloud.tick(controller)
    row = cloud.store.group(GROUP)
    assert (row.ticks_done, row.ticks_dropped) == (5, 4)
    assert len(recorder.calls) == 2
    assert cloud.tick(controller) == -1


def test_every_version_is_signed_complete_and_names_its_samples(cloud: Cloud) -> None:
    controller, recorder = cloud.controller()
    cloud.show(images=64, uploads=64)
    cloud.tick(controller)
    assert [row.version for row in cloud.store.updates(GROUP)] == [2, 1]
    for row in cloud.store.updates(GROUP):
        update = open_update(
            cloud.blobs.get(row.blob), cloud.bundle.manifest, signature=row.signature, key=signing.public_key(cloud.key)
        )
        assert update.manifest.version == row.version
        assert row.metrics["edge_loss"] > 0
    newest = open_update(cloud.blobs.get(cloud.store.update(GROUP, 2).blob), cloud.bundle.manifest)
    for name, value in recorder.edge_parameters().items():
        np.testing.assert_array_equal(newest.parameters[name], value)
    learned = [cloud.store.update_samples(GROUP, version) for version in (1, 2)]
    assert sorted(learned[0] + learned[1]) == [n.to_bytes(16, "big") for n in range(64)]


def test_versions_are_coalesced_and_published_once_the_interval_is_over(tiny_bundle: Bundle) -> None:
    cloud = Cloud(tiny_bundle, MemoryStore(), MemoryBlobs(), interval_ms=10_000)
    controller, _ = cloud.controller()
    for _ in range(3):
        cloud.show(images=64, uploads=32)
        cloud.tick(controller)
    assert cloud.store.group(GROUP).latest_version == 1  # the first came at once
    assert cloud.tick(controller) == -1
    cloud.now_ms += 10_000
    assert cloud.tick(controller) == 0
    row = cloud.store.group(GROUP)
    assert (row.latest_version, row.dirty) == (2, False)
    assert len(cloud.store.update_samples(GROUP, 2)) == 64


def test_a_worker_that_died_between_steps_is_continued_to_the_same_bytes(cloud: Cloud) -> None:
    twin = Cloud(cloud.bundle, MemoryStore(), MemoryBlobs())
    straight, _ = twin.controller()
    for _ in range(12):
        controller, _ = cloud.controller()  # a new process each time: everything comes from the store
        for each, loop in ((cloud, controller), (twin, straight)):
            each.show(images=64, uploads=32)
            each.tick(loop)
    assert cloud.store.group(GROUP).latest_version == 12
    ours, theirs = (open_update(c.blobs.get(c.store.update(GROUP, 12).blob), c.bundle.manifest) for c in (cloud, twin))
    for name, value in ours.parameters.items():
        np.testing.assert_array_equal(value, theirs.parameters[name], err_msg=name)


def test_samples_that_cannot_be_decoded_are_passed_over_once(cloud: Cloud) -> None:
    controller, recorder = cloud.controller()
    cloud.show(images=64, uploads=32, damaged=3)
    cloud.show(images=64, uploads=32, damaged=32)
    cloud.tick(controller)
    assert recorder.calls == [("step", 29, 0)]
    assert cloud.store.group(GROUP).pending == 0
    assert len(cloud.store.replay(GROUP)) == 29


def test_a_step_that_collapses_is_taken_back_and_not_published(cloud: Cloud) -> None:
    controller, recorder = cloud.controller()
    cloud.show(images=64, uploads=32)
    cloud.tick(controller)
    good = recorder.edge_parameters()

    def collapse() -> None:
        state = recorder.inner.state()
        recorder.inner.load_state({**state, "edge.bn.weight": state["edge.bn.weight"] * np.float32(np.nan)})

    recorder.after_step = collapse
    cloud.show(images=64, uploads=32)
    cloud.tick(controller)
    row = cloud.store.group(GROUP)
    assert row.latest_version == 1
    assert row.pending == 0
    for name, value in recorder.edge_parameters().items():
        np.testing.assert_array_equal(value, good[name])


def test_a_clock_that_was_set_back_holds_no_version_up(tiny_bundle: Bundle) -> None:
    cloud = Cloud(tiny_bundle, MemoryStore(), MemoryBlobs(), interval_ms=10_000)
    controller, _ = cloud.controller()
    cloud.show(images=64, uploads=32)
    cloud.tick(controller)
    cloud.now_ms -= 500_000
    cloud.show(images=64, uploads=32)
    cloud.tick(controller)
    assert cloud.store.group(GROUP).latest_version == 2


def test_a_lost_lease_changes_nothing(cloud: Cloud) -> None:
    controller, _ = cloud.controller()
    cloud.show(images=64, uploads=32)
    row = cloud.store.claim(WORKER, cloud.now_ms, lease_ms=10, tick_images=64, publish_interval_ms=0)
    assert row is not None
    cloud.now_ms += 11
    assert cloud.store.claim("other", cloud.now_ms, lease_ms=1000, tick_images=64, publish_interval_ms=0) is not None
    with pytest.raises(ConflictError):
        controller.tick(row)
    after = cloud.store.group(GROUP)
    assert (after.latest_version, after.pending, after.ticks_done) == (0, 32, 0)


def test_source_publishes_nothing_and_keeps_no_samples(cloud: Cloud) -> None:
    controller, _ = cloud.controller("source")
    cloud.show(images=64, uploads=64)
    cloud.tick(controller)
    row = cloud.store.group(GROUP)
    assert (row.latest_version, row.pending, row.dirty) == (0, 0, False)
    assert cloud.store.replay(GROUP) == []
