"""``cema bench compare``: is the difference between two methods more than luck?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cema.cli.output import emit_json, json_option

if TYPE_CHECKING:  # numpy and the rest of the benchmark are loaded when the command runs
    from cema.bench.paired import Comparison


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--method", default="cema", show_default=True, metavar="NAME")
@click.option("--against", default="source", show_default=True, metavar="NAME")
@json_option
def compare(files: tuple[Path, ...], method: str, against: str, as_json: bool) -> None:
    """Percentage points between two methods of FILES, with 95 % intervals.

    Paired: both saw the same photographs, and these are what the bootstrap draws anew. FILES as for 'cema bench
    report'.
    """
    from cema.bench import paired
    from cema.bench.report import merge, read_results

    merged = merge([results for path in files for results in read_results(path)])
    lines = paired.compare(merged.rows, method, against)
    if as_json:
        emit_json(lines)
        return
    shown = None
    for line in lines:
        heading = _heading(line, method, against)
        if heading != shown:
            click.echo(("" if shown is None else "\n") + heading)
            shown = heading
        verdict = "better" if line.low > 0 else "worse" if line.high < 0 else ""
        click.echo(
            f"  {line.corruption:18} {line.difference:+7.2f}  [{line.low:+.2f}, {line.high:+.2f}]  {verdict}".rstrip()
        )


def _heading(line: Comparison, method: str, against: str) -> str:
    group = line.group
    parts = [
        f"{_named(method, line.options)} - {_named(against, line.against_options)}, {group.dataset}, {group.setting}"
    ]
    parts += [f"severity {group.severity}", f"batches of {group.batch_size}"]
    parts += [group.stream] if group.stream else []
    parts += [f"link {group.link}"] if group.link != "instant" else []
    parts += [f"delay {group.delay}"] if group.delay else []
    return ", ".join([*parts, f"{line.photographs} photographs, seeds {' '.join(map(str, line.seeds))}"])


def _named(method: str, options: Mapping[str, bool | int | float | str]) -> str:
    given = ", ".join(f"{key}={value}" for key, value in sorted(options.items()))
    return f"{method} ({given})" if given else method
