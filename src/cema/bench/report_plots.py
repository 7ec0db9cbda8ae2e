"""The report's two plots as inline SVG: accuracy against traffic, accuracy over the stream."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from cema.bench.report_svg import (
    BOTTOM,
    CHAR,
    LEFT,
    LINE,
    PER_CENT,
    RIGHT,
    TOP,
    WIDTH,
    Box,
    Point,
    Scale,
    accuracy_axis,
    accuracy_ticks,
    axis_title,
    free_place,
    images_axis,
    label,
    pushed_apart,
    size_axis,
    size_text,
    size_ticks,
    svg,
    tick_text,
)  # fmt: skip
from cema.bench.rows import Where

SHAPES: dict[Where, str] = {
    "none": "M-5-5h10v10h-10z",
    "forward": "M0-6.5L6.5 5h-13z",
    "backward": "M0-6.5L6.5 0L0 6.5L-6.5 0z",
    "cloud": "M-6 0a6 6 0 1 0 12 0a6 6 0 1 0-12 0z",
}
"""Marker of each device class, so that colour is not needed."""
SHADES = 3
"""Colours per device class; then the dashes change."""
DASHES = ("", "6 3", "2 3", "9 3 2 3")
_PARETO_HEIGHT, _STREAM_HEIGHT = 440.0, 400.0
_NAMES_TOP = 84.0
"""Room for the slanted names of the stretches."""
_ZERO_WIDTH = 210.0
"""Of the column for methods without traffic, which a logarithmic axis has no place for."""
_DOT = 13.0
"""Size of a marker with some air."""
_CEILING = "labels (ceiling)"


@dataclass(frozen=True)
class Dot:
    """A method in the Pareto plot. size_bytes: both ways. eligible: may be part of the frontier."""

    name: str
    where: Where
    size_bytes: float
    accuracy: float
    eligible: bool


@dataclass(frozen=True)
class Line:
    """A method over the stream. points: (images seen, accuracy). index: place among those of its device class."""

    name: str
    where: Where
    index: int
    points: Sequence[Point]

    @property
    def style(self) -> str:
        """Class of the page's colours."""
        return f"{self.where} s{self.index % SHADES}"

    @property
    def dash(self) -> str:
        return DASHES[self.index // SHADES % len(DASHES)]


def frontier(dots: Iterable[Dot]) -> list[Dot]:
    """Eligible methods that no other eligible one beats with as little traffic, by rising traffic."""
    best: list[Dot] = []
    for dot in sorted((dot for dot in dots if dot.eligible), key=lambda dot: (dot.size_bytes, -dot.accuracy)):
        if not best or dot.accuracy > best[-1].accuracy:
            best.append(dot)
    return best


def pareto(dots: Sequence[Dot], ceiling: float | None, stream: str) -> Markup:
    """Accuracy against bytes, logarithmic; what sends nothing stands at the left.

    dots: at least one with traffic. ceiling: accuracy of the reference with true labels. stream: what the bytes are of.
    """
    height, floor = _PARETO_HEIGHT, _PARETO_HEIGHT - BOTTOM
    ticks = accuracy_ticks([*(dot.accuracy for dot in dots), *([] if ceiling is None else [ceiling])])
    y = Scale(ticks[0], ticks[-1], floor, TOP)
    silent, sending = [dot for dot in dots if not dot.size_bytes], [dot for dot in dots if dot.size_bytes]
    split = LEFT + (_ZERO_WIDTH if silent else 0.0)
    sizes = size_ticks([dot.size_bytes for dot in sending])
    x = Scale(math.log10(sizes[0]), math.log10(sizes[-1]), split, WIDTH - RIGHT)
    places = _swarm(silent, y) | {dot: (x(math.log10(dot.size_bytes)), y(dot.accuracy)) for dot in sending}
    taken = [(px - _DOT / 2, py - _DOT / 2, px + _DOT / 2, py + _DOT / 2) for px, py in places.values()]
    parts = [_zero_column(split, height)] if silent else []
    parts += [
        accuracy_axis(ticks, y),
        size_axis(sizes, x, height),
        axis_title(f"bytes up and down per {stream}", height),
    ]
    parts.append(_frontier_line([places[dot] for dot in frontier(dots)]))
    if ceiling is not None:
        parts.append(_ceiling(y(ceiling)))
        taken.append((WIDTH - RIGHT - CHAR * len(_CEILING), y(ceiling) - LINE, WIDTH - RIGHT, y(ceiling)))
    parts += _silent_names([(dot, places[dot]) for dot in silent])
    parts += [_marker(dot, *places[dot]) for dot in dots]
    parts += _sending_names([(dot, places[dot]) for dot in sending], taken, (split, TOP, WIDTH, floor))
    return svg("accuracy against traffic", height, parts)


def stream_plot(lines: Sequence[Line], stretches: Sequence[tuple[str, float]], images: float) -> Markup:
    """Accuracy over the images of the stream. stretches: (name, last image) of the conditions passed through."""
    height, top = _STREAM_HEIGHT, _NAMES_TOP if stretches else TOP
    ticks = accuracy_ticks([value for line in lines for _, value in line.points])
    y = Scale(ticks[0], ticks[-1], height - BOTTOM, top)
    right = WIDTH - (3 * RIGHT if stretches else RIGHT)
    x = Scale(0, images, LEFT, right)
    starts = [0.0, *(last for _, last in stretches)]
    parts = [
        _stretch(name, (x(start), x(last)), index, (top, height - BOTTOM))
        for index, ((name, last), start) in enumerate(zip(stretches, starts, strict=False))
    ]
    parts += [accuracy_axis(ticks, y, right), images_axis(images, x, height)]
    for line in sorted(lines, key=lambda line: line.where == "cloud"):
        path = " ".join(f"{x(seen):g},{y(value):g}" for seen, value in line.points)
        parts.append(
            Markup('<g class="line {}"><title>{}</title><polyline points="{}" stroke-dasharray="{}"/></g>').format(
                line.style, line.name, path, line.dash
            )
        )
    return svg("accuracy over the stream", height, parts)


def _swarm(dots: Sequence[Dot], y: Scale) -> dict[Dot, Point]:
    """In the column of those that send nothing: side by side where they would cover each other."""
    places: dict[Dot, Point] = {}
    for dot in sorted(dots, key=lambda dot: -dot.accuracy):
        at, x = y(dot.accuracy), LEFT + _DOT
        while any(abs(x - px) < _DOT and abs(at - py) < _DOT for px, py in places.values()):
            x += _DOT
        places[dot] = (x, at)
    return places


def _zero_column(split: float, height: float) -> Markup:
    rectangle = Markup('<rect class="zero" x="{}" y="{}" width="{}" height="{}"/>').format(
        LEFT, TOP, split - LEFT - 12, height - TOP - BOTTOM
    )
    return rectangle + tick_text((LEFT + split - 12) / 2, height, "no traffic")


def _ceiling(y: float) -> Markup:
    return Markup(
        '<line class="ceiling" x1="{}" x2="{x}" y1="{y}" y2="{y}"/><text class="remark end" x="{x}" y="{}">{}</text>'
    ).format(LEFT, round(y - 4, 1), _CEILING, x=WIDTH - RIGHT, y=y)


def _frontier_line(points: Sequence[Point]) -> Markup:
    """Steps: an accuracy is to be had from its traffic upwards."""
    if not points:
        return Markup("")
    path = f"M{points[0][0]:g} {points[0][1]:g}"
    path += "".join(f"H{x:g}V{y:g}" for x, y in points[1:]) + f"H{WIDTH - RIGHT}"
    return Markup('<path class="frontier" d="{}"/>').format(path)


def _marker(dot: Dot, x: float, y: float) -> Markup:
    tip = f"{dot.name}: {PER_CENT * dot.accuracy:.1f} %, {size_text(dot.size_bytes)}"
    return Markup('<path class="dot {}" transform="translate({} {})" d="{}"><title>{}</title></path>').format(
        dot.where, x, y, SHAPES[dot.where], tip
    )


def _silent_names(dots: Sequence[tuple[Dot, Point]]) -> list[Markup]:
    """In a column beside the dots, with a line to each."""
    ordered = sorted(dots, key=lambda item: (item[1][1], -item[1][0]))
    lines = pushed_apart([y for _, (_, y) in ordered], TOP + LINE / 2, _PARETO_HEIGHT - BOTTOM - LINE / 2)
    column = max((x for _, (x, _) in ordered), default=0.0) + 2 * _DOT
    return [
        Markup('<path class="leader" d="M{} {}L{} {}"/>').format(x, y, round(column - 3, 1), round(line, 1))
        + label(dot.name, column, line)
        for (dot, (x, y)), line in zip(ordered, lines, strict=True)
    ]


def _sending_names(dots: Sequence[tuple[Dot, Point]], taken: list[Box], area: Box) -> list[Markup]:
    """One after the other, each out of the way of the dots and of those before."""
    names = []
    for dot, point in dots:
        box = free_place(dot.name, point, taken, area)
        taken.append(box)
        names.append(label(dot.name, box[0], (box[1] + box[3]) / 2))
    return names


def _stretch(name: str, x: tuple[float, float], index: int, y: tuple[float, float]) -> Markup:
    """Every second stretch is shaded; the name stands slanted above its middle."""
    return Markup(
        '<rect class="stretch{}" x="{}" y="{}" width="{}" height="{}"/>'
        '<text class="remark" transform="translate({} {}) rotate(-52)">{}</text>'
    ).format(index % 2, x[0], y[0], round(x[1] - x[0], 1), y[1] - y[0], round(sum(x) / 2 + 3, 1), y[0] - 5, name)
