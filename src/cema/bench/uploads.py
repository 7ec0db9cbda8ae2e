"""Samples on their way up, as devices send them: coded, in full batches, deflated. What a sample costs in bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np

from cema.bench.corruptions import COMMON
from cema.bench.datasets import Dataset
from cema.config import UplinkConfig
from cema.types import Uint8Array
from cema.wire.body import pack_batch
from cema.wire.image import encode_image, read_coding
from cema.wire.messages import BOOT_ID_BYTES, SAMPLE_ID_BYTES, Preprocess, Sample, SampleBatch
from cema.wire.preprocess import fit

AT_ONCE = UplinkConfig().batch_samples
"""Samples of one upload; fewer are sent only after ``uplink.max_latency_s``."""
SAMPLES = 3 * AT_ONCE
"""Photographs per corruption behind a mean size: full uploads."""
SEVERITY = 5
_FINGERPRINT = "5c0f" * 16
_STARTED_MS, _FRAME_MS = 1_700_000_000_000, 33
T = TypeVar("T")


def in_batches(items: Sequence[T], at_once: int = AT_ONCE) -> Iterator[Sequence[T]]:
    """As a device splits what waits."""
    return (items[first : first + at_once] for first in range(0, len(items), at_once))


def corrupted(dataset: Dataset, size: tuple[int, int]) -> dict[str, list[Uint8Array]]:
    """The first SAMPLES photographs under each of the fifteen corruptions, uint8 [height, width, 3] each.

    size: (height, width) in px.
    """
    pixels = dataset.part(0, SAMPLES)
    return {
        name: [fit(picture, Preprocess(size=size)) for picture in pixels.condition(name, SEVERITY, 0)]
        for name in COMMON
    }


def upload_bytes(pictures: Sequence[Uint8Array], coding: str, *, at_once: int = AT_ONCE, deflate: bool = True) -> float:
    """Mean bytes of a sample, with all that travels in the body for it."""
    rng = np.random.default_rng(0)
    samples = [_sample(picture, coding, seq, rng) for seq, picture in enumerate(pictures)]
    boot_id = rng.bytes(BOOT_ID_BYTES)
    batches = [
        SampleBatch(
            device_id="camera-1", boot_id=boot_id, fingerprint=_FINGERPRINT, samples_seen=2 * part[-1].seq,
            samples=list(part),
        )
        for part in in_batches(samples, at_once)
    ]  # fmt: skip
    return sum(len(pack_batch(batch, deflate=deflate).data) for batch in batches) / len(samples)


def _sample(picture: Uint8Array, coding: str, seq: int, rng: np.random.Generator) -> Sample:
    """Random where the device's could be anything."""
    chosen = read_coding(coding, *picture.shape[:2])
    return Sample(
        sample_id=rng.bytes(SAMPLE_ID_BYTES), seq=seq, codec=chosen.codec, image=encode_image(picture, chosen),
        label=int(rng.integers(10)), probability=float(rng.random()), entropy=float(rng.random()), update_version=1,
        captured_at_ms=_STARTED_MS + _FRAME_MS * seq,
    )  # fmt: skip
