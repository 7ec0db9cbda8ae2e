"""Drives a run along its streams and turns what happened into rows: one per segment, and one for the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import chain, zip_longest
from operator import itemgetter
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cema.bench import metrics
from cema.bench.answer import Answer, Run
from cema.bench.paired import pack
from cema.bench.rows import CURVE_WINDOW
from cema.bench.streams import Indices, Pictures, Segment, Stream
from cema.errors import BenchError
from cema.types import Float32Array

Figures = dict[str, float | int | str | list[float] | None]
"""The measured fields of a ``Row``."""
DIGEST_CHARACTERS = 16
"""64 bits: enough to tell runs apart, short enough to read."""


class Digest(Protocol):
    """What hashlib's objects are."""

    def update(self, data: bytes, /) -> None: ...

    def digest(self) -> bytes: ...

    def hexdigest(self) -> str: ...


@dataclass
class Tally:
    """What a segment has come to. One entry per batch in step (of the run), index [B] (of the photograph), correct [B],
    confidence [B] and batch_s."""

    step: list[int] = field(default_factory=list)
    index: list[Indices] = field(default_factory=list)
    correct: list[NDArray[np.bool_]] = field(default_factory=list)
    confidence: list[Float32Array] = field(default_factory=list)
    batch_s: list[float] = field(default_factory=list)
    uploads: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    updates: int = 0
    edge_s: float = 0.0
    cloud_s: float = 0.0
    digest: Digest = field(default_factory=sha256)

    def add(
        self,
        step: int,
        answer: Answer,
        index_B: Indices,
        labels_B: NDArray[np.int64],
        mask_K: NDArray[np.bool_] | None = None,
    ) -> None:
        """One batch, the ``step``-th of the run. mask_K: the classes that an answer may name, None = all.

        Raises BenchError for an answer that is not a probability of each class for each picture.
        """
        probabilities_BK = answer.probabilities_BK
        _check(probabilities_BK, len(labels_B), step)
        if mask_K is not None:
            probabilities_BK = np.where(mask_K, probabilities_BK, 0)
            probabilities_BK = probabilities_BK / np.maximum(probabilities_BK.sum(1, keepdims=True), 1e-12)
        self.digest.update(np.ascontiguousarray(answer.probabilities_BK).tobytes())
        self.step.append(step)
        self.index.append(index_B)
        self.correct.append(probabilities_BK.argmax(1) == labels_B)
        self.confidence.append(np.minimum(probabilities_BK.max(1), 1))
        self.batch_s.append(answer.edge_s)
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(answer, name))

    def figures(self) -> Figures:
        """The fields of a row that this segment fills."""
        correct_N, confidence_N = np.concatenate(self.correct), np.concatenate(self.confidence)
        index_N = np.concatenate(self.index)
        accuracy = metrics.accuracy(correct_N)
        p50_ms, p99_ms = metrics.percentiles(self.batch_s, [len(correct_B) for correct_B in self.correct])
        return {
            "samples": len(correct_N),
            "accuracy": accuracy,
            "accuracy_second_half": metrics.accuracy_second_half(correct_N),
            "error": 1 - accuracy,
            "ece": metrics.expected_calibration_error(confidence_N, correct_N),
            "edge_ms_p50": p50_ms,
            "edge_ms_p99": p99_ms,
            "digest": self.digest.hexdigest()[:DIGEST_CHARACTERS],
            "curve": [round(point, 4) for point in metrics.curve(correct_N, CURVE_WINDOW)],
            "photographs": len(np.unique(index_N)),
            "right": pack(correct_N[np.argsort(index_N, kind="stable")]),
            **{name: getattr(self, name) for name in ("uploads", "bytes_up", "bytes_down", "updates")},
            **{name: round(getattr(self, name), 4) for name in ("edge_s", "cloud_s")},
        }


_SUMS = ("uploads", "bytes_up", "bytes_down", "updates", "edge_s", "cloud_s")
_ROUNDING = 1e-3
"""Of the sum of a row of probabilities, float32 over up to a thousand classes."""


def _check(probabilities_BK: Float32Array, pictures: int, step: int) -> None:
    if probabilities_BK.ndim != 2 or len(probabilities_BK) != pictures:
        raise BenchError(f"expected probabilities [{pictures}, K] for batch {step}, got {[*probabilities_BK.shape]}")
    sums_B = probabilities_BK.sum(1)
    if not (probabilities_BK.min() >= 0 and np.abs(sums_B - 1).max() <= _ROUNDING):  # so that NaN is caught, too
        raise BenchError(
            f"expected probabilities, which are 0 to 1 and sum up to 1 for each picture, got others for batch {step}",
            hint="a learning rate that makes the method diverge, or a method that answers with logits",
        )


@dataclass(frozen=True)
class Measured:
    """segment: what the figures belong to; several devices' segments of the same name are counted together."""

    segment: Segment
    tally: Tally


def measure(
    run: Run,
    streams: Sequence[Stream],
    pictures: Sequence[Pictures],
    batch_size: int,
    progress: Callable[[int], None] = lambda count: None,
) -> list[Measured]:
    """Every device through its stream, in step with the others.

    streams, pictures: one per device. progress: told of each batch's pictures.
    Returns one entry per segment of the first device's stream, in order.
    """
    tallies = {_key(segment): Measured(segment, Tally()) for segment in streams[0].segments}
    ways = [_batches(stream, source, batch_size) for stream, source in zip(streams, pictures, strict=True)]
    for step, batches in enumerate(zip_longest(*ways)):
        answers = run.step([None if batch is None else batch[2] for batch in batches])
        run.learn([None if batch is None else batch[3] for batch in batches])
        for batch, answer in zip(batches, answers, strict=True):
            if batch is not None and answer is not None:
                segment, index_B, _, labels_B, mask_K = batch
                tallies[_key(segment)].tally.add(step, answer, index_B, labels_B, mask_K)
                progress(len(labels_B))
    return list(tallies.values())


def whole(measured: Sequence[Measured]) -> Tally:
    """All segments as one, in the order of time: several devices pass them at different times."""
    total, parts = Tally(), [entry.tally for entry in measured]
    of_part = (zip(each.step, each.index, each.correct, each.confidence, each.batch_s, strict=True) for each in parts)
    for step, index_B, correct_B, confidence_B, batch_s in sorted(chain.from_iterable(of_part), key=itemgetter(0)):
        total.step.append(step)
        total.index.append(index_B)
        total.correct.append(correct_B)
        total.confidence.append(confidence_B)
        total.batch_s.append(batch_s)
    for each in parts:
        total.digest.update(each.digest.digest())
        for name in _SUMS:
            setattr(total, name, getattr(total, name) + getattr(each, name))
    return total


def _key(segment: Segment) -> tuple[str, int, int]:
    return segment.corruption, segment.severity, segment.visit


def _batches(
    stream: Stream, pictures: Pictures, batch_size: int
) -> Iterator[tuple[Segment, Indices, NDArray[np.uint8], NDArray[np.int64], NDArray[np.bool_] | None]]:
    for segment in stream.segments:
        for index_B, images_BHWC, labels_B in pictures.batches(segment, batch_size):
            yield segment, index_B, images_BHWC, labels_B, pictures.dataset.mask
