"""``python -m load``: run, table, verdict; exit code 1 if a criterion was missed."""

from __future__ import annotations

import json
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec

from cema.bench.provenance import provenance
from load.run import Result, run

SHOWN = 5
"""Ways in which a criterion was missed that the table shows; the file has more."""
KEPT = 100


@click.command()
@click.option("--seconds", default=600.0, show_default=True, help="How long, in all; from 120 on with 100 devices.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="File for the figures.")
def main(seconds: float, json_file: Path | None) -> None:
    """Offer a real cloud twice what it can take, kill it on the way, and judge what was seen."""
    started = datetime.now(UTC)
    logs = Path(tempfile.mkdtemp(prefix="cema-load-"))
    result = run(seconds, logs)
    for line in _table(result):
        click.echo(line)
    if json_file is not None:
        json_file.write_text(json.dumps(_as_json(result, started), indent=2) + "\n")
    if result.criteria_missed:
        click.echo(f"logs: {logs}")
    else:
        logs.rmdir()
    click.echo(f"criteria missed: {result.criteria_missed}")
    sys.exit(1 if result.criteria_missed else 0)


def _table(result: Result) -> list[str]:
    lines = [f"load: {result.seconds:.0f} s", ""]
    lines += [f"  {name.replace('_', ' ')}: {value}" for name, value in result.figures.items()]
    lines.append("")
    for criterion, ways in result.missed.items():
        lines.append(f"  {'MISSED' if ways else 'met   '}  {criterion}")
        lines += [f"            {way}" for way in ways[:SHOWN]]
        lines += [f"            and {len(ways) - SHOWN} more"] if len(ways) > SHOWN else []
    return [*lines, ""]


def _as_json(result: Result, started: datetime) -> dict[str, object]:
    command = f"python -m load --seconds {result.seconds:g}"
    return {
        "seconds": result.seconds,
        **result.figures,
        "criteria": {criterion: ways[:KEPT] or "met" for criterion, ways in result.missed.items()},
        "provenance": msgspec.to_builtins(msgspec.structs.replace(provenance([], started), command=command)),
    }


if __name__ == "__main__":
    main()
