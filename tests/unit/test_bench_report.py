"""The benchmark's report: what its page, its JSON and its CSV say."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cema.bench.metrics import ALEXNET_ERROR
from cema.bench.report import RUN_FIELDS, Merged, ReportFiles, merge, read_results, write_report
from cema.bench.report_page import group_pages
from cema.bench.rows import Provenance, Results, Row
from cema.errors import ConfigError

HOSTILE = "<script>alert('x')</script>&\"x"
CURVE = [0.5, 0.75]
DASH, TIMES = "\N{EN DASH}", "\N{MULTIPLICATION SIGN}"


class Page(HTMLParser):
    """Cells of all tables, visible text, and tags with their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._cell: list[str] | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell = []

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self._cell is not None:
            self.tables[-1][-1].append(" ".join("".join(self._cell).split()))
            self._cell = None

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._cell is not None:
            self._cell.append(data)

    def row(self, table: int, name: str) -> list[str]:
        (found,) = [cells for cells in self.tables[table] if cells[0].split(" reference")[0] == name]
        return found


def row(method: str, corruption: str, accuracy: float, seed: int = 0, **other: Any) -> Row:
    where = {"source": "none", "bn": "forward", "tent": "backward", "labels": "backward"}.get(method, "cloud")
    traffic = {"uploads": 400, "bytes_up": 900_000, "bytes_down": 100_000, "cloud_s": 4.0} if where == "cloud" else {}
    values: dict[str, Any] = {
        "where": where, "dataset": "cifar10", "severity": 5, "setting": "reset", "batch_size": 64, "samples": 1000,
        "accuracy_second_half": accuracy + 0.01, "error": 1 - accuracy, "ece": 0.123, "uploads": 0, "bytes_up": 0,
        "bytes_down": 0, "edge_s": 1.0, "edge_ms_p50": 1.25, "edge_ms_p99": 2.5, "cloud_s": 0.0, "peak_rss_mb": 500.0,
    } | traffic | other  # fmt: skip
    return Row(method=method, corruption=corruption, accuracy=accuracy, seed=seed, **values)


def provenance(command: str = "cema bench run", commit: str = "abc123") -> Provenance:
    return Provenance(
        command=command, commit=commit, versions={"torch": "2.6.0"}, hardware={"cpu": "A & B", "cores": 2},
        started_at="2025-01-02T03:04:05+00:00",
    )  # fmt: skip


ROWS = [
    row("source", "fog", 0.5), row("source", "snow", 0.7),
    row("bn", "fog", 0.6), row("bn", "snow", 0.6),
    row("labels", "fog", 0.9), row("labels", "snow", 0.9),
    row("cema", "fog", 0.8, 0), row("cema", "snow", 0.65, 0), row("cema", "fog", 0.84, 1), row("cema", "snow", 0.67, 1),
]  # fmt: skip
RESULTS = Results(rows=ROWS, provenance=provenance())


def write(rows: Sequence[Row], folder: Path) -> tuple[Page, ReportFiles]:
    files = write_report(Results(rows=list(rows), provenance=provenance()), folder)
    return Page(files.html.read_text()), files


def test_the_summary_holds_the_numbers_worked_out_by_hand(tmp_path: Path) -> None:
    page, _ = write(ROWS, tmp_path)
    # Seeds 0.725 and 0.755: mean 0.74, sd 0.03 / sqrt 2. Seed 0 has source: 12.5 of 30 points, 1 MB / 12.5.
    assert page.row(0, "cema") == [
        "cema", "cloud uplink", "74.0 ± 2.1", "75.0", "42", "26.0", "12.3", "snow 66.0", "2",
        "40.0 %", "900 kB", "100 kB", "80.0 kB", "1.25", "2.50", "4.0", "?", "?", "500",
    ]  # fmt: skip
    assert page.row(0, "bn")[1:6] == ["forward passes", "60.0 ± ?", "61.0", "0", "40.0"]
    assert page.row(0, "labels")[0] == "labels reference: sees the true labels"
    assert [cells[0].split()[0] for cells in page.tables[0][2:]] == ["labels", "cema", "source", "bn"]


def test_the_unknown_spread_of_single_seeds_is_said(tmp_path: Path) -> None:
    page, _ = write(ROWS, tmp_path)
    assert "One seed, so the spread over seeds is unknown (± ?), not small: labels, source, bn." in page.text


def test_each_corruption_has_a_column(tmp_path: Path) -> None:
    page, _ = write([*ROWS, row("tent", "fog", 0.7)], tmp_path)
    assert page.tables[1][0] == ["method", "snow", "fog", "mean"]
    assert page.row(1, "cema") == ["cema", "66.0", "82.0", "74.0"]
    assert page.row(1, "tent") == ["tent", DASH, "70.0", "70.0"]
    assert "tent other corruptions: not ranked" in page.tables[0][-1][0]
    assert "not comparable: tent." in page.text


def test_best_and_harmful_cells_are_marked(tmp_path: Path) -> None:
    _, files = write(ROWS, tmp_path)
    table = files.html.read_text().partition("Accuracy by corruption")[2].partition("</table>")[0]
    cells = re.findall(r'<td class="([a-z ]*)">(\d+\.\d)</td>', table)
    marks = {text: classes.split() for classes, text in cells if classes.strip() in ("best", "below")}
    assert marks == {"82.0": ["best"], "70.0": ["best"], "66.0": ["below"], "60.0": ["below"]}


def test_losing_cases_are_named_in_words_and_in_a_table(tmp_path: Path) -> None:
    page, files = write(ROWS, tmp_path)
    assert (
        "cema is below a forward-only method on 1 of 2 corruptions, below source itself on 1. "
        "Worst: snow, 5.0 points below source (65.0 % against 70.0 %)."
    ) in page.text
    assert page.row(2, "cema") == ["cema", "snow", "65.0", "source", "70.0", "5.0", "5.0", f"1,000 {TIMES} 1"]
    assert msgspec.json.decode(files.json.read_bytes())["losing_cases"][0]["corruption"] == "snow"


def test_a_method_that_never_loses_is_said_to(tmp_path: Path) -> None:
    page, _ = write([row("cema", "fog", 0.8), row("bn", "fog", 0.7)], tmp_path)
    assert "cema is below no forward-only method on any of 1 corruption." in page.text
    lonely, _ = write([row("cema", "fog", 0.8)], tmp_path)
    assert "Nothing to compare" in lonely.text


def test_hostile_names_are_shown_as_text(tmp_path: Path) -> None:
    other: dict[str, Any] = {"curve": CURVE, "samples": 200}
    rows = [row(HOSTILE, HOSTILE, 0.5, dataset=HOSTILE, **other), row("bn", HOSTILE, 0.6, dataset=HOSTILE, **other)]
    rows += [row(HOSTILE, "fog", 0.5, dataset=HOSTILE, options={HOSTILE: HOSTILE}, setting="continual", **other)]
    rows += [row(HOSTILE, HOSTILE, 0.5, dataset=HOSTILE, options={"a": HOSTILE}, setting="continual", **other)]
    files = write_report(Results(rows=rows, provenance=provenance(HOSTILE, HOSTILE)), tmp_path)
    html = files.html.read_text()
    page = Page(html)
    assert "<script" not in html
    assert {tag for tag, _ in page.tags} >= {"svg", "polyline", "table"}
    assert page.text.count(HOSTILE) > 10
    assert {name for _, attributes in page.tags for name in attributes if name.startswith("on")} == set()


def test_the_page_needs_no_network_and_fits_a_phone(tmp_path: Path) -> None:
    page, files = write(ROWS, tmp_path)
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.tags
    html = files.html.read_text()
    assert "prefers-color-scheme: dark" in html
    assert not re.search(r"https?:|url\(|@import|<link|<script|<img|\ssrc=", html)
    assert html.count('<div class="scroll') == html.count("<table")


def test_provenance_is_on_the_page(tmp_path: Path) -> None:
    page, _ = write(ROWS, tmp_path)
    for fact in ("cema bench run", "abc123", "torch 2.6.0", "cpu: A & B, cores: 2", "2025-01-02T03:04:05+00:00"):
        assert fact in page.text


def test_groups_are_apart_and_compared_in_an_overview(tmp_path: Path) -> None:
    page, _ = write([*ROWS, row("bn", "fog", 0.11, batch_size=1, delay=2, edges=3, link="slow")], tmp_path)
    titles = ["cifar10, reset, severity 5, batch 64"]
    titles += ["cifar10, reset, severity 5, batch 1, 3 edges, link slow, updates 2 batches late"]
    assert page.tables[0][0] == ["method", *titles]
    assert page.row(0, "bn") == ["bn", "60.0", "11.0"]
    assert page.row(0, "cema") == ["cema", "74.0", DASH]
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    ids = {attributes.get("id") for tag, attributes in page.tags if tag == "section"}
    assert {str(link).removeprefix("#") for link in links} == ids - {None}


def test_neither_the_reference_nor_a_method_on_fewer_corruptions_leads() -> None:
    (page,) = group_pages([*ROWS, row("tent", "fog", 0.99)])
    assert page.leader is not None
    assert page.leader.method == "cema"
    assert page.pareto is not None
    assert "cema:" in page.pareto
    assert "tent" not in page.pareto


def test_variants_of_a_method_are_told_apart_by_the_options_that_differ(tmp_path: Path) -> None:
    variants = [row("cema", "fog", a, options={"lr": lr, "seed": 3}) for a, lr in ((0.5, 0.1), (0.6, 0.2))]
    page, _ = write([*variants, row("cema", "fog", 0.4, options={"seed": 3})], tmp_path)
    assert [cells[0] for cells in page.tables[0][2:]] == ["cema (lr=0.2)", "cema (lr=0.1)", "cema (defaults)"]


def test_mce_takes_the_place_of_the_mean_error_on_imagenet_c(tmp_path: Path) -> None:
    rows = [
        row("bn", name, 1 - error * 0.75, severity=severity, dataset="imagenet-c")
        for name, error in ALEXNET_ERROR.items()
        for severity in range(1, 6)
    ]
    page, _ = write(rows, tmp_path)
    assert page.tables[1][1][5] == "mCE"
    assert page.row(1, "bn")[5] == "75.0"


def test_the_json_of_one_run_reads_back_as_results(tmp_path: Path) -> None:
    _, files = write(ROWS, tmp_path)
    assert msgspec.json.decode(files.json.read_bytes(), type=Results) == RESULTS
    content = msgspec.json.decode(files.json.read_bytes())
    assert [summary["method"] for summary in content["summary"]] == ["labels", "cema", "source", "bn"]


def test_the_csv_reads_back_equal(tmp_path: Path) -> None:
    hostile = row('a,"b"\n', "fog", 1 / 3, options={"x": "1;2,3", "y": 2, "z": True}, curve=CURVE, edge_peak_mb=1.5)
    files = write_report(Results(rows=[hostile, *ROWS], provenance=provenance()), tmp_path)
    with files.csv.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    origins = {tuple(line.pop(name) for name in RUN_FIELDS) for line in lines}
    assert origins == {("0", "abc123", "2025-01-02T03:04:05+00:00")}
    read = []
    for line in lines:
        values: dict[str, Any] = {name: text or None for name, text in line.items()}
        values |= {name: msgspec.json.decode(line[name]) for name in ("options", "curve")} | {
            name: line[name] for name in ("stream", "digest", "right")
        }
        read.append(msgspec.convert(values, Row, strict=False))
    assert read == [hostile, *ROWS]


def test_several_runs_become_one_report_that_keeps_all_origins(tmp_path: Path) -> None:
    second = Results(rows=[ROWS[0], row("bn", "frost", 0.3)], provenance=provenance("second", "def456"))
    files = write_report([RESULTS, second], tmp_path)
    merged = merge([RESULTS, second])
    assert msgspec.json.decode(files.json.read_bytes(), type=Merged) == merged
    assert merged.rows == [*ROWS, second.rows[1]], "the cell that both have is there once"
    assert merged.runs == [0] * len(ROWS) + [1]
    assert [origin.commit for origin in merged.provenances] == ["abc123", "def456"]
    assert files.csv.read_text().splitlines()[-1].startswith("1,def456,")
    assert "def456" in Page(files.html.read_text()).text


def test_what_a_report_wrote_can_be_reported_again(tmp_path: Path) -> None:
    second = Results(rows=[row("bn", "frost", 0.3)], provenance=provenance("second", "def456"))
    for runs in ([RESULTS], [RESULTS, second]):
        files = write_report(runs, tmp_path / "first")
        assert read_results(files.json) == runs
        again = write_report(read_results(files.json), tmp_path / "again")
        assert again.json.read_bytes() == files.json.read_bytes()
    assert merge([RESULTS, second, RESULTS]) == merge([RESULTS, second]), "a run that is given twice is one run"


def test_a_file_that_does_not_say_where_its_rows_come_from_is_refused(tmp_path: Path) -> None:
    merged = msgspec.to_builtins(merge([RESULTS, Results(rows=[row("bn", "frost", 0.3)], provenance=provenance("b"))]))
    for change in ({"provenances": []}, {"runs": [0]}, {"runs": [2] * 11}, {"rows": [{"method": "bn"}]}):
        (tmp_path / "odd.json").write_bytes(msgspec.json.encode({**merged, **change}))
        with pytest.raises(ConfigError, match=r"expected .* in .*odd\.json"):
            read_results(tmp_path / "odd.json")


def test_memory_that_is_unknown_is_not_shown_as_none_at_all(tmp_path: Path) -> None:
    page, _ = write([row("bn", "fog", 0.6, peak_rss_mb=0.0, edge_peak_mb=12.0, cloud_peak_mb=0.0)], tmp_path)
    assert page.row(0, "bn")[-3:] == ["12", "0", "?"]


def test_runs_that_contradict_each_other_are_refused() -> None:
    second = Results(rows=[row("source", "fog", 0.51)], provenance=provenance(commit="def456"))
    cell = "source on cifar10 fog severity 5, reset, batch 64, seed 0"
    with pytest.raises(ConfigError, match=f"two with different values for {cell}") as caught:
        merge([RESULTS, second])
    assert all(commit in str(caught.value) for commit in ("abc123", "def456"))


def test_a_condition_that_returns_within_a_run_is_no_contradiction() -> None:
    visits = [row("bn", "fog", 0.5, visit=0), row("bn", "fog", 0.6, visit=1)]
    once = Results(rows=visits, provenance=provenance())
    assert merge([once, once]).rows == visits


def test_nothing_to_report_is_refused(tmp_path: Path) -> None:
    empty: list[Results | list[Results]] = [Results(rows=[], provenance=provenance()), []]
    for nothing in empty:
        with pytest.raises(ConfigError, match=r"at least one row to report, got none \(run cema bench run first\)"):
            write_report(nothing, tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_a_file_in_the_folders_place_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("x")
    with pytest.raises(ConfigError, match="expected a folder to write the report into"):
        write_report(RESULTS, tmp_path / "taken")


def test_there_is_no_traffic_plot_without_traffic(tmp_path: Path) -> None:
    assert "Accuracy against traffic" in write(ROWS, tmp_path)[0].text
    assert "Accuracy against traffic" not in write(ROWS[:6], tmp_path)[0].text
