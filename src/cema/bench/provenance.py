"""Where results come from: command, commit, versions, machine."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from cema import __version__
from cema.bench.rows import Provenance

_PACKAGES = ("numpy", "onnxruntime", "torch", "pillow", "imagecorruptions-imaug")
_CPUINFO = Path("/proc/cpuinfo")


def provenance(arguments: Sequence[str], started_at: datetime) -> Provenance:
    """arguments: of the command line. Absolute paths in it, ``--data=PATH`` as well, mean nothing elsewhere and become
    ``DIR``."""
    command = " ".join(["cema", *map(_without_place, arguments)])
    versions = {"cema": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return Provenance(
        command=command,
        commit=_commit(),
        versions=versions,
        hardware={
            "cpu": _processor(),
            "cores": os.cpu_count() or 0,
            "system": f"{platform.system()} {platform.machine()}",
        },
        started_at=started_at.astimezone(UTC).isoformat(timespec="seconds"),
    )


def _without_place(argument: str) -> str:
    option, equals, value = argument.rpartition("=")
    return f"{option}{equals}DIR" if Path(value).is_absolute() else argument


def _commit() -> str:
    """Of the checkout that this package runs from, with ``+changes`` if it differs; empty for an installed one."""
    git, folder = shutil.which("git"), Path(__file__).parent
    if git is None:
        return ""

    def ask(*arguments: str) -> str | None:
        done = subprocess.run([git, *arguments], cwd=folder, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    head = ask("rev-parse", "HEAD")
    if not head:
        return ""
    return head + ("+changes" if ask("status", "--porcelain", "--", ".") else "")


def _processor() -> str:
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
