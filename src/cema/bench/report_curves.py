"""Accuracy over the stream: which rows follow each other, and one line per method.

The rows of one group come in; the report's page draws what goes out.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cema.bench.grouping import WHOLE_STREAM, Identity, averaged, identity_of
from cema.bench.report_plots import Line
from cema.bench.report_svg import Point
from cema.bench.rows import CURVE_WINDOW, Row, Where
from cema.bench.streams import PASSING

_MAX_POINTS = 60
"""Of one line: more is noise."""
_MAX_STRETCHES = 20
"""More names have no room above the plot."""


@dataclass(frozen=True)
class StreamLines:
    """lines: in the order asked for. stretches: (name, its last image) where one stream passes through several
    conditions, else empty. images: of the longest stream. caption: what a point is."""

    lines: list[Line]
    stretches: list[tuple[str, float]]
    images: int
    caption: str


def stream_lines(rows: Sequence[Row], names: Mapping[Identity, str]) -> StreamLines:
    """rows: of one group. names: of the methods wanted, in order; those without curves are left out."""
    streams = {who: _streams([row for row in rows if identity_of(row.method, row.options) == who]) for who in names}
    place: Counter[Where] = Counter()
    lines: list[Line] = []
    for who, several in streams.items():
        if points := _mean_curve([_curve(stream) for stream in several]):
            where = several[0][0].where
            lines.append(Line(names[who], where, place[where], points))
            place[where] += 1
    together = rows[0].setting in PASSING and rows[0].edges == 1  # else each device is in a stretch of its own
    images = max((sum(row.samples for row in one) for several in streams.values() for one in several), default=0)
    return StreamLines(lines, _stretches(rows) if together else [], images, _caption(rows[0], streams.values()))


def _caption(row: Row, streams: Iterable[Sequence[Sequence[Row]]]) -> str:
    longest = max((len(_curve(stream)) for several in streams for stream in several), default=0)
    images = CURVE_WINDOW * math.ceil(longest / _MAX_POINTS)
    mean = "mean over seeds" if row.setting in PASSING else "mean over corruptions and seeds, each from its start"
    together = ", the devices' images counted together" if row.edges > 1 else ""
    return f"A point is the accuracy of {images:,} images{together}; {mean}."


def _streams(rows: Sequence[Row]) -> list[list[Row]]:
    """Streams to average: whole streams if their curves are known, else stretches put together, or each alone."""
    whole = [[row] for row in rows if row.corruption in WHOLE_STREAM and row.curve]
    parts = [row for row in rows if row.corruption not in WHOLE_STREAM and row.curve]
    if whole or not parts:
        return whole
    if parts[0].setting not in PASSING:
        chosen = averaged(row.corruption for row in parts)
        return [[row] for row in parts if row.corruption in chosen]
    of_seed: dict[int, list[Row]] = defaultdict(list)
    for row in parts:
        of_seed[row.seed].append(row)
    return list(of_seed.values())


def _curve(stream: Sequence[Row]) -> list[Point]:
    """(images seen, accuracy), each window at its middle."""
    points, start = [], 0
    for row in stream:
        ends = [min((i + 1) * CURVE_WINDOW, row.samples) for i in range(len(row.curve))]
        points += [
            (start + (i * CURVE_WINDOW + end) / 2, v) for i, (end, v) in enumerate(zip(ends, row.curve, strict=True))
        ]
        start += row.samples
    return points


def _mean_curve(curves: Sequence[Sequence[Point]]) -> list[Point]:
    """As long as the shortest, thinned to _MAX_POINTS by taking the mean of neighbours."""
    each = [tuple(map(statistics.fmean, zip(*at, strict=True))) for at in zip(*curves, strict=False)]
    step = math.ceil(len(each) / _MAX_POINTS) or 1
    chunks = (each[i : i + step] for i in range(0, len(each), step))
    return [(statistics.fmean(x for x, _ in chunk), statistics.fmean(y for _, y in chunk)) for chunk in chunks]


def _stretches(rows: Sequence[Row]) -> list[tuple[str, float]]:
    """Of the first seed of the first method."""
    first = rows[0]
    found, end = [], 0
    for row in rows:
        same = (row.method, row.options, row.seed) == (first.method, first.options, first.seed)
        if same and row.corruption not in WHOLE_STREAM:
            end += row.samples
            found.append((row.corruption.replace("_", " "), float(end)))
    return found if len(found) <= _MAX_STRETCHES else []
