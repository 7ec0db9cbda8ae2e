"""A group of the method ``cema`` and its store, shown pictures that say of which condition they are, and an adapter
that writes down which of them it was given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import torch

from cema.cloud.adapt import create_adapter
from cema.cloud.adapt.base import Adapter, Metrics
from cema.cloud.controller import Controller, Publishing
from cema.cloud.sharing import SharedAdapter
from cema.cloud.store.blobs import MemoryBlobs
from cema.cloud.store.memory import MemoryStore
from cema.cloud.store.samples import Condition
from cema.types import NormParameters
from cema.wire.bundle import Bundle
from cema.wire.image import encode_image
from cema.wire.messages import Sample, SampleBatch, UpdateManifest
from cema.wire.preprocess import scale_and_shift
from cema.wire.update import Update, open_update
from integration.tiny_net import TinyNet

GROUP, WORKER = "cameras", "w"
METHOD, OPTIONS = "cema", {"precision": "float32"}


class Recorder:
    """A real adapter that writes down what it was given. steps: (tags of the uploads, of the replayed)."""

    def __init__(self, inner: Adapter, bundle: Bundle) -> None:
        self.inner, self.schedule, self.stats_owner = inner, inner.schedule, inner.stats_owner
        self.scale, self.shift = (float(each[0]) for each in scale_and_shift(bundle.manifest.preprocess))
        self.steps: list[tuple[list[int], list[int]]] = []
        self.learned: list[bool] = []
        self.forgotten: list[float] = []
        self.after_step: Callable[[], None] = lambda: None

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    def forget(self, share: float) -> None:
        self.forgotten.append(share)
        self.inner.forget(share)

    def step(self, uploads_BCHW: torch.Tensor, replayed_BCHW: torch.Tensor | None) -> Metrics | None:
        self.steps.append((self.tags(uploads_BCHW), [] if replayed_BCHW is None else self.tags(replayed_BCHW)))
        metrics = self.inner.step(uploads_BCHW, replayed_BCHW)
        self.learned.append(metrics is not None)
        self.after_step()
        return metrics

    def replay_step(self, replayed_BCHW: torch.Tensor) -> Metrics | None:
        raise AssertionError("cema learns nothing from replay alone")

    def tags(self, images_BCHW: torch.Tensor) -> list[int]:
        return [round((value - self.shift) / self.scale) for value in images_BCHW[:, 0, 0, 0].tolist()]


def controller(cloud: Any, adapter: Any, publishing: Publishing) -> Controller:
    """Of the group of a test's cloud (its store, blobs and clock), with models of its own."""
    return Controller(
        cloud.store.group(GROUP), cloud.bundle, SharedAdapter(adapter), cloud.store, cloud.blobs, publishing,
        worker=WORKER, seed=5, clock_ms=lambda: cloud.now_ms,
    )  # fmt: skip


class Cloud:
    """A group and its store. Each picture bears its tag (a number of its condition) in its first pixel."""

    def __init__(self, bundle: Bundle, interval_ms: int = 0) -> None:
        self.bundle, self.interval_ms = bundle, interval_ms
        self.store, self.blobs = MemoryStore(), MemoryBlobs()
        self.now_ms, self.sent = 1_000_000, 0
        self.seen: dict[str, int] = {}
        self.store.put_group(GROUP, bundle.manifest.fingerprint, "bundle", "on", self.now_ms)

    def show(self, device: str, domain: int | None, tag: int, uploads: int, images: int = 64) -> None:
        """A device sees ``images`` and uploads some. domain None: it does not watch."""
        self.seen[device] = self.seen.get(device, 0) + images
        samples = []
        for _ in range(uploads):
            pixels = np.random.default_rng(self.sent).integers(0, 256, (8, 8, 3), np.uint8)
            pixels[0, 0, 0] = tag
            samples.append(Sample(
                sample_id=self.sent.to_bytes(16, "big"), seq=self.sent, codec="png", image=encode_image(pixels, "png"),
                label=0, probability=0.5, entropy=0.5, update_version=0, captured_at_ms=0,
                domain=msgspec.UNSET if domain is None else domain,
            ))  # fmt: skip
            self.sent += 1
        fingerprint, boot_id = self.bundle.manifest.fingerprint, device.ljust(16).encode()
        self.store.add_samples(GROUP, SampleBatch(
            device_id=device, boot_id=boot_id, fingerprint=fingerprint, samples_seen=self.seen[device], samples=samples
        ), self.now_ms)  # fmt: skip

    def controller(self) -> tuple[Controller, Recorder]:
        """As a worker that has just started has it: all that it knows comes from the store."""
        recorder = Recorder(create_adapter(METHOD, TinyNet(1), TinyNet(2), OPTIONS), self.bundle)
        return controller(self, recorder, Publishing(METHOD, None, self.interval_ms)), recorder

    def tick(self, controller: Controller) -> int:
        row = self.store.claim(WORKER, self.now_ms, lease_ms=1000, tick_images=64, publish_interval_ms=self.interval_ms)
        assert row is not None
        try:
            return controller.tick(row)
        finally:
            self.store.release(GROUP, WORKER)
            self.now_ms += 1

    def newest(self) -> Update:
        return open_update(self.blobs.get(self.store.updates(GROUP, 1)[0].blob), self.bundle.manifest)

    def manifest(self) -> UpdateManifest:
        return self.newest().manifest

    @property
    def pending(self) -> list[Condition]:
        return [sample.condition for sample in self.store.pending(GROUP, 999)]


def same(first: NormParameters, second: NormParameters) -> bool:
    return all(np.array_equal(value, second[name]) for name, value in first.items())


def source() -> NormParameters:
    """What a group that has learned nothing has."""
    return create_adapter(METHOD, TinyNet(1), TinyNet(2), OPTIONS).edge_parameters()
