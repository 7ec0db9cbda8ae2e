"""What travels instead of a whole update: the difference to the version that the device says it has.

Made when first asked for, by one thread, for however many devices ask; the last few are kept. A fleet that follows
closely shares one difference, a device that was away gets the steps it missed as one.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from dataclasses import dataclass

from cema.cloud.store.base import BlobStore, Store, UpdateRow
from cema.errors import BundleError, DamagedError, NotFoundError
from cema.wire.bundle import decode_bundle
from cema.wire.difference import Base, encode_difference, source_base, update_base
from cema.wire.messages import BundleManifest

log = logging.getLogger(__name__)
MAX_KEPT = 64
"""Differences in memory, of all groups; each is smaller than the update it stands for."""
_Key = tuple[str, str]


@dataclass(frozen=True)
class Difference:
    """data: from version ``base`` to the update that was asked for."""

    data: bytes
    base: int


class Differences:
    """Single flight per pair of updates. ``get`` belongs to the event loop."""

    def __init__(self, store: Store, blobs: BlobStore) -> None:
        self._store, self._blobs = store, blobs
        self._flights: dict[_Key, asyncio.Task[Difference | None]] = {}
        self._known: OrderedDict[_Key, Difference | None] = OrderedDict()
        self._sources: dict[str, tuple[BundleManifest, Base]] = {}  # by group

    async def get(self, row: UpdateRow, data: bytes, have: int) -> Difference | None:
        """The way from version ``have`` to the update ``row`` with the bytes ``data``; from the source if that version
        is not known any more or was made for another bundle; None if the whole update is shorter."""
        key = (row.blob, f"{row.group}:{have}")
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        flight = self._flights.get(key)
        if flight is None:
            flight = asyncio.create_task(asyncio.to_thread(self._make, row, data, have))
            self._flights[key] = flight
            flight.add_done_callback(lambda done: self._landed(key, done))
        return await asyncio.shield(flight)

    def _landed(self, key: _Key, flight: asyncio.Task[Difference | None]) -> None:
        self._flights.pop(key, None)
        if not flight.cancelled() and flight.exception() is None:
            self._known[key] = flight.result()
            while len(self._known) > MAX_KEPT:
                self._known.popitem(last=False)

    def _make(self, row: UpdateRow, data: bytes, have: int) -> Difference | None:
        source = self._source(row)
        if source is None:
            return None
        manifest, base = source
        earlier = self._earlier(row, manifest, have) if have else None
        encoded = encode_difference(data, earlier or base)
        return None if encoded is None else Difference(encoded, have if earlier else 0)

    def _earlier(self, row: UpdateRow, manifest: BundleManifest, have: int) -> Base | None:
        try:
            earlier = self._store.update(row.group, have)
            if earlier.fingerprint == row.fingerprint:
                return update_base(self._blobs.get(earlier.blob), manifest)
        except NotFoundError:  # forgotten: keep_versions
            return None
        except DamagedError as error:  # else no device that has this version could ever be brought further
            log.error("version %d of group %s is no base for differences: %s", have, row.group, error)
            return None
        return None

    def _source(self, row: UpdateRow) -> tuple[BundleManifest, Base] | None:
        """Of the group's bundle; None if that is no longer the one the update was made for, or cannot be read."""
        known = self._sources.get(row.group)
        if known is not None and known[0].fingerprint == row.fingerprint:
            return known
        group = self._store.state(row.group)
        if group.fingerprint != row.fingerprint:
            return None
        try:
            bundle = decode_bundle(self._blobs.get(group.bundle_blob))
        except BundleError as error:  # the cloud's own fault, which is no reason to refuse the update to a device
            log.warning("group %s: updates travel whole: %s", row.group, error)
            return None
        self._sources[row.group] = bundle.manifest, source_base(bundle)
        return self._sources[row.group]
