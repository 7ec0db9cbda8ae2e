"""From rows to summaries and losing cases: means, spreads and differences worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from cema.bench.corruptions import COMMON
from cema.bench.grouping import averaged, in_order
from cema.bench.metrics import ALEXNET_ERROR
from cema.bench.rows import Row, Where
from cema.bench.summary import Summary, comparisons, losing_cases, summarise
from cema.errors import ConfigError


def row(method: str, where: Where, corruption: str, accuracy: float, seed: int = 0, **other: Any) -> Row:
    values: dict[str, Any] = {
        "dataset": "cifar10", "severity": 5, "setting": "reset", "batch_size": 64, "samples": 100,
        "accuracy_second_half": accuracy, "error": 1 - accuracy, "ece": 0.1, "uploads": 0, "bytes_up": 0,
        "bytes_down": 0, "edge_s": 1.0, "edge_ms_p50": 1.0, "edge_ms_p99": 2.0, "cloud_s": 0.0, "peak_rss_mb": 500.0,
    } | other  # fmt: skip
    return Row(method=method, where=where, corruption=corruption, accuracy=accuracy, seed=seed, **values)


def cema(corruption: str, accuracy: float, seed: int = 0, **other: Any) -> Row:
    traffic = {"uploads": 40, "bytes_up": 3000, "bytes_down": 1000, "cloud_s": 2.0}
    return row("cema", "cloud", corruption, accuracy, seed, **traffic | other)


def source(corruption: str, accuracy: float, seed: int = 0, **other: Any) -> Row:
    return row("source", "none", corruption, accuracy, seed, **other)


def bn(corruption: str, accuracy: float, seed: int = 0, **other: Any) -> Row:
    return row("bn", "forward", corruption, accuracy, seed, **other)


def labels(corruption: str, accuracy: float, seed: int = 0, **other: Any) -> Row:
    return row("labels", "backward", corruption, accuracy, seed, **other)


def only(rows: list[Row], method: str) -> Summary:
    (found,) = [summary for summary in summarise(rows) if summary.method == method]
    return found


def test_means_are_over_corruptions_and_then_over_seeds() -> None:
    summary = only(
        [
            cema("fog", 0.8, 0, accuracy_second_half=0.9, ece=0.2, edge_ms_p50=1, edge_ms_p99=2, edge_peak_mb=3.0),
            cema("snow", 0.6, 0, accuracy_second_half=0.7, bytes_up=5000, edge_ms_p50=2, edge_ms_p99=9, uploads=20),
            cema("fog", 0.7, 1, accuracy_second_half=0.8, edge_ms_p50=7, edge_ms_p99=8, edge_peak_mb=5.0),
            cema(
                "snow", 0.5, 1, accuracy_second_half=0.6, edge_ms_p50=9, edge_ms_p99=4, peak_rss_mb=600.0, cloud_s=6.0
            ),
        ],
        "cema",
    )
    assert summary.accuracy == pytest.approx(0.65)
    assert summary.spread == pytest.approx(0.1 / 2**0.5), "of .7 and .6, with n - 1"
    assert summary.accuracy_second_half == pytest.approx(0.75)
    assert summary.mean_error == pytest.approx(0.35)
    assert summary.ece == pytest.approx(0.125)
    assert summary.worst_corruption == "snow"
    assert summary.worst_accuracy == pytest.approx(0.55)
    assert summary.accuracy_of == pytest.approx({"snow": 0.55, "fog": 0.75})
    assert summary.upload_share == pytest.approx(0.35)
    assert (summary.bytes_up, summary.bytes_down, summary.bytes_total) == (3500, 1000, 4500)
    assert (summary.edge_ms_p50, summary.edge_ms_p99) == (4.5, 6)
    assert summary.cloud_s == pytest.approx(3.0)
    assert (summary.peak_rss_mb, summary.edge_peak_mb, summary.cloud_peak_mb) == (600, 5, None)
    assert (summary.seeds, summary.corruptions, summary.mce) == ((0, 1), ("snow", "fog"), None)


def test_the_spread_of_one_seed_is_unknown() -> None:
    assert only([cema("fog", 0.8), cema("snow", 0.6)], "cema").spread is None


def test_points_and_gap_are_counted_from_the_same_seeds_of_source_and_labels() -> None:
    rows = [cema("fog", 0.7, 0), cema("fog", 0.9, 1), source("fog", 0.5, 0), labels("fog", 0.9, 0)]
    summary = only(rows, "cema")
    assert summary.accuracy == pytest.approx(0.8)
    assert summary.bytes_per_point == pytest.approx(4000 / 20), "seed 0 alone: 20 points for 4,000 bytes"
    assert summary.gap_closed == pytest.approx(0.5)
    assert only(rows, "labels").gap_closed == pytest.approx(1.0)
    assert only(rows, "source").bytes_per_point is None


def test_without_source_there_are_no_recovered_points() -> None:
    summary = only([cema("fog", 0.7), labels("fog", 0.9)], "cema")
    assert (summary.bytes_per_point, summary.gap_closed) == (None, None)
    other_batch = only([cema("fog", 0.7), source("fog", 0.5, batch_size=1)], "cema")
    assert other_batch.bytes_per_point is None


def test_a_reference_without_the_methods_corruptions_is_not_used() -> None:
    rows = [cema("fog", 0.7), cema("snow", 0.7), source("fog", 0.5), labels("fog", 0.9)]
    assert only(rows, "cema").bytes_per_point is None
    assert only(rows, "cema").gap_closed is None


def test_a_gap_that_labels_do_not_open_is_not_closed() -> None:
    rows = [cema("fog", 0.7), source("fog", 0.5), labels("fog", 0.5)]
    assert only(rows, "cema").gap_closed is None
    assert only([bn("fog", 0.4), *rows[1:2]], "bn").bytes_per_point is None


def test_rows_of_the_whole_stream_count_only_where_there_are_no_others() -> None:
    assert only([cema("fog", 0.8), cema("snow", 0.6), cema("all", 0.1)], "cema").accuracy == pytest.approx(0.7)
    assert only([cema("mixed", 0.4)], "cema").accuracy == pytest.approx(0.4)


def test_a_condition_that_returns_counts_as_one() -> None:
    rows = [cema("fog", 0.5, visit=0), cema("fog", 0.7, visit=1), cema("snow", 0.2)]
    assert only(rows, "cema").accuracy == pytest.approx((0.6 + 0.2) / 2)


def test_clean_pictures_are_shown_but_not_averaged() -> None:
    summary = only([cema("clean", 1.0), cema("fog", 0.6)], "cema")
    assert summary.accuracy == pytest.approx(0.6)
    assert summary.accuracy_of == pytest.approx({"clean": 1.0, "fog": 0.6})
    assert only([cema("clean", 0.9)], "cema").accuracy == pytest.approx(0.9)


def test_the_common_fifteen_are_averaged_where_all_are_there() -> None:
    assert averaged(["saturate", "clean", *reversed(COMMON)]) == COMMON
    assert averaged(["saturate", "fog"]) == ("fog", "saturate")
    assert in_order(["zebra", "fog", "apple", "snow"]) == ("snow", "fog", "apple", "zebra")


def test_a_seed_that_was_interrupted_is_left_out() -> None:
    summary = only([cema("fog", 0.8, 0), cema("snow", 0.6, 0), cema("fog", 0.1, 1)], "cema")
    assert summary.accuracy == pytest.approx(0.7)
    assert (summary.seeds, summary.partial_seeds) == ((0,), (1,))
    assert summary.accuracy_of["fog"] == pytest.approx(0.8)


def test_methods_are_ordered_by_accuracy_and_incomplete_ones_come_last() -> None:
    rows = [source("fog", 0.5), source("snow", 0.4), cema("fog", 0.7), cema("snow", 0.7), bn("fog", 0.9)]
    found = summarise(rows)
    assert [(summary.method, summary.complete) for summary in found] == [
        ("cema", True),
        ("source", True),
        ("bn", False),
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"dataset": "other"}, {"setting": "continual"}, {"severity": 3}, {"batch_size": 1}, {"edges": 2},
        {"link": "slow"}, {"delay": 1}, {"options": {"lr": 0.1}},
    ],
)  # fmt: skip
def test_each_condition_and_set_of_options_is_a_summary_of_its_own(change: dict[str, Any]) -> None:
    assert [s.accuracy for s in summarise([cema("fog", 0.5), cema("fog", 0.7, **change)])] in ([0.5, 0.7], [0.7, 0.5])


def test_the_order_of_options_does_not_matter() -> None:
    rows = [cema("fog", 0.5, 0, options={"a": 1, "b": 2}), cema("fog", 0.7, 1, options={"b": 2, "a": 1})]
    assert len(summarise(rows)) == 1


def test_mce_needs_imagenet_c_and_all_severities() -> None:
    def rows(dataset: str, severities: range) -> list[Row]:
        each = [(name, s) for name in COMMON for s in severities]
        return [cema(name, 1 - ALEXNET_ERROR[name] / 2, severity=s, dataset=dataset) for name, s in each]

    whole = summarise(rows("imagenet-c", range(1, 6)))
    assert [summary.mce for summary in whole] == pytest.approx([0.5] * 5)
    assert {summary.mce for summary in summarise(rows("imagenet-c", range(2, 6)))} == {None}
    assert {summary.mce for summary in summarise(rows("cifar10", range(1, 6)))} == {None}


def test_no_rows_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one row to summarise, got none"):
        summarise([])


def test_losing_cases_are_named_worst_first() -> None:
    rows = [
        source("fog", 0.5), source("snow", 0.8), source("frost", 0.5),
        bn("fog", 0.75), bn("snow", 0.6), bn("frost", 0.6),
        row("tent", "backward", "fog", 0.99),
        cema("fog", 0.7), cema("snow", 0.65), cema("frost", 0.6),
    ]  # fmt: skip
    worst, other = losing_cases(rows)
    assert (worst.corruption, worst.rival, worst.rival_accuracy) == ("snow", "source", 0.8)
    assert worst.behind_points == pytest.approx(15)
    assert worst.behind_source_points == pytest.approx(15)
    assert (other.corruption, other.rival, other.method, other.accuracy) == ("fog", "bn", "cema", 0.7)
    assert other.behind_points == pytest.approx(5)
    assert other.behind_source_points == pytest.approx(-20)
    assert [case.corruption for case in comparisons(rows)] == ["snow", "fog", "frost"]


def test_a_duel_is_fought_on_the_seeds_that_both_have() -> None:
    rows = [cema("fog", 0.9, 0), cema("fog", 0.5, 1), cema("fog", 0.3, 2), bn("fog", 0.8, 0), bn("fog", 0.7, 1)]
    (case,) = losing_cases(rows)
    assert case.accuracy == pytest.approx(0.7)
    assert case.rival_accuracy == pytest.approx(0.75)
    assert (case.behind_source_points, case.images, case.seeds) == (None, 100, 2)


def test_equal_means_are_no_loss() -> None:
    rows = [cema("fog", 0.1, 0), cema("fog", 0.2, 1), cema("fog", 0.3, 2)]
    rows += [bn("fog", 0.3, 0), bn("fog", 0.2, 1), bn("fog", 0.1, 2)]
    assert len(comparisons(rows)) == 1
    assert losing_cases(rows) == []


def test_rivals_of_another_condition_do_not_count() -> None:
    rows = [cema("fog", 0.5), bn("fog", 0.9, batch_size=1), bn("snow", 0.9), source("fog", 0.9, seed=4)]
    assert comparisons(rows) == []


def test_clean_pictures_can_be_lost_on() -> None:
    (case,) = losing_cases([cema("clean", 0.8), source("clean", 0.9), cema("fog", 0.8), source("fog", 0.5)])
    assert case.corruption == "clean"
