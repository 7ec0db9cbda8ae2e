"""Fuzz every decoder of bytes from outside: ``make fuzz FUZZ_S=60``, or ``python fuzz/run.py --seconds S [NAME ...]``.

Each target runs in a process of its own for the given time. Prints executions per target; what made one fail lies in
the folder that is named, and the exit code is 1.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import click

FOLDER = Path(__file__).parent
MEMORY_LIMIT_MB = 2048
"""Of one target's process: an input that makes it larger has found an allocation without a limit."""
INPUT_LIMIT_S = 20
"""For one input: longer is a failure, too."""
_EXECUTED = re.compile(r"number_of_executed_units: (\d+)")


class Result(NamedTuple):
    """executions: inputs that were tried. failure: what libFuzzer said last, empty if nothing went wrong."""

    executions: int
    failure: str


def targets() -> list[str]:
    """Names of all targets."""
    return sorted(file.stem for file in (FOLDER / "targets").glob("*.py"))


def fuzz(name: str, seconds: int, out: Path) -> Result:
    """One target. Corpus and failing inputs are kept below ``out``."""
    found = out / "failures" / name
    found.mkdir(parents=True, exist_ok=True)
    options = [
        f"-max_total_time={seconds}", f"-artifact_prefix={found}/", f"-rss_limit_mb={MEMORY_LIMIT_MB}",
        f"-timeout={INPUT_LIMIT_S}", "-print_final_stats=1",
    ]  # fmt: skip
    command = [sys.executable, str(FOLDER / "one.py"), name, str(out / "corpus" / name), *options]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    executed = _EXECUTED.search(done.stderr)
    failure = "" if done.returncode == 0 and executed else done.stderr[-2000:] or f"exit code {done.returncode}"
    return Result(int(executed[1]) if executed else 0, failure)


@click.command()
@click.option("--seconds", default=60, show_default=True, help="For each target.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("build/fuzz"), show_default=True)
@click.argument("names", nargs=-1, type=click.Choice(targets()))
def main(seconds: int, out: Path, names: tuple[str, ...]) -> None:
    """Run NAMES, or all targets, one after the other."""
    failed = []
    for name in names or targets():
        result = fuzz(name, seconds, out)
        click.echo(f"{name:<12} {result.executions:>12,} executions  {'FAILED' if result.failure else 'ok'}")
        if result.failure:
            failed.append(name)
            click.echo(result.failure, err=True)
    if failed:
        click.echo(f"failed: {', '.join(failed)}; the inputs lie in {out / 'failures'}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
