"""Parts that the report's plots are drawn from: scales, axes, and names that keep out of each other's way.

Colours and fonts are the page's (CSS classes), so nothing here knows light from dark. Text goes through
``Markup.format``, which escapes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH = 720
"""Of the view box: one unit is about one pixel on a desktop page."""
LEFT, RIGHT, TOP, BOTTOM = 46, 18, 14, 48
"""Margins of the plot area."""
CHAR, LINE = 6.3, 14.0
"""Width of a character and height of a line of the page's 11 px text."""
PER_CENT = 100.0
_MAX_TICKS = 7
_STEPS = (0.5, 1, 2, 5, 10, 20, 25, 50)
"""Distances between accuracy ticks, percentage points."""
_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_ROOM = (0.5, 1.25)
"""Of a logarithmic axis beside the smallest and the largest size, as factors: for names at the left of a dot."""
_NAME_CHARS = 24
"""Longer names are cut in plots; the table has them in full."""

Point = tuple[float, float]
Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


@dataclass(frozen=True)
class Scale:
    """From values to places, linear: ``low`` stands at ``start``, ``high`` at ``end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)


def size_text(size_bytes: float) -> str:
    """Three figures and a decimal unit.

    >>> size_text(0), size_text(812.4), size_text(1_340_000)
    ('0 B', '812 B', '1.34 MB')
    """
    for factor, unit in _UNITS:
        if size_bytes >= 0.9995 * factor:
            value = size_bytes / factor
            return f"{value:.{2 - min(2, len(f'{value:.0f}') - 1)}f} {unit}"
    return f"{size_bytes:.1f} B" if 0 < size_bytes < 10 else f"{size_bytes:.0f} B"


def svg(title: str, height: float, parts: Iterable[str]) -> Markup:
    """The whole picture."""
    inside = Markup("\n").join(parts)
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(WIDTH, height, title, inside)


def accuracy_ticks(values: Sequence[float]) -> list[float]:
    """Round accuracies that enclose the values; all 0..1."""
    low, high = PER_CENT * min(values), PER_CENT * max(values)
    step = _nice((high - low) / (_MAX_TICKS - 1), _STEPS)
    first, last = math.floor((low - step / 4) / step), math.ceil((high + step / 4) / step)
    return [k * step / PER_CENT for k in range(max(first, 0), min(last, int(PER_CENT / step)) + 1)]


def size_ticks(sizes: Sequence[float]) -> list[float]:
    """Bytes that enclose the sizes with room beside them: powers of ten, and 2 and 5 times these on a short axis."""
    low, high = _ROOM[0] * min(sizes), _ROOM[1] * max(sizes)
    for factors in ((1, 2, 5), (1,)):
        every = [f * 10.0**e for e in range(-3, 16) for f in factors]
        first, last = max(t for t in every if t <= low), min(t for t in every if t >= high)
        inside = [tick for tick in every if first <= tick <= last]
        if len(inside) <= _MAX_TICKS + 1:
            break
    return inside


def accuracy_axis(ticks: Sequence[float], y: Scale, x_end: float = WIDTH - RIGHT) -> Markup:
    """Lines across, figures and a title at the left."""
    lines = (
        Markup(
            '<line class="grid" x1="{}" x2="{}" y1="{y}" y2="{y}"/><text class="tick" x="{}" y="{}">{}</text>'
        ).format(LEFT, x_end, LEFT - 7, y(tick) + 4, f"{PER_CENT * tick:g}", y=y(tick))
        for tick in ticks
    )
    caption = Markup('<text class="axis" transform="translate(11 {}) rotate(-90)">accuracy, %</text>')
    return Markup("").join(lines) + caption.format((y.start + y.end) / 2)


def images_axis(end: float, x: Scale, height: float) -> Markup:
    """Round numbers of images, and a title below."""
    step = _nice(end / _MAX_TICKS, [f * 10.0**e for e in range(9) for f in (1, 2, 5)])
    ticks = (tick_text(x(k * step), height, f"{k * step:,.0f}") for k in range(int(end / step) + 1))
    return Markup("").join(ticks) + axis_title("images seen", height)


def size_axis(ticks: Sequence[float], x: Scale, height: float) -> Markup:
    """x: of the logarithm to base 10."""
    return Markup("").join(
        Markup('<line class="grid" x1="{at}" x2="{at}" y1="{}" y2="{}"/>').format(TOP, height - BOTTOM, at=at)
        + tick_text(min(at, WIDTH - 18), height, size_text(tick).replace(".00", "").replace(".0", ""))
        for tick in ticks
        if (at := x(math.log10(tick)))
    )


def tick_text(x: float, height: float, text: str) -> Markup:
    """A figure below the plot area."""
    return Markup('<text class="tick middle" x="{}" y="{}">{}</text>').format(x, height - BOTTOM + 17, text)


def axis_title(text: str, height: float) -> Markup:
    """Below the figures."""
    return Markup('<text class="axis" x="{}" y="{}">{}</text>').format((LEFT + WIDTH - RIGHT) / 2, height - 8, text)


def label(name: str, x: float, y: float) -> Markup:
    """A name that starts at x, middle of its line at y."""
    return Markup('<text class="name" x="{}" y="{}">{}</text>').format(round(x, 1), round(y + 4, 1), short(name))


def short(name: str) -> str:
    """At most _NAME_CHARS characters."""
    return name if len(name) <= _NAME_CHARS else name[: _NAME_CHARS - 1] + "\N{HORIZONTAL ELLIPSIS}"


def pushed_apart(places: Sequence[float], low: float, high: float) -> list[float]:
    """Rising places, moved as little as need be to stand a line apart between low and high, closer if there is no
    room."""
    gap = min(LINE, (high - low) / max(1, len(places)))
    moved = list(places)
    for _ in range(100):
        for i in range(len(moved) - 1):
            if (lack := gap - (moved[i + 1] - moved[i])) > 0:
                moved[i], moved[i + 1] = moved[i] - lack / 2, moved[i + 1] + lack / 2
        moved = [min(max(place, low + i * gap), high - (len(moved) - 1 - i) * gap) for i, place in enumerate(moved)]
    return moved


def free_place(name: str, point: Point, taken: Sequence[Box], area: Box) -> Box:
    """Where a name beside a dot covers least: right, left, above, below, then further away."""
    x, y = point
    width = CHAR * len(short(name))
    offsets = [(10.0, 0.0), (-10 - width, 0.0), (-width / 2, -15.0), (-width / 2, 15.0)]
    offsets += [(dx, dy) for dy in (-15.0, 15.0, -29.0, 29.0) for dx in (8.0, -8 - width)]
    boxes = [(x + dx, y + dy - LINE / 2, x + dx + width, y + dy + LINE / 2) for dx, dy in offsets]
    return min(boxes, key=lambda box: sum(_overlap(box, other) for other in taken) + 1e3 * _outside(box, area))


def _nice(least: float, steps: Sequence[float]) -> float:
    return next((step for step in steps if step >= least), steps[-1])


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _outside(box: Box, area: Box) -> float:
    return max(area[0] - box[0], 0) + max(area[1] - box[1], 0) + max(box[2] - area[2], 0) + max(box[3] - area[3], 0)
