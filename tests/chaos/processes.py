"""Processes that are started again whenever they end, as a service manager would; who ended them is on record."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil

from chaos.evidence import Recorder

RESPAWN_S = 0.5
"""Pause before a process that ended by itself is started again."""
STOP_LIMIT_S = 30.0
"""For a process to end after SIGTERM."""
WORKER_MODULE = "cema.cloud.worker"


class Kept:
    """One process. spawn: starts it; its standard output is ours to read (``on_line``)."""

    def __init__(
        self, name: str, spawn: Callable[[], subprocess.Popen[bytes]], record: Recorder,
        on_line: Callable[[bytes], None],
    ) -> None:  # fmt: skip
        self.name, self._spawn, self._record, self._on_line = name, spawn, record, on_line
        self.fault = threading.RLock()  # one fault at a time
        self._allowed, self._closing = threading.Event(), threading.Event()
        self._ours = False
        self._mutex = threading.Lock()
        self.child: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep, name=name)

    def start(self) -> None:
        self._allowed.set()
        self._thread.start()

    @property
    def pid(self) -> int | None:
        """Of the process that runs now."""
        with self._mutex:
            return self.child.pid if self.child is not None and self.child.returncode is None else None

    @contextmanager
    def down(self) -> Iterator[bool]:
        """kill -9, and no new start before the end of the block. Gives whether there was anything to be killed."""
        with self.fault:
            self._allowed.clear()
            with self._mutex:
                child, self._ours = self.child, True
                found = child is not None and child.poll() is None
                if child is not None and found:
                    self._record("kill", name=self.name, pid=child.pid)
                    child.kill()
            if child is not None:
                child.wait()
            try:
                yield found
            finally:
                self._allowed.set()

    def stop(self) -> None:
        """SIGTERM, and no further start; what does not end in time is killed, and on record as hung."""
        with self.fault:
            self._closing.set()
            with self._mutex:
                child, self._ours = self.child, True
            if child is not None and child.poll() is None:
                self._record("terminate", name=self.name, pid=child.pid)
                child.terminate()
                try:
                    child.wait(STOP_LIMIT_S)
                except subprocess.TimeoutExpired:
                    self._record("hung", name=self.name, pid=child.pid, doing="stopping")
                    child.kill()
            self._allowed.set()
        self._thread.join()

    def _keep(self) -> None:
        while True:
            self._allowed.wait()
            with self._mutex:
                if self._closing.is_set():
                    return
                self._ours = False
                self.child = child = self._spawn()
            self._record("spawn", name=self.name, pid=child.pid)
            assert child.stdout is not None
            for line in child.stdout:
                self._on_line(line)
            code = child.wait()
            self._record("exit", name=self.name, pid=child.pid, code=code, ours=self._ours)
            for stream in (child.stdin, child.stdout):
                if stream is not None:
                    stream.close()
            if not self._ours:
                self._closing.wait(RESPAWN_S)


@contextmanager
def stopped(pid: int, name: str, record: Recorder) -> Iterator[None]:
    """SIGSTOP now, SIGCONT at the end of the block."""
    record("stop", name=name, pid=pid)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        record("continue", name=name, pid=pid)


def workers_of(pid: int | None) -> list[psutil.Process]:
    """The adaptation workers of a web process."""
    try:
        children = psutil.Process(pid).children() if pid is not None else []
        return [child for child in children if WORKER_MODULE in child.cmdline()]
    except psutil.Error:
        return []
