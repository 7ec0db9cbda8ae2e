"""How many connections the web process can hold: each costs a file descriptor, and a device has two of them.

The soft limit with which processes start (often 1024) is there for programs that use ``select``; the hard one is what
the operator allows. At the limit nothing can be opened any more, no blob and no database either: connections therefore
leave some over.
"""

from __future__ import annotations

import resource
from contextlib import suppress

RESERVED = 256
"""Descriptors that connections of devices leave to the store, the workers' pipes and the operators' listener."""
CONNECTIONS_PER_DEVICE = 2
"""One uploads, one waits for updates."""


def hard_limit() -> int:
    """Descriptors that a process of this user may raise its limit to."""
    return _finite(resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def raise_limit() -> None:
    """The soft limit of this process becomes the hard one."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with suppress(ValueError, OSError):  # macOS says "unlimited" and means some thousands
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def max_connections() -> int:
    """Connections of devices that this process can hold, at least one."""
    return max(1, _finite(resource.getrlimit(resource.RLIMIT_NOFILE)[0]) - RESERVED)


def devices_within(limit: int) -> int:
    """How many devices a cloud with so many descriptors can serve."""
    return max(0, limit - RESERVED) // CONNECTIONS_PER_DEVICE


def _finite(limit: int) -> int:
    return 1 << 30 if limit == resource.RLIM_INFINITY else limit
