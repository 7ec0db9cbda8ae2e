"""A worker does not outlive the process that started it, even if that one is killed with -9.

The parent holds the writing end of a pipe and never writes; the kernel closes it when the parent dies, and the child
that reads it sees the end of file. A worker that was started by hand has no such pipe and stays.
"""

from __future__ import annotations

import os
import threading

PARENT_FD_VARIABLE = "CEMA_PARENT_FD"
ORPHANED_EXIT_CODE = 70


def exit_with_parent() -> None:
    """Watch the parent's pipe in the background. An adapt step is one transaction, so stopping anywhere is safe."""
    descriptor = os.environ.get(PARENT_FD_VARIABLE)
    if descriptor is not None:
        threading.Thread(target=_watch, args=(int(descriptor),), name="parent-watch", daemon=True).start()


def _watch(descriptor: int) -> None:
    os.read(descriptor, 1)  # returns only when the parent is gone
    os._exit(ORPHANED_EXIT_CODE)
