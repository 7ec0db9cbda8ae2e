"""The demo on the terminal: a live table while it runs, a summary at the end (rich)."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from cema.demo.scenario import CLEAN
from cema.demo.tally import EdgeTally

_KIB = 1024


def live_table(tallies: Sequence[EdgeTally]) -> Table:
    """One row per edge: where it is, and how it does."""
    table = Table(title="cema demo", title_justify="left")
    table.add_column("edge", no_wrap=True)
    for column in ("condition", "adapted", "source", "uploaded", "up", "down", "version", "ms/call"):
        table.add_column(column, justify="left" if column == "condition" else "right", no_wrap=True)
    for tally in tallies:
        last = tally.last
        if last is None:
            table.add_row(tally.name, "starting", *[""] * 7)
            continue
        seen = sum(event.images for event in tally.events)
        table.add_row(
            tally.name,
            last.condition,
            _percent(tally.recent()),
            _percent(tally.recent(source=True)),
            _percent(sum(event.selected for event in tally.events) / seen),
            _bytes(last.bytes_up),
            _bytes(last.bytes_down),
            str(last.version),
            f"{last.latency_ms:.1f}",
        )
    return table


def summary_table(tallies: Sequence[EdgeTally]) -> Table:
    """Accuracy per edge and stretch, and what it cost."""
    table = Table(title="accuracy by stretch (adapted / source)", title_justify="left")
    for column in ("edge", "stretch", "images", "adapted", "source", "gain"):
        table.add_column(column, justify="left" if column in ("edge", "stretch") else "right")
    for tally in tallies:
        for condition, adapted, source, images in tally.by_condition():
            row = (tally.name, condition, str(images), _percent(adapted), _percent(source), f"{adapted - source:+.1%}")
            table.add_row(*row, style="dim" if condition == CLEAN else "")
        adapted, source = tally.accuracy(drift=True), tally.accuracy(drift=True, source=True)
        drifted = sum(event.images for event in tally.events if event.condition != CLEAN)
        gain = f"{adapted - source:+.1%}"
        table.add_row(tally.name, "all drift", str(drifted), _percent(adapted), _percent(source), gain, style="bold")
        table.add_section()
    return table


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _bytes(count: int) -> str:
    return f"{count / _KIB:.0f} KiB" if count < 10 * _KIB * _KIB else f"{count / _KIB / _KIB:.1f} MiB"
