"""``cema bench perf``: the table of figures and targets."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path

import click

from cema.cli.output import emit_json, json_option

_SECTIONS = "limits,start,edge,follow,swap,cloud,fleet,wire,ingest,int8"
_MARK = {True: "met", False: "MISSED", None: ""}


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="Folder with photographs and weights [env: CEMA_DATA].")
@click.option("--only", default=_SECTIONS, show_default=True, metavar="A,B,...")
@click.option("--rounds", default=200, show_default=True, type=click.IntRange(1), help="Turns of each comparison; slow "
              "ones take a share.")  # fmt: skip
@click.option("--memory", is_flag=True, help="Also watch the service for ten minutes.")
@json_option
def perf(data: Path | None, only: str, rounds: int, memory: bool, as_json: bool) -> None:
    """Speed and size of edge, cloud and wire, each beside its target.

    Rivals take turns within one run; leave the machine alone meanwhile.
    """
    from cema.bench.perf.rows import PerfResults
    from cema.bench.perf.run import PerfOptions, measure
    from cema.bench.provenance import provenance

    started_at = datetime.now(UTC)
    folder = data or (Path(os.environ["CEMA_DATA"]) if os.environ.get("CEMA_DATA") else None)
    sections = [name.strip() for name in only.split(",") if name.strip()]
    options = PerfOptions(folder, rounds, memory)
    rows, skipped = measure(sections, options, lambda name: click.echo(f"measuring: {name}", err=True))
    if as_json:
        emit_json(PerfResults(rows=rows, skipped=skipped, provenance=provenance(sys.argv[1:], started_at)))
        return
    width = max(len(row.name) for row in rows)
    for row in rows:
        click.echo(f"{row.name:{width}}  {row.value:>10g} {row.unit:<14} {row.target:<10} {_MARK[row.met]}")
        if row.detail:
            click.echo(f"{'':{width}}    {row.detail}")
    for name, reason in skipped.items():
        click.echo(f"skipped: {name}: {reason}", err=True)
