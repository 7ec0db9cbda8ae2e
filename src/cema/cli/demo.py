"""``cema demo``: what a stranger runs first."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import click

from cema.cli.output import emit_json, json_option

NOT_HELPED_EXIT_CODE = 20


@click.command()
@click.option("--dataset", default="digits", show_default=True, type=click.Choice(["digits", "cifar10", "imagenet"]))
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with images and weights [env: CEMA_DATA].",
)
@click.option("--edges", default=2, show_default=True, type=click.IntRange(1, 64))
@click.option("--samples", default=0, type=click.IntRange(0), help="Images per edge; 0 = as the dataset needs.")
@click.option(
    "--seconds", default=0.0, type=click.FloatRange(0), help="Stop streaming after this long; 0 = at the end."
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option("--method", default="cema", show_default=True, help="cema, cema-lite, cema-paper, bn or source.")
@click.option("--report", default="cema-demo.html", show_default=True, type=click.Path(dir_okay=False, path_type=Path))
@json_option
def demo(
    dataset: str,
    data: Path | None,
    edges: int,
    samples: int,
    seconds: float,
    seed: int,
    method: str,
    report: Path,
    as_json: bool,
) -> None:
    """One cloud and several edges on this machine, with drifting input.

    Streams real images through real processes over HTTP, shows accuracy with and without adaptation as it happens,
    and writes an HTML report. Exit code 20 if adaptation did not help on every edge.
    """
    from cema.demo.launch import DemoOptions
    from cema.demo.scenario import scenario
    from cema.demo.show import show

    given = data or (Path(os.environ["CEMA_DATA"]) if os.environ.get("CEMA_DATA") else None)
    folder = given.resolve() if given else None  # the edge processes have a working folder of their own
    chosen = scenario(dataset)
    chosen.weights(folder)
    started = time.monotonic()
    options = DemoOptions(chosen, folder, edges, samples, seconds, seed, method)
    tallies = show(options, report, quiet=as_json)
    result = {"edges": [tally.summary() for tally in tallies], "wall_s": time.monotonic() - started}
    if as_json:
        emit_json(result)
    if method != "source" and not all(tally.helped for tally in tallies):
        click.echo("adaptation did not help on every edge", err=True)
        sys.exit(NOT_HELPED_EXIT_CODE)
