"""The report's plots: the frontier, axes, names that keep apart, and accuracy over the stream."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest

from cema.bench.report_curves import stream_lines
from cema.bench.report_page import group_pages
from cema.bench.report_plots import Dot, frontier, pareto
from cema.bench.report_svg import accuracy_ticks, free_place, pushed_apart, size_text, size_ticks
from cema.bench.rows import Row

NAMES = {("bn", "{}"): "bn"}


def row(corruption: str, curve: list[float], **other: Any) -> Row:
    values: dict[str, Any] = {
        "method": "bn", "where": "forward", "dataset": "cifar10", "severity": 5, "setting": "reset", "batch_size": 64,
        "seed": 0, "samples": 1000, "accuracy": 0.5, "accuracy_second_half": 0.5, "error": 0.5, "ece": 0.1,
        "uploads": 0, "bytes_up": 0, "bytes_down": 0, "edge_s": 1.0, "edge_ms_p50": 1.0, "edge_ms_p99": 2.0,
        "cloud_s": 0.0, "peak_rss_mb": 500.0,
    } | other  # fmt: skip
    return Row(corruption=corruption, curve=curve, **values)


def test_the_frontier_is_what_nothing_cheaper_beats() -> None:
    def dot(name: str, size: float, accuracy: float, eligible: bool = True) -> Dot:
        return Dot(name, "cloud", size, accuracy, eligible)

    dots = [dot("dear", 900, 0.9), dot("worse", 950, 0.8), dot("free", 0, 0.5), dot("free too", 0, 0.6)]
    dots += [dot("cheap", 10, 0.7), dot("same", 20, 0.7), dot("trained", 0, 0.95, False)]
    assert [one.name for one in frontier(dots)] == ["free too", "cheap", "dear"]


def test_the_pareto_plot_is_logarithmic_with_the_silent_at_the_left() -> None:
    dots = [Dot(str(size), "cloud", size, 0.5, True) for size in (0.0, 1e3, 1e4, 1e5)]
    found = re.findall(r'class="dot cloud" transform="translate\(([\d.]+) ', pareto(dots, 0.9, "day"))
    places = [float(x) for x in found]
    assert len(places) == 4
    assert places[0] < places[1]
    assert places[2] - places[1] == pytest.approx(places[3] - places[2], abs=0.2)


def test_names_in_the_plots_do_not_cover_each_other() -> None:
    apart = pushed_apart([10, 10, 11, 40], 0, 100)
    assert all(after - before > 13.9 for before, after in pairwise(apart))
    assert min(pushed_apart([0, 0, 0], 0, 10)) >= 0
    assert max(pushed_apart([9, 9, 9], 0, 10)) <= 10
    area = (0.0, 0.0, 200.0, 200.0)
    first = free_place("name", (100, 100), [], area)
    second = free_place("name", (100, 100), [first], area)
    assert first[0] > 100, "at the right if that is free"
    assert second[2] <= first[0] or second[1] >= first[3] or second[3] <= first[1]
    assert free_place("name", (195, 100), [], area)[2] <= 195, "not out of the plot"


@pytest.mark.parametrize("values", [[0.5], [0.0, 1.0], [0.513, 0.518], [1.0], [0.0], [0.02, 0.3]])
def test_ticks_enclose_the_values(values: list[float]) -> None:
    ticks = accuracy_ticks(values)
    assert 2 <= len(ticks) <= 9
    assert 0 <= ticks[0] <= min(values)
    assert max(values) <= ticks[-1] <= 1
    sizes = [value * 1e6 + 1 for value in values]
    assert size_ticks(sizes)[0] < min(sizes)
    assert max(sizes) < size_ticks(sizes)[-1]


def test_sizes_have_three_figures() -> None:
    sizes = (0, 0.5, 12, 999, 999.6, 12_345, 999_999, 1e6, 123_456_789, 2.5e9)
    assert [size_text(size) for size in sizes] == [
        "0 B", "0.5 B", "12 B", "999 B", "1.00 kB", "12.3 kB", "1.00 MB", "1.00 MB", "123 MB", "2.50 GB",
    ]  # fmt: skip


def test_curves_of_separate_streams_are_averaged_from_their_starts() -> None:
    rows = [row("fog", [0.2, 0.4], samples=150), row("snow", [0.4, 0.8], samples=150)]
    lines = stream_lines(rows, NAMES)
    (line,) = lines.lines
    assert [images for images, _ in line.points] == [50, 125]
    assert [accuracy for _, accuracy in line.points] == pytest.approx([0.3, 0.6])
    assert (lines.stretches, lines.images) == ([], 150)


def test_curves_of_a_passing_stream_follow_each_other() -> None:
    other: dict[str, Any] = {"samples": 100, "setting": "continual"}
    rows = [row("snow", [0.2], **other), row("fog", [0.6], **other)]
    lines = stream_lines(rows, NAMES)
    assert lines.lines[0].points == [(50, 0.2), (150, 0.6)]
    assert (lines.stretches, lines.images) == ([("snow", 100), ("fog", 200)], 200)
    whole = row("all", [0.3, 0.5], samples=200, setting="continual")
    assert stream_lines([*rows, whole], NAMES).lines[0].points == [(50, 0.3), (150, 0.5)]


def test_long_curves_are_thinned_by_means() -> None:
    curve = [0.0, 1.0] * 50
    lines = stream_lines([row("fog", curve, samples=10_000)], NAMES)
    assert len(lines.lines[0].points) == 50
    assert lines.lines[0].points[0] == (100, 0.5)
    assert lines.caption.startswith("A point is the accuracy of 200 images")


def test_several_devices_pass_the_stretches_at_different_times_so_that_none_is_drawn() -> None:
    other: dict[str, Any] = {"samples": 200, "setting": "continual", "edges": 2}
    rows = [row("snow", [0.2, 0.3], **other), row("fog", [0.6, 0.5], **other)]
    whole = row("all", [0.2, 0.3, 0.6, 0.5], **{**other, "samples": 400})
    assert stream_lines([*rows, whole], NAMES).stretches == []


@pytest.mark.parametrize(("setting", "unit"), [("reset", "stream"), ("continual", "stretch"), ("mixed", "stream")])
def test_bytes_of_a_passing_stream_are_said_to_be_of_a_stretch(setting: str, unit: str) -> None:
    (page,) = group_pages([row("fog", [], method="cema", where="cloud", bytes_up=9, setting=setting)])
    assert page.unit == unit
    assert page.pareto is not None
    assert f"bytes up and down per {unit} of 1,000 images" in page.pareto
