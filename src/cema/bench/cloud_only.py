"""``cloud-only``: every picture travels to the foundation model and its answer travels back. What the bytes buy."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cema.bench.answer import Answer
from cema.bench.memory_probe import MemoryProbe
from cema.types import Float32Array, Uint8Array
from cema.wire.body import pack_batch
from cema.wire.image import encode_image, read_coding
from cema.wire.messages import Preprocess, Sample, SampleBatch
from cema.wire.preprocess import preprocess


class CloudOnly:
    """See ``cema.bench.answer.Run``. The picture is encoded as an upload is; the answer is label and probability."""

    def __init__(self, foundation: nn.Module, preprocessing: Preprocess, fingerprint: str, seed: int) -> None:
        self.foundation, self.preprocessing, self.fingerprint = foundation.eval(), preprocessing, fingerprint
        self.rng = np.random.default_rng(seed)
        self.seen = 0
        self.probe = MemoryProbe()

    def step(self, batches: Sequence[Uint8Array | None]) -> list[Answer | None]:
        return [None if images is None else self._ask(images) for images in batches]

    def learn(self, labels: Sequence[NDArray[np.int64] | None]) -> None:
        """The foundation model is not adapted."""

    def _ask(self, images_BHWC: Uint8Array) -> Answer:
        started = time.perf_counter()
        with self.probe.side("edge"):
            body = pack_batch(self._batch(images_BHWC), deflate=True)
        edge_s = time.perf_counter() - started
        started = time.perf_counter()
        with self.probe.side("cloud"):
            probabilities_BK = self._infer(images_BHWC)
        answers = [(int(row.argmax()), float(row.max())) for row in probabilities_BK]
        return Answer(
            probabilities_BK,
            uploads=len(images_BHWC),
            bytes_up=len(body.data),
            bytes_down=len(msgspec.msgpack.encode(answers)),
            edge_s=edge_s,
            cloud_s=time.perf_counter() - started,
        )

    @torch.no_grad()
    def _infer(self, images_BHWC: Uint8Array) -> Float32Array:
        images_BCHW = torch.from_numpy(preprocess(list(images_BHWC), self.preprocessing))
        probabilities_BK: Float32Array = torch.softmax(self.foundation(images_BCHW), 1).numpy()
        return probabilities_BK

    def _batch(self, images_BHWC: Uint8Array) -> SampleBatch:
        self.seen += len(images_BHWC)
        samples = [self._sample(image, self.seen + index) for index, image in enumerate(images_BHWC)]
        return SampleBatch(
            device_id="edge-0",
            boot_id=self.rng.bytes(16),
            fingerprint=self.fingerprint,
            samples_seen=self.seen,
            samples=samples,
        )

    def _sample(self, image: Uint8Array, seq: int) -> Sample:
        coding = read_coding("auto", *image.shape[:2])
        return Sample(
            sample_id=self.rng.bytes(16),
            seq=seq,
            codec=coding.codec,
            image=encode_image(image, coding),
            label=0,
            probability=0.0,
            entropy=0.0,
            update_version=0,
            captured_at_ms=0,
        )
