"""Workers are kept alive, stopped in time, and never outlive their parent. Real processes, no torch."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cema.cloud.supervisor import Supervisor, worker_command

# A child reports its pid through a named pipe, then waits for whatever comes.
CHILD = """
import os, signal, sys
from cema.cloud.parent import exit_with_parent
if sys.argv[2] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
exit_with_parent()
with open(sys.argv[1], "w") as pipe:
    pipe.write(f"{os.getpid()}\\n")
signal.pause() if sys.argv[2] != "crash" else sys.exit(3)
"""
PARENT = """
import sys, signal
from cema.cloud.supervisor import Supervisor
Supervisor([[sys.executable, "-c", sys.argv[1], sys.argv[2], "deaf"]]).start()
signal.pause()
"""


class Reports:
    """Reads the pids that children write."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = str(path)
        self._descriptor = os.open(path, os.O_RDWR)
        self._buffer = b""

    def next_pid(self) -> int:
        while b"\n" not in self._buffer:
            readable, _, _ = select.select([self._descriptor], [], [], 60)
            assert readable, "no child reported"
            self._buffer += os.read(self._descriptor, 4096)
        line, self._buffer = self._buffer.split(b"\n", 1)
        return int(line)

    def close(self) -> None:
        os.close(self._descriptor)


@pytest.fixture
def reports(tmp_path: Path) -> Iterator[Reports]:
    with closing(Reports(tmp_path / "pids")) as made:
        yield made


def command(reports: Reports, behaviour: str) -> list[str]:
    return [sys.executable, "-c", CHILD, reports.path, behaviour]


def gone(pid: int) -> bool:
    """Whether the process ended within a minute (the descriptor becomes readable then)."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], 60)[0])
    finally:
        os.close(descriptor)


def test_a_crashed_worker_is_started_again(reports: Reports) -> None:
    supervisor = Supervisor([command(reports, "crash")], backoff_min_s=0.01)
    supervisor.start()
    pids = {reports.next_pid() for _ in range(3)}
    supervisor.stop(30)
    assert len(pids) == 3
    assert supervisor.pids() == []


def test_stop_ends_all_workers(reports: Reports) -> None:
    supervisor = Supervisor([command(reports, "polite"), command(reports, "polite")])
    supervisor.start()
    pids = {reports.next_pid(), reports.next_pid()}
    assert set(supervisor.pids()) == pids
    supervisor.stop(30)
    assert supervisor.pids() == []
    assert all(gone(pid) for pid in pids)


def test_a_worker_that_does_not_stop_in_time_is_killed(reports: Reports) -> None:
    supervisor = Supervisor([command(reports, "deaf")])
    supervisor.start()
    pid = reports.next_pid()
    supervisor.stop(0.05)
    assert gone(pid)


def test_a_supervisor_that_never_started_can_be_stopped() -> None:
    supervisor = Supervisor([["false"]])
    supervisor.stop(0)
    assert supervisor.pids() == []


def test_a_worker_ends_when_its_parent_is_killed(reports: Reports) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD, reports.path])
    child = reports.next_pid()
    parent.send_signal(signal.SIGKILL)
    parent.wait(30)
    assert gone(child)


def test_the_workers_command_names_its_configuration_and_index() -> None:
    assert worker_command("/x/cema.toml", 3)[1:] == ["-m", "cema.cloud.worker", "-c", "/x/cema.toml", "--index", "3"]
