"""One cell from beginning to end, in whatever process: data, models, streams, run, rows."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

import msgspec
import numpy as np

from cema.bench.datasets import Absent, Dataset, load_dataset
from cema.bench.grid import Cell, Spec
from cema.bench.measure import Tally, measure, whole
from cema.bench.own import code_digest
from cema.bench.pairs import PairNames, load_pair
from cema.bench.rows import ALL, Row
from cema.bench.simulate import Pair
from cema.bench.start import Conditions, Started, start
from cema.bench.streams import Condition, Pictures, Stream, for_edge, make_streams
from cema.cloud.memory import release_freed_memory
from cema.errors import ConfigError
from cema.types import Uint8Array

CLEAN_PICTURES = 2000
"""At most, from outside the stream, for methods that prepare with some (EATA's published number)."""
_DIGEST_PICTURES = 16


@dataclass
class Workplace:
    """What the cells of a run share within a process; loaded when first needed."""

    spec: Spec
    names: PairNames
    data: Path | None
    cache_dir: Path | None
    threads: int

    @cached_property
    def everything(self) -> Dataset:
        return load_dataset(self.spec.dataset, self.data)

    @cached_property
    def dataset(self) -> Dataset:
        return self.everything.part(self.spec.skip, self.spec.limit)

    @cached_property
    def pair(self) -> Pair:
        return load_pair(self.names, self.dataset.classes)

    def clean(self) -> tuple[Uint8Array, str]:
        """(clean pictures, ``outside`` or ``stream``): outside the stream if the data set has more than is streamed."""
        images, first = self.everything.images, self.spec.skip
        if isinstance(images, Absent):
            raise ConfigError(
                f"this method prepares with clean pictures: {images.message}", hint="leave the method out"
            )
        outside = [*images[first + len(self.dataset) :][:CLEAN_PICTURES], *images[:first][-CLEAN_PICTURES:]]
        if outside:
            return np.stack(outside[:CLEAN_PICTURES]), "outside"
        return np.stack(list(self.dataset.images[:CLEAN_PICTURES])), "stream"

    def pictures(self, seed: int) -> Pictures:
        return Pictures(self.dataset, seed, self.cache_dir)


def run_cell(place: Workplace, cell: Cell, progress: object = None) -> list[Row]:
    """Rows of one cell: one per segment of the stream, and one for the whole where there are several."""
    spec = place.spec
    gc.collect()
    release_freed_memory()
    labels_N, classes = place.dataset.labels, len(place.pair.bundle.manifest.classes)
    if labels_N.max() >= classes:
        raise ConfigError(f"expected labels below {classes}, the answers of the edge model, got {labels_N.max()}")
    (stream,) = make_streams(spec.setting, cell.corruptions, spec.severity, labels_N, cell.seed, spec.shape)
    started = _start(place, cell, stream)
    report = progress if callable(progress) else lambda count: None
    measured = measure(
        started.run,
        [for_edge(stream, edge, spec.edges) for edge in range(spec.edges)],
        [place.pictures(cell.seed)] * spec.edges,
        spec.batch_size,
        report,
    )
    rows = [
        _row(place, cell, started, each.tally, each.segment.corruption, each.segment.severity, each.segment.visit)
        for each in measured
    ]
    if len(measured) > 1:
        rows.append(_row(place, cell, started, whole(measured), ALL, spec.severity, 0))
    return rows


def _start(place: Workplace, cell: Cell, stream: Stream) -> Started:
    spec = place.spec
    conditions = Conditions(
        first_batch=min(spec.batch_size, len(stream.segments[0])),
        seed=cell.seed,
        edges=spec.edges,
        link=spec.link,
        delay=cell.delay,
        fps=spec.fps,
        threads=place.threads,
        options=spec.options.get(cell.method, {}),
    )
    return start(cell.method, place.pair, conditions, place.clean)


def _row(
    place: Workplace, cell: Cell, started: Started, tally: Tally, corruption: str, severity: int, visit: int
) -> Row:
    spec, probe = place.spec, started.run.probe
    values = {
        "method": cell.method,
        "options": dict(started.options),
        "where": started.where,
        "dataset": place.dataset.name,
        "corruption": corruption,
        "severity": severity,
        "visit": visit,
        "setting": spec.setting,
        "batch_size": spec.batch_size,
        "seed": cell.seed,
        "edges": spec.edges,
        "link": spec.link.name,
        "delay": cell.delay,
        "stream": " ".join(filter(None, (spec.stream, str(place.names)))),
        "peak_rss_mb": round(probe.process_peak_mb, 1),
        "edge_peak_mb": _rounded(probe.peak_mb("edge")),
        "cloud_peak_mb": _rounded(probe.peak_mb("cloud")),
        **tally.figures(),
    }
    return msgspec.convert(values, Row)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def identity(dataset: Dataset, names: PairNames, conditions: Iterable[Condition] = ()) -> str:
    """Digest of what a cell's file must not be mistaken for: labels, some pictures, model names and weights.

    conditions: of the streams; of sets that come corrupted, some pictures of each. Raises ConfigError for a file that
    is not there.
    """
    digest = hashlib.sha256(np.ascontiguousarray(dataset.labels).tobytes())
    samples = [] if isinstance(dataset.images, Absent) else [dataset.images]
    if dataset.stored is not None:
        samples += [dataset.condition(*condition, seed=0) for condition in conditions]
    for image in chain.from_iterable(sample[:_DIGEST_PICTURES] for sample in samples):
        digest.update(np.ascontiguousarray(image).tobytes())
    digest.update(repr((names.edge, names.foundation)).encode())
    for path in filter(None, (names.edge_weights, names.foundation_weights)):
        digest.update(_weights(Path(path)))
    digest.update(code_digest(filter(None, (names.edge, names.foundation))).encode())
    return digest.hexdigest()[:16]


def _weights(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"expected weights at {path}: {error.strerror}", hint="--data, or weights by option"
        ) from error
