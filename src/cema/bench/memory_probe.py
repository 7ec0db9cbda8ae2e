"""Peak memory of each side although both live in one process: what a side's work added, at its highest.

Linux keeps a high-water mark of resident memory that a process may reset. It is reset before a side works and read
afterwards; what stays resident when the work is done counts for that side from then on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

Side = Literal["edge", "cloud"]
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
"""Written to clear_refs it resets the high-water mark alone (proc(5))."""
_KB_PER_MB = 1024


class MemoryProbe:
    """Adds up by side. All figures in MiB; None where the system does not tell."""

    def __init__(self) -> None:
        self.available = _STATUS.exists() and _may_reset()
        self._kept: dict[Side, float] = {"edge": 0.0, "cloud": 0.0}
        self._peak: dict[Side, float] = {"edge": 0.0, "cloud": 0.0}
        self._process_peak = 0.0

    @contextmanager
    def side(self, side: Side) -> Iterator[None]:
        """What runs inside is that side's work."""
        if not self.available:
            yield
            return
        before, _ = self._read()
        _RESET.write_text(_RESET_PEAK)
        try:
            yield
        finally:
            after, peak = self._read()
            self._peak[side] = max(self._peak[side], self._kept[side] + max(peak - before, 0.0))
            self._kept[side] += after - before
            self._process_peak = max(self._process_peak, peak)

    def peak_mb(self, side: Side) -> float | None:
        """Memory that the side's work added, at its highest."""
        return self._peak[side] if self.available else None

    @property
    def process_peak_mb(self) -> float:
        """Of the whole process while either side worked; 0 if unknown."""
        return self._process_peak

    @staticmethod
    def _read() -> tuple[float, float]:
        """(resident, high-water mark)."""
        fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
        resident, peak = (int(fields[name].split()[0]) / _KB_PER_MB for name in ("VmRSS", "VmHWM"))
        return resident, peak


def _may_reset() -> bool:
    """Some containers show the file and refuse to let it be written."""
    try:
        _RESET.write_text(_RESET_PEAK)
    except OSError:
        return False
    return True
