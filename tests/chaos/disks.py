"""Disks that can be full: small file systems in memory, else a limit on what a process may write.

A run has a mount namespace of its own (``unshare``), so that its file systems end with it, however it ends. Where the
kernel allows neither root nor user namespaces, filling a disk is played by RLIMIT_FSIZE = 0 of the running processes:
every write to a file fails then, too, with EFBIG instead of ENOSPC; a process that starts meanwhile can write.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

NAMESPACE_VARIABLE = "CEMA_CHAOS_NAMESPACE"
BALLAST = "ballast"
CHUNK_BYTES = 64 * 1024


def enter_namespace(module: str) -> None:
    """Start this program again with mounts of its own, if that is possible here; returns if not, or if it has them."""
    if NAMESPACE_VARIABLE in os.environ or not (unshare := shutil.which("unshare")):
        return
    options = ["--mount"] if os.geteuid() == 0 else ["--mount", "--map-root-user"]
    if subprocess.run([unshare, *options, "true"], capture_output=True, check=False).returncode == 0:
        command = [unshare, *options, sys.executable, "-m", module, *sys.argv[1:]]
        os.execve(unshare, command, {**os.environ, NAMESPACE_VARIABLE: "1"})


class Disk:
    """A folder on a disk of its own. users: ids of the processes that write there."""

    def __init__(self, folder: Path, size_mib: int, users: Callable[[], list[int]]) -> None:
        self.folder, self._users = folder, users
        folder.mkdir(parents=True, exist_ok=True)
        self.mounted = NAMESPACE_VARIABLE in os.environ and _mount(folder, size_mib)
        self._limited: list[int] = []
        self._fault = threading.Lock()

    @contextmanager
    def full(self) -> Iterator[None]:
        """No room on this disk until the end of the block."""
        with self._fault:
            self._fill()
            try:
                yield
            finally:
                self._free()

    def _fill(self) -> None:
        if not self.mounted:
            self._limited = [pid for pid in self._users() if _limit(pid, 0)]
            return
        with (self.folder / BALLAST).open("ab", buffering=0) as file:
            for size in (CHUNK_BYTES, 1):
                _write_until_full(file.fileno(), size)

    def _free(self) -> None:
        for pid in self._limited:
            _limit(pid, resource.RLIM_INFINITY)
        self._limited = []
        (self.folder / BALLAST).unlink(missing_ok=True)


def _mount(folder: Path, size_mib: int) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m,mode=0700", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _write_until_full(descriptor: int, size: int) -> None:
    try:
        while os.write(descriptor, bytes(size)) == size:
            pass
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


def _limit(pid: int, soft: int) -> bool:
    """Of the file size that a process may write; False if it has ended."""
    try:
        hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))
    except (ProcessLookupError, PermissionError):
        return False
    return True
