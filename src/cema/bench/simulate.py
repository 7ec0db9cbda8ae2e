"""One stream through edge and cloud in lock-step: predict t, upload, adapt, publish, apply before t + 1 + delay.

Everything but the network is the real thing: the edge's session, selection and image codec, the wire's messages, the
cloud's controller. One process, no clock: the same seed gives the same result.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cema.cloud.adapt import Options, create_adapter
from cema.cloud.adapt.norm import adaptable, norm_train
from cema.cloud.controller import Controller, Publishing
from cema.cloud.norms import read_parameters
from cema.cloud.store.base import GroupRow
from cema.cloud.store.memory import MemoryBlobs, MemoryStore
from cema.config import SelectionConfig
from cema.edge.selection import Selector, entropy, softmax
from cema.edge.session import EdgeSession
from cema.types import NormParameters, Uint8Array
from cema.wire.bundle import Bundle
from cema.wire.image import codec_for, encode_image
from cema.wire.messages import Sample, SampleBatch, encode_msgpack
from cema.wire.preprocess import preprocess
from cema.wire.update import open_update

GROUP = DEVICE = WORKER = "bench"
_LEASE_MS = 1 << 40


@dataclass(frozen=True)
class Pair:
    """The models of a run. foundation None: for methods that need none."""

    bundle: Bundle
    edge: nn.Module
    foundation: nn.Module | None


@dataclass(frozen=True)
class Plan:
    """How one stream is run. delay: batches between the publication of an update and its use. first_batch: the running
    statistics start from the first batch, on the edge as in the cloud, as in the published code."""

    method: str = "cema-paper"
    options: Options = field(default_factory=dict)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    batch_size: int = 64
    seed: int = 0
    delay: int = 0
    first_batch: bool = False
    threads: int = 0


@dataclass
class Outcome:
    """What happened. correct: bool per image in stream order; sizes as really encoded."""

    correct: NDArray[np.bool_]
    uploads: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    edge_s: float = 0.0
    cloud_s: float = 0.0

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())

    @property
    def accuracy_second_half(self) -> float:
        return float(self.correct[len(self.correct) // 2 :].mean())


class Simulator:
    """One device and its cloud."""

    def __init__(self, pair: Pair, plan: Plan) -> None:
        self.pair, self.plan = pair, plan
        self.store, self.blobs = MemoryStore(), MemoryBlobs()
        self.rng = np.random.default_rng(plan.seed)
        self.selector = Selector(plan.selection, len(pair.bundle.manifest.classes))
        self.session = self._session(pair.bundle.source_parameters(), 0)
        self.boot_id = self.rng.bytes(16)
        self.seen = self.sent = self.now_ms = 0
        self.waiting: deque[tuple[int, EdgeSession]] = deque()
        self._controller: Controller | None = None
        self.store.put_group(GROUP, pair.bundle.manifest.fingerprint, "", "on", 0)

    def run(self, images_NHWC: Uint8Array, labels_N: NDArray[np.int64]) -> Outcome:
        """The whole stream, in order."""
        outcome = Outcome(np.zeros(len(labels_N), np.bool_))
        for start in range(0, len(labels_N), self.plan.batch_size):
            part = slice(start, start + self.plan.batch_size)
            predicted_B = self._batch(images_NHWC[part], outcome)
            outcome.correct[part] = predicted_B == labels_N[part]
        return outcome

    def _batch(self, images_BHWC: Uint8Array, outcome: Outcome) -> NDArray[np.int64]:
        started = time.perf_counter()
        if self.seen == 0 and self.plan.first_batch:
            self._start_from(images_BHWC)
        probabilities_BK = softmax(
            self.session.run(preprocess(list(images_BHWC), self.pair.bundle.manifest.preprocess))
        )
        entropy_B = entropy(probabilities_BK)
        kept = self.selector.select(probabilities_BK, entropy_B)
        outcome.edge_s += time.perf_counter() - started
        self.seen += len(images_BHWC)
        self._upload(images_BHWC[kept], probabilities_BK[kept], entropy_B[kept], outcome)
        started = time.perf_counter()
        self._adapt()
        outcome.cloud_s += time.perf_counter() - started
        self._download(outcome)
        return np.asarray(probabilities_BK.argmax(1), np.int64)

    def _upload(self, images: Uint8Array, probabilities: object, entropies: object, outcome: Outcome) -> None:
        probabilities_BK, entropy_B = np.asarray(probabilities), np.asarray(entropies)
        samples: list[Sample] = []
        for image, probability_K, h in zip(images, probabilities_BK, entropy_B, strict=True):
            codec = codec_for(*image.shape[:2])
            samples.append(
                Sample(
                    sample_id=self.rng.bytes(16),
                    seq=self.sent + len(samples),
                    codec=codec,
                    image=encode_image(image, codec),
                    label=int(probability_K.argmax()),
                    probability=float(probability_K.max()),
                    entropy=float(h),
                    update_version=self.session.version,
                    captured_at_ms=self.now_ms,
                )
            )
        batch = SampleBatch(
            device_id=DEVICE,
            boot_id=self.boot_id,
            fingerprint=self.pair.bundle.manifest.fingerprint,
            samples_seen=self.seen,
            samples=samples,
        )
        self.sent += len(samples)
        outcome.uploads += len(samples)
        outcome.bytes_up += len(encode_msgpack(batch)) if samples else 0
        self.store.add_samples(GROUP, batch, self.now_ms)

    def _adapt(self) -> None:
        """All ticks that are due."""
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
        if plan.first_batch and "edge.started" in adapter.state():
            started = {f"edge.{name}": value for name, value in self._started.items()}
            on = {"edge.started": np.ones_like(adapter.state()["edge.started"])}
            adapter.load_state({**adapter.state(), **started, **on})
        return Controller(
            row,
            pair.bundle,
            adapter,
            self.store,
            self.blobs,
            Publishing(plan.method, None, 0),
            worker=WORKER,
            seed=plan.seed,
            clock_ms=lambda: self.now_ms,
        )

    def _download(self, outcome: Outcome) -> None:
        """Fetch what is new; use what has waited long enough."""
        newest = self.store.updates(GROUP, 1)
        known = self.waiting[-1][1].version if self.waiting else self.session.version
        if newest and newest[0].version > known:
            update = open_update(self.blobs.get(newest[0].blob), self.pair.bundle.manifest)
            outcome.bytes_down += len(update.data)
            self.waiting.append((self.seen, self._session(update.parameters, update.manifest.version)))
        due = self.seen - self.plan.delay * self.plan.batch_size
        while self.waiting and self.waiting[0][0] <= due:
            self.session = self.waiting.popleft()[1]

    def _start_from(self, images_BHWC: Uint8Array) -> None:
        """Running statistics of the first batch, layer by layer, as a training forward would set them."""
        model = adaptable(self.pair.edge, "native", "first_batch")
        norm_train(model, True)
        with torch.no_grad():
            model(torch.from_numpy(preprocess(list(images_BHWC), self.pair.bundle.manifest.preprocess)))
        self._started = read_parameters(model)
        self.session = self._session(self._started, 0)

    def _session(self, parameters: NormParameters, version: int) -> EdgeSession:
        return EdgeSession(self.pair.bundle, parameters, version, threads=self.plan.threads)
