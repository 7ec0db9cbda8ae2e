"""A group of devices and its cloud in lock-step: predict t, upload, adapt, publish, apply before t + 1 + delay.

Everything but the network is the real thing: the edge's session, selection and image codec, the wire's messages, the
cloud's controller. One process, no clock: time is the stream's own (pictures / frame rate), adaptation takes none of
it, and the same seed gives the same result.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cema.bench.answer import Answer
from cema.bench.link import LINKS, Link
from cema.bench.memory_probe import MemoryProbe
from cema.bench.simulated_device import Device, NoSelector, RandomSelector
from cema.cloud.adapt import Options, create_adapter
from cema.cloud.adapt.norm import adaptable, norm_train
from cema.cloud.controller import Controller, Publishing
from cema.cloud.norms import read_parameters
from cema.cloud.sharing import SharedAdapter
from cema.cloud.store.base import GroupRow
from cema.cloud.store.blobs import MemoryBlobs
from cema.cloud.store.memory import MemoryStore
from cema.config import ImageCoding, SelectionConfig
from cema.edge.classes import ClassesSettings
from cema.edge.measuring import MeasuringSession
from cema.edge.mixed import MixedStatistics
from cema.edge.mixture import MixtureSettings
from cema.edge.pacing import PacedSelector, PacingSettings
from cema.edge.selection import SampleSelector, Selector
from cema.edge.statistics import StatisticsSettings
from cema.types import NormParameters, Uint8Array
from cema.wire.blend import BLEND, BlendSettings
from cema.wire.bundle import Bundle
from cema.wire.difference import apply_difference, encode_difference
from cema.wire.preprocess import preprocess
from cema.wire.update import Encoding, open_update

GROUP = WORKER = "bench"
FPS = 30.0
"""Pictures per second of a device, for links that take time: an ordinary camera."""
Selecting = Literal["filters", "paced", "random", "nothing"]
_LEASE_MS = 1 << 40


@dataclass(frozen=True)
class Pair:
    """The models of a run. foundation None: for methods that need none."""

    bundle: Bundle
    edge: nn.Module
    foundation: nn.Module | None


class Own(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers of devices that measure their own statistics."""

    statistics: StatisticsSettings = StatisticsSettings()
    blend: BlendSettings = BLEND
    classes: ClassesSettings = ClassesSettings()
    pacing: PacingSettings = PacingSettings()
    mixture: MixtureSettings = MixtureSettings()


class Travel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How samples and updates travel. float16: as differences to the version that the device has (ADR 10); float32 is
    what the published method sends."""

    image_coding: ImageCoding = "auto"
    update_encoding: Encoding = "float32"


@dataclass(frozen=True)
class Plan:
    """How a group is run. delay: batches between the arrival of an update and its use. first_batch: the running
    statistics start from the first batch, on the edge as in the cloud, as in the published code. threads: of the edge
    session, 0 = one per core. own: the devices measure their own statistics."""

    method: str = "cema-paper"
    options: Options = field(default_factory=dict)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    selecting: Selecting = "filters"
    seed: int = 0
    delay: int = 0
    first_batch: bool = False
    threads: int = 0
    edges: int = 1
    link: Link = LINKS["instant"]
    fps: float = FPS
    travel: Travel = Travel()  # noqa: RUF009  # frozen
    own: Own | None = None


class Simulator:
    """The devices of one group and their cloud; see ``cema.bench.answer.Run``."""

    def __init__(self, pair: Pair, plan: Plan) -> None:
        self.pair, self.plan = pair, plan
        self.store, self.blobs = MemoryStore(), MemoryBlobs()
        self.probe = MemoryProbe()
        with self.probe.side("edge"):
            self.devices = [self._device(index) for index in range(plan.edges)]
        self.now_ms, self.now_s = 0, 0.0
        self._started: NormParameters | None = None
        self._controller: Controller | None = None
        self.store.put_group(GROUP, pair.bundle.manifest.fingerprint, "", "on", 0)

    def step(self, batches: Sequence[Uint8Array | None]) -> list[Answer | None]:
        """Every device predicts one batch, then the cloud adapts, then updates travel."""
        self.now_s += max(len(batch) for batch in batches if batch is not None) / self.plan.fps
        answers: list[Answer | None] = [
            None if images is None else self._predict(device, images)
            for device, images in zip(self.devices, batches, strict=True)
        ]
        started = time.perf_counter()
        with self.probe.side("cloud"):
            self._adapt()
        active = [answer for answer in answers if answer is not None]
        for served in active:
            served.cloud_s = (time.perf_counter() - started) / len(active)
        for device, answer in zip(self.devices, answers, strict=True):
            if answer is not None:
                self._download(device, answer)
        return answers

    def learn(self, labels: Sequence[NDArray[np.int64] | None]) -> None:
        """Cloud-edge methods have no labels."""

    def _device(self, index: int) -> Device:
        rng = np.random.default_rng((self.plan.seed, index))
        link, threads, delay = self.plan.link, self.plan.threads, self.plan.delay
        coding, bundle = self.plan.travel.image_coding, self.pair.bundle
        own, numbers = None, self.plan.own
        by = None if numbers is None else numbers.classes
        if numbers is not None and bundle.measures:
            measuring, classes = MeasuringSession(bundle, threads=threads), len(bundle.manifest.classes)
            own = MixedStatistics(measuring, classes, rng, numbers.statistics, numbers.blend, numbers.mixture)
        return Device(f"edge-{index}", bundle, self._selector(rng), link, rng, threads, delay, coding, own, by)

    def _selector(self, rng: np.random.Generator) -> SampleSelector:
        classes = len(self.pair.bundle.manifest.classes)
        if self.plan.selecting == "nothing":
            return NoSelector()
        if self.plan.selecting == "random":
            return RandomSelector(self.plan.selection, classes, rng)
        if self.plan.selecting == "paced":
            return PacedSelector(self.plan.selection, classes, rng, self.plan.own.pacing if self.plan.own else None)
        return Selector(self.plan.selection, classes)

    def _predict(self, device: Device, images_BHWC: Uint8Array) -> Answer:
        with self.probe.side("edge"):
            if device.seen == 0 and self.plan.first_batch:
                device.use(self._statistics_of(images_BHWC), 0)
            started = time.perf_counter()
            probabilities_BK, entropy_B, kept_B = device.predict(images_BHWC)
            elapsed_s = time.perf_counter() - started
            size = device.upload(
                images_BHWC[kept_B], probabilities_BK[kept_B], entropy_B[kept_B], self.now_s, self.now_ms
            )
        return Answer(probabilities_BK, uploads=int(kept_B.sum()), bytes_up=size, edge_s=elapsed_s)

    def _adapt(self) -> None:
        """Take in what has arrived, then all ticks that are due."""
        for device in self.devices:
            for batch in device.arrived(self.now_s):
                self.store.add_samples(GROUP, batch, self.now_ms)
        self.now_ms += 1
        while row := self._claim():
            controller = self._controller = self._controller or self._make_controller(row)
            controller.tick(row)
            self.store.release(GROUP, WORKER)
            self.now_ms += 1

    def _claim(self) -> GroupRow | None:
        return self.store.claim(WORKER, self.now_ms, lease_ms=_LEASE_MS, tick_images=64, publish_interval_ms=0)

    def _make_controller(self, row: GroupRow) -> Controller:
        plan, pair = self.plan, self.pair
        adapter = create_adapter(plan.method, pair.edge, pair.foundation, plan.options)
        if self._started is not None and "edge.started" in adapter.state():
            started = {f"edge.{name}": value for name, value in self._started.items()}
            on = {"edge.started": np.ones_like(adapter.state()["edge.started"])}
            adapter.load_state({**adapter.state(), **started, **on})
        return Controller(
            row,
            pair.bundle,
            SharedAdapter(adapter),
            self.store,
            self.blobs,
            Publishing(plan.method, None, 0, plan.travel.update_encoding),
            worker=WORKER,
            seed=plan.seed,
            clock_ms=lambda: self.now_ms,
        )

    def _download(self, device: Device, answer: Answer) -> None:
        """Poll for what is new; use what is here and has waited long enough."""
        newest = self.store.updates(GROUP, 1)
        if newest and newest[0].version > device.newest_version and device.may_fetch(self.now_s):
            data = self.blobs.get(newest[0].blob)
            difference = encode_difference(data, device.base)
            heard = data if difference is None else apply_difference(difference, device.base)
            update = open_update(heard, self.pair.bundle.manifest)
            answer.bytes_down += len(data if difference is None else difference)
            device.fetch(len(data if difference is None else difference), update, self.now_s)
        with self.probe.side("edge"):
            answer.updates += device.apply_due(self.now_s)

    def _statistics_of(self, images_BHWC: Uint8Array) -> NormParameters:
        """Running statistics of a batch, layer by layer, as a training forward would set them. The first device's are
        the cloud's start, too."""
        model = adaptable(self.pair.edge, "native", "first_batch")
        norm_train(model, True)
        with torch.no_grad():
            model(torch.from_numpy(preprocess(list(images_BHWC), self.pair.bundle.manifest.preprocess)))
        parameters = read_parameters(model)
        self._started = self._started or parameters
        return parameters
