"""One cell from beginning to end, in whatever process: data, models, streams, run, rows."""

from __future__ import annotations

import gc
import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np

from cema.bench.datasets import Absent, Dataset, load_dataset
from cema.bench.grid import Cell, Spec
from cema.bench.measure import Tally, measure, whole
from cema.bench.pairs import PairNames, load_pair
from cema.bench.rows import ALL, Row
from cema.bench.simulate import Pair
from cema.bench.start import Conditions, Started, start
from cema.bench.streams import Pictures, for_edge, make_streams
from cema.cloud.memory import release_freed_memory
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
    labels_N = place.dataset.labels
    (stream,) = make_streams(spec.setting, cell.corruptions, spec.severity, labels_N, cell.seed, spec.shape)
    started = _start(place, cell)
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


def _start(place: Workplace, cell: Cell) -> Started:
    spec = place.spec
    conditions = Conditions(
        batch_size=spec.batch_size,
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
        "stream": spec.stream,
        "peak_rss_mb": round(probe.process_peak_mb, 1),
        "edge_peak_mb": _rounded(probe.peak_mb("edge")),
        "cloud_peak_mb": _rounded(probe.peak_mb("cloud")),
        **tally.figures(),
    }
    return msgspec.convert(values, Row)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def identity(dataset: Dataset, names: PairNames) -> str:
    """Digest of what a cell's file must not be mistaken for: labels, some pictures, model names and weights."""
    digest = hashlib.sha256(np.ascontiguousarray(dataset.labels).tobytes())
    for image in () if isinstance(dataset.images, Absent) else dataset.images[:_DIGEST_PICTURES]:
        digest.update(np.ascontiguousarray(image).tobytes())
    digest.update(repr((names.edge, names.foundation)).encode())
    for path in filter(None, (names.edge_weights, names.foundation_weights)):
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()[:16]
