"""What the long polls answer with: looked up once for all devices of a group that ask at the same time.

When a version is published, the whole fleet wakes in the same millisecond; one thread reads the store for it, and the
bytes of each group's latest version stay in memory. Whether all of them may still have it is one look, too.
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
    """Single flight per group. ``get`` and ``devices_changed_ms`` belong to the event loop."""

    def __init__(self, store: Store, blobs: BlobStore) -> None:
        self._store = store
        self._blobs = blobs
        self._flights: dict[str, asyncio.Task[Newest]] = {}
        self._known: dict[str, Newest] = {}
        self._changed_flight: asyncio.Task[int] | None = None

    async def get(self, group: str) -> Newest:
        """A caller that joins a flight may get a state a moment old: the watch then wakes it again at once."""
        flight = self._flights.get(group)
        if flight is None:
            flight = asyncio.create_task(asyncio.to_thread(self._look, group))
            self._flights[group] = flight
            flight.add_done_callback(lambda _: self._flights.pop(group, None))
        return await asyncio.shield(flight)

    async def devices_changed_ms(self) -> int:
        """When a device was last enrolled or revoked, Unix milliseconds."""
        if self._changed_flight is None:
            self._changed_flight = asyncio.create_task(asyncio.to_thread(self._store.devices_changed_ms))
            self._changed_flight.add_done_callback(self._changed_landed)
        return await asyncio.shield(self._changed_flight)

    def _changed_landed(self, _: asyncio.Task[int]) -> None:
        self._changed_flight = None

    def _look(self, group: str) -> Newest:
        current = self._store.state(group)
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
