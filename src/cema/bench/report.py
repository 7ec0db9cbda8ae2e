"""``cema bench report``: results of one or several runs in, one HTML page, one JSON and one CSV file out.

Every figure keeps its origin: the page and the JSON name all runs, each line of the CSV its commit. What the page
says is worked out in ``report_page``; here is what is written.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import jinja2
import msgspec

from cema import __version__
from cema.bench.grouping import Group, Identity, group_of, identity_of
from cema.bench.report_page import DEVICE_CLASS, count, group_pages, overview
from cema.bench.report_plots import SHAPES
from cema.bench.report_svg import size_text
from cema.bench.rows import Provenance, Results, Row
from cema.bench.summary import losing_cases, summarise
from cema.errors import ConfigError

ROW_FIELDS = Row.__struct_fields__
RUN_FIELDS = ("run", "commit", "started_at")
"""Columns before those of the row: number of the run (from 0, as in the JSON's provenances) and where it comes from."""


class Merged(msgspec.Struct, frozen=True, kw_only=True):
    """Several results files as one. runs: for each row, the index of its run in ``provenances``."""

    rows: list[Row]
    runs: list[int]
    provenances: list[Provenance]


class _File(msgspec.Struct, frozen=True):
    """``Results`` or ``Merged``: other fields are worked out again."""

    rows: list[Row]
    provenance: Provenance | None = None
    runs: list[int] = []
    provenances: list[Provenance] = []


@dataclass(frozen=True)
class ReportFiles:
    """What was written."""

    html: Path
    json: Path
    csv: Path


def merge(results: Sequence[Results]) -> Merged:
    """All rows, each once, and all runs. A cell = a method with its options under a condition, on a corruption, with a
    seed.

    Raises ConfigError when two files disagree about a cell: nobody could say which one the report is about.
    """
    merged = Merged(rows=[], runs=[], provenances=[])
    first: dict[_Cell, Provenance] = {}
    known: dict[_Cell, list[Row]] = {}
    for result in results:
        if result.provenance not in merged.provenances:
            merged.provenances.append(result.provenance)
        run = merged.provenances.index(result.provenance)
        for cell, rows in _cells(result.rows).items():
            if cell not in known:
                known[cell], first[cell] = rows, result.provenance
                merged.rows.extend(rows)
                merged.runs.extend([run] * len(rows))
            elif known[cell] != rows:
                raise _disagreement(rows[0], first[cell], result.provenance)
    return merged


def read_results(path: Path) -> list[Results]:
    """The runs of a file that ``--json`` or ``write_report`` wrote. Raises ConfigError for any other."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=_File)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(
            f"expected results of 'cema bench run --json' or 'cema bench report' in {path}: {error}"
        ) from error
    if found.provenance is not None:
        return [Results(rows=found.rows, provenance=found.provenance)]
    numbers = range(len(found.provenances))
    if not numbers or len(found.runs) != len(found.rows) or not set(found.runs) <= {*numbers}:
        raise ConfigError(f"expected where each row comes from (provenance, or runs and provenances) in {path}")
    return [
        Results(rows=[row for row, its in zip(found.rows, found.runs, strict=True) if its == run], provenance=origin)
        for run, origin in zip(numbers, found.provenances, strict=True)
    ]


def write_report(results: Results | Sequence[Results], folder: Path) -> ReportFiles:
    """Write ``report.html`` (self-contained), ``results.json`` and ``results.csv`` into ``folder``.

    The JSON of one run is a ``Results`` with ``summary`` and ``losing_cases`` besides, of several a ``Merged``.
    Raises ConfigError: no rows, results that contradict each other, or a folder that cannot be written.
    """
    merged = merge([results] if isinstance(results, Results) else results)
    if not merged.rows:
        raise ConfigError("expected at least one row to report, got none", hint="run cema bench run first")
    written = ReportFiles(folder / "report.html", folder / "results.json", folder / "results.csv")
    texts = {written.html: render(merged), written.json: _json(merged), written.csv: _csv(merged)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            path.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise ConfigError(f"expected a folder to write the report into, got {folder}: {error.strerror}") from error
    return written


def render(merged: Merged) -> str:
    """The page."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters.update(size=size_text, count=count)
    template = environment.from_string(files("cema.bench").joinpath("bench_report.html.j2").read_text("utf-8"))
    pages = group_pages(merged.rows)
    return template.render(
        pages=pages,
        overview=overview(pages),
        provenances=merged.provenances,
        rows_of_run=[merged.runs.count(run) for run in range(len(merged.provenances))],
        shapes=SHAPES,
        device_class=DEVICE_CLASS,
        version=__version__,
    )


_Cell = tuple[Group, Identity, str, int]


def _cells(rows: Sequence[Row]) -> dict[_Cell, list[Row]]:
    """A condition that returns within a stream has several rows per cell."""
    found: dict[_Cell, list[Row]] = defaultdict(list)
    for row in rows:
        found[group_of(row), identity_of(row.method, row.options), row.corruption, row.seed].append(row)
    return found


def _disagreement(row: Row, first: Provenance, second: Provenance) -> ConfigError:
    return ConfigError(
        f"expected every cell from one run, got two with different values for {row.method} on {row.dataset} "
        f"{row.corruption} severity {row.severity}, {row.setting}, batch {row.batch_size}, seed {row.seed}: "
        f"{first.commit} of {first.started_at} and {second.commit} of {second.started_at}",
        hint="leave out the older file",
        row=row,
        provenances=(first, second),
    )


def _json(merged: Merged) -> str:
    several = len(merged.provenances) > 1
    content = {
        "rows": merged.rows,
        **({"runs": merged.runs, "provenances": merged.provenances} if several else {}),
        **({} if several else {"provenance": merged.provenances[0]}),
        "summary": summarise(merged.rows),
        "losing_cases": losing_cases(merged.rows),
    }
    return msgspec.json.format(msgspec.json.encode(content), indent=1).decode() + "\n"


def _csv(merged: Merged) -> str:
    """One line per row; lists and options as JSON, what is unknown empty."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow((*RUN_FIELDS, *ROW_FIELDS))
    for run, row in zip(merged.runs, merged.rows, strict=True):
        origin = merged.provenances[run]
        writer.writerow((run, origin.commit, origin.started_at, *(_text(getattr(row, name)) for name in ROW_FIELDS)))
    return buffer.getvalue()


def _text(value: object) -> object:
    return msgspec.json.encode(value).decode() if isinstance(value, (list, dict)) else value
