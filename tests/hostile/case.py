"""One hostile input as data: who is to decode it, what is wrong with it, and with which documented code it ends."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cema.errors import all_errors

TAKEN = "taken"
"""In the place of a code: odd, but harmless and allowed by docs/protocol.md. It is used like any other input."""
CODES = frozenset({TAKEN, *(kind.code for kind in all_errors())})
MIB = 1024 * 1024
MEMORY_BYTES = 48 * MIB
"""What refusing an input may cost beside the input itself, allocator and other threads of the process included."""
_HIGH_WATER = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Case:
    """decoder: what reads it. defect: what is wrong. code: the error's, or TAKEN. build: makes the input.

    options: for the door that it comes in by, explained there. memory_bytes: most that the process may grow by.
    """

    name: str
    decoder: str
    defect: str
    code: str
    build: Callable[[], Any]
    options: dict[str, Any] = field(default_factory=dict)
    memory_bytes: int = MEMORY_BYTES


def each(cases: Sequence[Case]) -> pytest.MarkDecorator:
    """Run a test once for every case."""
    return pytest.mark.parametrize("case", cases, ids=lambda case: re.sub(r"[^\w.=-]+", "_", case.name))


@contextmanager
def bounded(case: Case) -> Iterator[None]:
    """The process must not grow by more than the case allows in here; what C libraries allocate is counted, too."""
    resettable = _reset_high_water()
    before = _status_bytes("VmRSS" if resettable else "VmHWM")
    yield
    grown = _status_bytes("VmHWM") - before
    assert grown <= case.memory_bytes, f"{case.name}: grew by {grown / MIB:.0f} MiB"


def check_error(case: Case, code: str, message: str, hint: str) -> None:
    """The documented code, and words that say what was expected or what to do, without the inside of the process."""
    assert code == case.code, f"{code}: {message}"
    assert hint or "expected" in message, message
    assert len(message) + len(hint) < 2000, "hostile input must not be echoed at length"
    assert " object at 0x" not in message + hint
    assert "Traceback" not in message + hint


def contents(folder: Path, *, without: Sequence[str] = ()) -> dict[str, bytes]:
    """Everything in a folder, by relative name."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in without)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _reset_high_water() -> bool:
    try:
        _HIGH_WATER.write_text("5")
    except OSError:  # not allowed in every container: then only a new record counts
        return False
    return True


def _status_bytes(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", _STATUS.read_text())
    assert found is not None
    return int(found[1]) * 1024
