"""The device of the simulator: the real session, selection and image codec; a link in the stream's own time."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from cema.bench.link import Channel, Link
from cema.bench.uploads import in_batches
from cema.config import SelectionConfig
from cema.edge.classes import ClassesSettings, RecentClasses
from cema.edge.mixed import MixedStatistics
from cema.edge.routing import Session, following_session
from cema.edge.selection import FollowsStream, SampleSelector, Selector, entropy, softmax
from cema.edge.session import EdgeSession
from cema.types import Float32Array, NormParameters, Uint8Array
from cema.wire.body import pack_batch
from cema.wire.bundle import Bundle
from cema.wire.difference import source_base, update_base
from cema.wire.image import encode_image, read_coding
from cema.wire.messages import Sample, SampleBatch
from cema.wire.preprocess import fit
from cema.wire.update import Update


class RandomSelector:
    """The control for selection: of each batch as many as the paper's filters would keep, but drawn at random."""

    def __init__(self, config: SelectionConfig, classes: int, rng: np.random.Generator) -> None:
        self._filters, self._rng = Selector(config, classes), rng

    def select(self, probabilities_BK: Float32Array, entropy_B: Float32Array) -> NDArray[np.bool_]:
        kept_B = self._filters.select(probabilities_BK, entropy_B)
        return self._rng.permutation(kept_B)


class NoSelector:
    """Nothing leaves the device."""

    def select(self, probabilities_BK: Float32Array, entropy_B: Float32Array) -> NDArray[np.bool_]:
        return np.zeros(len(entropy_B), np.bool_)


@dataclass
class Sending:
    """An upload on its way. size_bytes: 0 for a bare report of ``samples_seen``."""

    arrives_s: float
    batch: SampleBatch
    size_bytes: int


@dataclass
class Waiting:
    """An update on its way to a device or held back there. due_step: batches after which it is used, None until it has
    arrived."""

    arrives_s: float
    parameters: NormParameters
    version: int
    domain: int | None = None
    due_step: int | None = None


@dataclass
class Device:
    """One device: predicts, selects, encodes; holds updates back until link and delay let them through. coding: of
    pictures. statistics: its own, if it measures
    them. by_classes: numbers of the class prior. base: of the next difference."""

    name: str
    bundle: Bundle
    selector: SampleSelector
    link: Link
    rng: np.random.Generator
    threads: int
    delay: int
    coding: str = "auto"
    statistics: MixedStatistics | None = None
    by_classes: ClassesSettings | None = None
    session: Session = field(init=False)
    seen: int = 0
    steps: int = 0
    sent: int = 0
    outgoing: deque[Sending] = field(default_factory=deque)
    waiting: deque[Waiting] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.boot_id = self.rng.bytes(16)
        self.base = source_base(self.bundle)
        self.classes = RecentClasses(len(self.bundle.manifest.classes), self.by_classes)
        self.up = Channel(self.link, self.link.up_bps, self.rng)
        self.down = Channel(self.link, self.link.down_bps, self.rng)
        self.use(self.bundle.source_parameters(), 0)

    def use(self, parameters: NormParameters, version: int, domain: int | None = None) -> None:
        """Swap the parameters. domain: in which they are good, None = in all."""
        self.weights, self.domain, self.version = parameters, domain, version
        self._renew()

    def _renew(self) -> None:
        own = self.statistics
        if own is None:
            self.session = self._build(self.weights)
        else:
            before = self.session if self.seen else None
            self.session = following_session(own, self.weights, self.domain, self.version, self._build, before)

    def _build(self, parameters: NormParameters, revision: int = 0) -> EdgeSession:
        return EdgeSession(self.bundle, parameters, self.version, revision=revision, threads=self.threads)

    def predict(self, images_BHWC: Uint8Array) -> tuple[Float32Array, Float32Array, NDArray[np.bool_]]:
        """(probabilities [B, K], entropy [B] in nats, selected [B])."""
        fitted_BHWC = np.stack([fit(image, self.bundle.manifest.preprocess) for image in images_BHWC])
        if self.statistics is None:
            probabilities_BK = softmax(self.session.logits(fitted_BHWC))
        else:
            probabilities_BK = self._followed(fitted_BHWC, self.statistics)
        entropy_B = entropy(probabilities_BK)
        kept_B = self.selector.select(probabilities_BK, entropy_B)
        self.seen += len(images_BHWC)
        self.steps += 1
        return probabilities_BK, entropy_B, kept_B

    def _followed(self, fitted_BHWC: Uint8Array, own: MixedStatistics) -> Float32Array:
        """Predict, and follow the stream; the first pictures of a world are answered again."""
        given_BK, answer_BK = self._answer(fitted_BHWC)
        seen_BK = answer_BK
        if changed := own.arrive(fitted_BHWC):
            self._renew()
            _, seen_BK = self._answer(fitted_BHWC)  # labels by what is good there
        due = own.take_in(fitted_BHWC, seen_BK.argmax(axis=1).tolist())
        if due != "no":
            alternated = own.looks > 1
            own.refresh(self.weights, self.domain)
            changed |= alternated and own.looks == 1
            self._renew()
        if due == "now":
            given_BK, answer_BK = self._answer(fitted_BHWC)
        self.classes.take_in(given_BK, answer_BK.argmax(axis=1).tolist())
        if isinstance(self.selector, FollowsStream):
            silent = self.classes.narrow or own.mixture is not None
            self.selector.follow(own.trusted(), changed, silent)
        return answer_BK

    def _answer(self, fitted_BHWC: Uint8Array) -> tuple[Float32Array, Float32Array]:
        """What the model says, and the same in the light of the classes that show, [B, K] each."""
        given_BK = softmax(self.session.logits(fitted_BHWC))
        return given_BK, self.classes.correct(given_BK)

    def upload(
        self,
        images: Uint8Array,
        probabilities_NK: Float32Array,
        entropy_N: Float32Array,
        now_s: float,
        captured_at_ms: int,
    ) -> int:
        """Hand the selected samples to the link, in the batches of a device; returns the bytes.

        Without samples only ``samples_seen`` travels, which counts nothing here.
        """
        samples = [
            self._sample(image, probability_K, h, captured_at_ms)
            for image, probability_K, h in zip(images, probabilities_NK, entropy_N, strict=True)
        ]
        parts = [*in_batches(samples)] or [[]]
        return sum(self._send(part, now_s) for part in parts)

    def _send(self, samples: Sequence[Sample], now_s: float) -> int:
        batch = SampleBatch(
            device_id=self.name,
            boot_id=self.boot_id,
            fingerprint=self.bundle.manifest.fingerprint,
            samples_seen=self.seen,
            samples=list(samples),
        )
        size = len(pack_batch(batch, deflate=True).data) if samples else 0
        self.outgoing.append(Sending(self.up.send(size, now_s), batch, size))
        return size

    def _sample(self, image: Uint8Array, probability_K: Float32Array, h: float, captured_at_ms: int) -> Sample:
        coding = read_coding(self.coding, *image.shape[:2])
        self.sent += 1
        return Sample(
            sample_id=self.rng.bytes(16),
            seq=self.sent - 1,
            codec=coding.codec,
            image=encode_image(image, coding),
            label=int(probability_K.argmax()),
            probability=float(probability_K.max()),
            entropy=float(h),
            update_version=self.session.version,
            captured_at_ms=captured_at_ms,
            domain=self.statistics.domain if self.statistics is not None else msgspec.UNSET,
        )

    def arrived(self, now_s: float) -> list[SampleBatch]:
        """Uploads that have reached the cloud by now, in order."""
        batches = []
        while self.outgoing and self.outgoing[0].arrives_s <= now_s:
            batches.append(self.outgoing.popleft().batch)
        return batches

    @property
    def newest_version(self) -> int:
        """In use or on its way."""
        return self.waiting[-1].version if self.waiting else self.session.version

    def may_fetch(self, now_s: float) -> bool:
        """The downlink is free: the device polls again."""
        return self.down.free_at_s <= now_s

    def fetch(self, size_bytes: int, update: Update, now_s: float) -> None:
        """An update begins its way down, as so many bytes."""
        self.base = update_base(update.data, self.bundle.manifest) or self.base
        manifest = update.manifest
        domain = None if isinstance(manifest.domain, msgspec.UnsetType) else manifest.domain
        self.waiting.append(Waiting(self.down.send(size_bytes, now_s), update.parameters, manifest.version, domain))

    def apply_due(self, now_s: float) -> int:
        """Use the newest update that has been here for ``delay`` batches; returns how many were put to use (0 or 1)."""
        for update in self.waiting:
            if update.due_step is None and update.arrives_s <= now_s:
                update.due_step = self.steps + self.delay
        due = None
        while self.waiting and self.waiting[0].due_step is not None and self.waiting[0].due_step <= self.steps:
            due = self.waiting.popleft()
        if due is None:
            return 0
        self.use(due.parameters, due.version, due.domain)
        return 1
