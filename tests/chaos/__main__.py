"""``python -m chaos``: run, table, verdict; exit code 1 if a promise was broken."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec

from cema.bench.provenance import provenance
from chaos.disks import enter_namespace
from chaos.run import Result, run

SHOWN = 5
"""Ways in which a promise was broken that the table shows; the file has all."""


@click.command()
@click.option("--seconds", default=600.0, show_default=True, help="How long faults are injected.")
@click.option("--seed", default=0, show_default=True, help="Of the schedule: the same seed gives the same faults.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="File for the figures.")
@click.option("--folder", type=click.Path(path_type=Path), help="For everything that the run leaves; kept.")
def main(seconds: float, seed: int, json_file: Path | None, folder: Path | None) -> None:
    """Break a real cloud and real devices in every way that is in the plan, and prove what is promised."""
    where = folder or Path(tempfile.mkdtemp(prefix="cema-chaos-"))
    started = datetime.now(UTC)
    result = run(where.resolve(), seed, seconds)
    for line in _table(result):
        click.echo(line)
    if json_file is not None:
        json_file.write_text(json.dumps(_as_json(result, started), indent=2) + "\n")
    if result.promises_broken:
        click.echo(f"evidence: {where / 'evidence'}")
    elif folder is None:
        shutil.rmtree(where, ignore_errors=True)
    click.echo(f"promises broken: {result.promises_broken}")
    sys.exit(1 if result.promises_broken else 0)


def _table(result: Result) -> list[str]:
    lines = [f"chaos: {result.seconds:.0f} s, seed {result.seed}", ""]
    lines += [f"  {kind:<20} {count:>4} x" for kind, count in result.faults.items()]
    lines += ["", *(f"  {name.replace('_', ' ')}: {value}" for name, value in result.figures.items()), ""]
    for promise, ways in result.broken.items():
        lines.append(f"  {'BROKEN' if ways else 'kept  '}  {promise}")
        lines += [f"            {way}" for way in ways[:SHOWN]]
        lines += [f"            and {len(ways) - SHOWN} more"] if len(ways) > SHOWN else []
    return [*lines, ""]


def _as_json(result: Result, started: datetime) -> dict[str, object]:
    command = f"python -m chaos --seconds {result.seconds:g} --seed {result.seed}"
    return {
        "seed": result.seed,
        "seconds": result.seconds,
        "faults": result.faults,
        **result.figures,
        "promises": {promise: ways or "kept" for promise, ways in result.broken.items()},
        "provenance": msgspec.to_builtins(msgspec.structs.replace(provenance([], started), command=command)),
    }


if __name__ == "__main__":
    enter_namespace("chaos")
    main()
