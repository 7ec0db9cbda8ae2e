"""The tools of ``cema bench perf``: turns, ratios, targets."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cema.bench.datasets import load_dataset
from cema.bench.perf import follow
from cema.bench.perf.models import PerfPair
from cema.bench.perf.rows import Sheet
from cema.bench.perf.run import SECTIONS, PerfOptions, measure
from cema.bench.perf.timing import median_ms, ratio, take_turns
from cema.cli import bench_perf
from cema.errors import ConfigError


class Clock:
    """Time passes only while a contestant runs."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now_s

    def runner(self, name: str, *seconds: float) -> Callable[[], None]:
        durations = iter(seconds)

        def run() -> None:
            self.order.append(name)
            self.now_s += next(durations)

        return run


def test_contestants_take_turns_and_each_begins_as_often() -> None:
    clock = Clock()
    taken = take_turns(
        {"a": clock.runner("a", 9, 2, 2), "b": clock.runner("b", 9, 1, 4)}, rounds=2, warm_up=1, clock=clock
    )
    assert clock.order == ["a", "b", "b", "a", "a", "b"]
    assert taken == {"a": [2, 2], "b": [1, 4]}
    assert median_ms(taken, "b") == 2500


def test_a_ratio_is_taken_within_each_turn_so_that_a_slow_spell_cancels_out() -> None:
    spells = [1, 1, 10, 10, 10]  # the machine is ten times slower from the third turn on
    timings = {"slow": [2.0 * s for s in spells], "fast": [1.0 * s for s in spells]}
    timings["fast"][1] = 50.0  # one outlier
    assert ratio(timings, "slow", "fast") == 2.0


def test_targets_are_met_missed_or_absent() -> None:
    sheet = Sheet("edge")
    sheet.at_most("a", "ms", 3, 3.0)
    sheet.at_most("b", "ms", 3, 3.01, "why")
    sheet.at_least("c", "x", 4, 4.2)
    sheet.report("d", "s", 1 / 3)
    assert [(row.name, row.target, row.met) for row in sheet.rows] == [
        ("a", "<= 3", True), ("b", "<= 3", False), ("c", ">= 4", True), ("d", "", None),
    ]  # fmt: skip
    assert sheet.rows[3].value == 0.3333
    assert (sheet.rows[1].section, sheet.rows[1].detail) == ("edge", "why")


def test_an_unknown_section_is_refused_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match=r"out of limits, start, .*, int8, got speed"):
        measure(["limits", "speed"], PerfOptions(None), lambda name: None)


def test_the_command_measures_every_section_unless_told_otherwise() -> None:
    assert bench_perf._SECTIONS.split(",") == list(SECTIONS)


def test_a_device_that_follows_is_measured_while_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "BLOCK_S", 0.05)
    pair, sheet = PerfPair("digits-edge", "digits-foundation", None), Sheet("follow")
    stream = follow.shifted(load_dataset("digits", None), pair.size)
    assert stream.shape == (follow.PICTURES, *pair.size, 3)
    follow.following(sheet, pair, stream, 16, 8, 3)
    inside, whole = sheet.rows
    assert inside.target == "<= 8"
    assert (whole.target, whole.met) == ("", None)
    assert "without following" in inside.detail
    assert "measurements in 2 blocks" in whole.detail


def test_looks_that_alternate_have_alternated_where_their_cost_is_measured() -> None:
    pair, sheet = PerfPair("digits-edge", "digits-foundation", None), Sheet("follow")
    looks = tuple(follow.shifted(load_dataset("digits", None), pair.size, name) for name in ("fog", "gaussian_noise"))
    follow.alternating(sheet, pair, (looks[0], looks[1]), 16, 3)
    (row,) = sheet.rows
    assert row.name == "predict where looks alternate, digits-edge, batch 16"
    assert int(row.detail.split()[0]) >= 2
