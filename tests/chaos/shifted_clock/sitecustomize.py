"""Moves the wall clock of a process that has this folder on its path: the cloud has no other way to be told the time.

The offset in seconds is read from the file that the environment variable names, each time somebody asks.
"""

import os
import time

_FILE = os.environ["CEMA_CHAOS_CLOCK"]
_time_ns, _time = time.time_ns, time.time


def _offset_s() -> float:
    try:
        with open(_FILE) as file:
            return float(file.read() or 0)
    except (OSError, ValueError):
        return 0.0


time.time_ns = lambda: _time_ns() + round(_offset_s() * 1e9)
time.time = lambda: _time() + _offset_s()
