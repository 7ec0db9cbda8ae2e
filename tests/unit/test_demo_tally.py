"""The demo's sums, stream and report."""

from __future__ import annotations

import math
from html.parser import HTMLParser

import numpy as np
import pytest

from cema.bench.datasets import load_dataset
from cema.demo.edge_process import EdgeEvent, EdgePlan, frames
from cema.demo.report import render
from cema.demo.scenario import CLEAN, SCENARIOS, TICK_IMAGES, corruption_steps, scenario
from cema.demo.table import live_table, summary_table
from cema.demo.tally import EdgeTally
from cema.errors import ConfigError


def event(condition: str, correct: int, correct_source: int, version: int = 0) -> EdgeEvent:
    return EdgeEvent(
        edge="edge-1", condition=condition, images=10, correct=correct, correct_source=correct_source, selected=4,
        version=version, latency_ms=2.0 + version, bytes_up=100 * version, bytes_down=10 * version,
        updates_applied=version, at_s=float(version),
    )  # fmt: skip


@pytest.fixture
def tally() -> EdgeTally:
    events = [event(CLEAN, 10, 10), event("fog:5", 5, 3, 1), event("fog:5", 9, 4, 2), event(CLEAN, 9, 10, 3)]
    return EdgeTally("edge-1", events)


def test_summary_separates_drift_from_clean(tally: EdgeTally) -> None:
    summary = tally.summary()
    assert summary["accuracy_adapted"] == pytest.approx(0.7)
    assert summary["accuracy_source"] == pytest.approx(0.35)
    assert summary["accuracy_adapted_clean"] == pytest.approx(0.95)
    assert summary["accuracy_source_clean"] == pytest.approx(1.0)
    assert (summary["samples"], summary["uploads"], summary["updates_applied"]) == (40, 16, 3)
    assert (summary["bytes_up"], summary["bytes_down"]) == (300, 30)
    assert summary["latency_ms_p50"] == pytest.approx(3.5)
    assert tally.helped


def test_a_condition_that_returns_has_a_row_of_its_own(tally: EdgeTally) -> None:
    assert [(name, images) for name, _, _, images in tally.by_condition()] == [(CLEAN, 10), ("fog:5", 20), (CLEAN, 10)]


def test_recent_accuracy_looks_at_the_present_condition_only(tally: EdgeTally) -> None:
    assert tally.recent() == pytest.approx(0.9)
    assert tally.recent(source=True) == pytest.approx(1.0)


def test_adaptation_that_equals_the_source_did_not_help() -> None:
    assert not EdgeTally("edge-1", [event("fog:5", 5, 5)]).helped
    assert not EdgeTally("edge-1").helped
    assert math.isnan(EdgeTally("edge-1").accuracy(drift=True))


def test_tables_have_a_row_per_edge_and_per_stretch(tally: EdgeTally) -> None:
    assert live_table([tally, EdgeTally("edge-2")]).row_count == 2
    assert summary_table([tally]).row_count == 4


class Page(HTMLParser):
    """Collects what a self-contained page must not have, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        outside = [v for k, v in attrs if k in ("src", "href") and v and not v.startswith("#")]
        assert outside == []

    def handle_data(self, data: str) -> None:
        self.text += data


def test_report_is_self_contained_and_names_every_edge_and_stretch(tally: EdgeTally) -> None:
    page = Page()
    page.feed(render([tally, EdgeTally("silent")], dataset="digits", method="<script>", wall_s=3.0))
    assert "script" not in page.tags
    assert page.tags.count("svg") == 1
    for word in ("edge-1", "fog:5", "70.0", "+35.0"):
        assert word in page.text


def plan(**changes: object) -> EdgePlan:
    values = {
        "name": "e", "device": "", "bundle": "", "dataset": "digits", "data": None, "batch_size": 16, "seed": 1,
        "phases": [(CLEAN, 64), ("contrast:5", 40)], "seconds": 0.0,
    }  # fmt: skip
    return EdgePlan(**(values | changes))  # type: ignore[arg-type]


def test_stream_is_repeatable_covers_every_image_once_a_pass_and_corrupts_only_the_drift() -> None:
    digits = load_dataset("digits", None)
    count = len(digits.labels)
    long = plan(phases=[(CLEAN, count)], batch_size=100)
    seen = np.concatenate([np.stack(images) for _, images, _ in frames(long, digits)])
    assert len(np.unique(seen.reshape(count, -1), axis=0)) == len(
        np.unique(np.asarray(digits.images).reshape(count, -1), axis=0)
    )
    first, second = (list(frames(plan(), digits)) for _ in range(2))
    assert [condition for condition, _, _ in first] == [CLEAN] * 4 + ["contrast:5"] * 3
    assert sum(len(labels) for _, _, labels in first) == 104
    for (_, a, _), (_, b, _) in zip(first, second, strict=True):
        np.testing.assert_array_equal(np.stack(a), np.stack(b))
    assert np.ptp(np.stack(first[-1][1])) < np.ptp(np.stack(first[0][1]))


@pytest.mark.parametrize("name", list(SCENARIOS))
def test_scenarios_drift_and_pause_in_whole_ticks_and_differ_between_edges(name: str) -> None:
    phases = [scenario(name).phases(edge, scenario(name).images) for edge in (0, 1)]
    assert phases[0] != phases[1]
    for found in phases:
        conditions = [phase.condition for phase, _ in found]
        assert conditions[0] == CLEAN
        assert conditions.count(CLEAN) == 2
        assert all(count % TICK_IMAGES == 0 for _, count in found)


def test_conditions_are_steps_in_order() -> None:
    assert corruption_steps("snow:5+contrast:3") == [("snow", 5), ("contrast", 3)]
    assert corruption_steps(CLEAN) == []


def test_scenario_with_weights_needs_a_data_folder() -> None:
    with pytest.raises(ConfigError, match="folder"):
        scenario("cifar10").weights(None)
    with pytest.raises(ConfigError, match="dataset"):
        scenario("cifar100")
