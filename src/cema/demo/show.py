"""Runs the demo and shows it: live table, summary, report."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.live import Live

from cema.demo.launch import Demo, DemoOptions
from cema.demo.report import render
from cema.demo.table import live_table, summary_table
from cema.demo.tally import EdgeTally


def show(options: DemoOptions, report: Path, *, quiet: bool) -> list[EdgeTally]:
    """Run to the end; progress goes to standard error when ``quiet``, so that standard output is free for JSON.

    SIGTERM ends the demo as Ctrl-C does.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    console = Console(stderr=quiet)
    started = time.monotonic()
    with Demo(options, lambda text: console.print(f"[dim]{text}[/dim]")) as demo:
        demo.start()
        tallies = {name: EdgeTally(name) for name in demo.names}
        with Live(live_table(list(tallies.values())), console=console, refresh_per_second=4) as live:
            running = True
            while running:
                running = demo.running  # before the events are drained, so that the last ones are shown
                for event in demo.events():
                    tallies[event.edge].events.append(event)
                live.update(live_table(list(tallies.values())))
    found = list(tallies.values())
    console.print(summary_table(found))
    report.write_text(
        render(found, dataset=options.scenario.dataset, method=options.method, wall_s=time.monotonic() - started)
    )
    console.print(f"report: {report.resolve()}")
    return found


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
