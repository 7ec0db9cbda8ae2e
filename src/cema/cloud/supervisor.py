"""Keeps the adaptation workers alive: starts them, restarts crashed ones with a growing pause, and stops them all.

One thread per worker waits for its process; the process that owns the supervisor stays free for the web.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from cema.cloud.parent import PARENT_FD_VARIABLE

BACKOFF_MIN_S, BACKOFF_MAX_S = 0.5, 30.0
"""Pause before a crashed worker is started again; doubles with every crash in a row."""
STEADY_S = 60.0
"""A worker that ran this long was healthy: its next crash is the first in a row."""

log = logging.getLogger(__name__)


def worker_command(config_path: str, index: int) -> list[str]:
    return [sys.executable, "-m", "cema.cloud.worker", "-c", config_path, "--index", str(index)]


class Supervisor:
    """Owns one child process per command between ``start`` and ``stop``."""

    def __init__(self, commands: Sequence[Sequence[str]], *, backoff_min_s: float = BACKOFF_MIN_S) -> None:
        self._commands = commands
        self._backoff_min_s = backoff_min_s
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._threads = [
            threading.Thread(target=self._keep_alive, args=(index,), name=f"worker-{index}")
            for index in range(len(commands))
        ]
        self._read_end, self._write_end = os.pipe()

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def pids(self) -> list[int]:
        """Of the children that run now."""
        with self._lock:
            return [child.pid for child in self._children.values()]

    def terminate(self) -> None:
        """Ask all workers to finish (SIGTERM) and restart none; returns at once."""
        with self._lock:
            self._stopping.set()
            for child in self._children.values():
                child.terminate()

    def stop(self, drain_s: float) -> None:
        """``terminate``, wait up to ``drain_s``, then kill what is left. No child is alive afterwards."""
        self.terminate()
        deadline = time.monotonic() + drain_s
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            for child in self._children.values():
                log.warning("worker process %d did not stop within %.0f s: killed", child.pid, drain_s)
                child.kill()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        for descriptor in (self._read_end, self._write_end):
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def _keep_alive(self, index: int) -> None:
        pause_s = self._backoff_min_s
        while (child := self._spawn(index)) is not None:
            started = time.monotonic()
            code = child.wait()
            with self._lock:
                del self._children[index]
            if self._stopping.is_set():
                return
            if time.monotonic() - started >= STEADY_S:
                pause_s = self._backoff_min_s
            log.error("worker %d ended with exit code %d; starting it again in %.1f s", index, code, pause_s)
            self._stopping.wait(pause_s)
            pause_s = min(2 * pause_s, BACKOFF_MAX_S)

    def _spawn(self, index: int) -> subprocess.Popen[bytes] | None:
        with self._lock:
            if self._stopping.is_set():
                return None
            self._children[index] = child = subprocess.Popen(
                self._commands[index],
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr.fileno(),  # standard output belongs to the one line of 'cema serve'
                pass_fds=(self._read_end,),
                env={**os.environ, PARENT_FD_VARIABLE: str(self._read_end)},
                # A terminal's Ctrl-C goes to the whole foreground group; only this process shall decide who stops.
                start_new_session=True,
            )
            return child
