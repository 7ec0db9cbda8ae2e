"""Memory of a process as the kernel counts it."""

from __future__ import annotations

import os
from pathlib import Path

_KIB_PER_MIB = 1024


def resident_mib(pid: int | None = None) -> float:
    """VmRSS of a process, None = this one, in MiB."""
    status = Path(f"/proc/{pid or os.getpid()}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:")) / _KIB_PER_MIB
