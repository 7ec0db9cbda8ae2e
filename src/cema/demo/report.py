"""The demo's HTML report: one self-contained page with plots as inline SVG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files

import jinja2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cema import __version__
from cema.demo.edge_process import is_drift
from cema.demo.tally import EdgeTally

SMOOTHING_IMAGES = 192
"""Window of the plotted accuracy: three ticks."""
_ADAPTED, _SOURCE, _DRIFT = "#0b7285", "#adb5bd", "#fff3bf"


def render(tallies: Sequence[EdgeTally], *, dataset: str, method: str, wall_s: float) -> str:
    """The page."""
    source = files("cema.demo").joinpath("report.html.j2").read_text()
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(source)
    return template.render(
        edges=[
            {"summary": tally.summary(), "conditions": tally.by_condition(), "plot": _plot(tally)}
            for tally in tallies
            if tally.events
        ],
        dataset=dataset,
        method=method,
        wall_s=wall_s,
        version=__version__,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _plot(tally: EdgeTally) -> str:
    """Accuracy with the drift marked, bytes, and versions, over the images of the stream; SVG text."""
    figure = Figure(figsize=(9, 6.2), layout="constrained")
    accuracy, traffic, version = figure.subplots(3, 1, sharex=True, height_ratios=[3, 1.3, 1])
    images = np.cumsum([event.images for event in tally.events])
    _mark_drift(tally, images, (accuracy, traffic, version))
    sizes = np.asarray([event.images for event in tally.events])
    for label, colour, correct in (
        ("source", _SOURCE, [event.correct_source for event in tally.events]),
        ("adapted", _ADAPTED, [event.correct for event in tally.events]),
    ):
        accuracy.plot(images, 100 * _smooth(np.asarray(correct), sizes), color=colour, label=label, linewidth=1.8)
    accuracy.set_ylabel("accuracy, %")
    accuracy.set_ylim(0, 104)
    accuracy.legend(loc="lower left", frameon=False)
    traffic.plot(images, [event.bytes_up / 1024 for event in tally.events], color=_ADAPTED, label="up")
    traffic.plot(images, [event.bytes_down / 1024 for event in tally.events], color="#e8590c", label="down")
    traffic.set_ylabel("traffic, KiB")
    traffic.legend(loc="upper left", frameon=False)
    version.step(images, [event.version for event in tally.events], color=_ADAPTED, where="post")
    version.set_ylabel("version")
    version.set_xlabel("images seen")
    for axes in (accuracy, traffic, version):
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def _mark_drift(tally: EdgeTally, images: np.ndarray, all_axes: Sequence[Axes]) -> None:
    start = 0
    for condition, _, _, count in tally.by_condition():
        if is_drift(condition):
            for axes in all_axes:
                axes.axvspan(start, start + count, color=_DRIFT, linewidth=0, zorder=0)
        name = condition.replace("_", " ").replace("+", "\n")
        all_axes[0].text(start + count / 2, 102, name, ha="center", va="bottom", fontsize=8, color="#495057")
        start += count


def _smooth(correct: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Trailing mean over about SMOOTHING_IMAGES images."""
    window = max(1, round(SMOOTHING_IMAGES / float(sizes.mean())))
    ones = np.ones(window)
    return np.convolve(correct, ones)[: len(correct)] / np.convolve(sizes, ones)[: len(sizes)]
