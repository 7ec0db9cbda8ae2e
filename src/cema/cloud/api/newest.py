"""What the long polls answer with: looked up once for all devices of a group that ask at the same time.

When a version is published, the whole fleet wakes in the same millisecond; one thread reads the store for it, and the
bytes of each group's latest version stay in memory.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from cema.cloud.store.base import BlobStore, Store, UpdateRow
from cema.errors import NotFoundError


@dataclass(frozen=True)
class Newest:
    """State of a group. row, data: of its latest version; None and empty while there is none."""

    fingerprint: str
    version: int
    row: UpdateRow | None = None
    data: bytes = b""


class NewestUpdates:
    """Single flight per group. ``get`` belongs to the event loop."""

    def __init__(self, store: Store, blobs: BlobStore) -> None:
        self._store = store
        self._blobs = blobs
        self._flights: dict[str, asyncio.Task[Newest]] = {}
        self._known: dict[str, Newest] = {}

    async def get(self, group: str) -> Newest:
        """A caller that joins a flight may get a state a moment old: the watch then wakes it again at once."""
        flight = self._flights.get(group)
        if flight is None:
            flight = asyncio.create_task(asyncio.to_thread(self._look, group))
            self._flights[group] = flight
            flight.add_done_callback(lambda _: self._flights.pop(group, None))
        return await asyncio.shield(flight)

    def _look(self, group: str) -> Newest:
        current = self._store.group(group)
        known = self._known.get(group)
        if known is not None and (known.fingerprint, known.version) == (current.fingerprint, current.latest_version):
            return known
        found = Newest(current.fingerprint, current.latest_version)
        if current.latest_version > 0:
            try:
                row = self._store.update(group, current.latest_version)
                found = Newest(current.fingerprint, row.version, row, self._blobs.get(row.blob))
            except NotFoundError:  # superseded and forgotten in between: the next look finds its successor
                return found
        self._known[group] = found
        return found
