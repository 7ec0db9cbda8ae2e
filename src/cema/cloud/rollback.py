"""An operator's way back: the parameters of an older version, or of the source, as a new and signed version.

Version numbers only rise, so every device takes a rollback as it takes any update, and an old one that somebody has
recorded stays refused. The group goes back with it (``Store.roll_back``): its next step starts from these parameters.
Neither torch nor a worker is needed for it.
"""

from __future__ import annotations

import logging

import msgspec

from cema.cloud.store.base import BlobStore, GroupRow, NewUpdate, Store, UpdateRow
from cema.errors import ConflictError, DamagedError, WireError
from cema.types import NormParameters
from cema.wire import signing
from cema.wire.bundle import Bundle, decode_bundle
from cema.wire.messages import UpdateManifest
from cema.wire.update import encode_update, open_update

log = logging.getLogger(__name__)

ATTEMPTS = 8
"""A worker may publish while a rollback is being made; it does that at most once in ``publish_min_interval_s``."""


def roll_back(store: Store, blobs: BlobStore, group: str, to: int, *, key: str, now_ms: int) -> UpdateRow:
    """Publish the parameters of version ``to`` (0 = source) as the group's next version; returns its row.

    key: private, base64. Raises NotFoundError (no such group or version), ConflictError (it is the latest one, or was
    made for another bundle), StorageError (also for stored bytes that are damaged).
    """
    for attempt in range(1, ATTEMPTS + 1):
        row = store.group(group)
        update = _made(store, blobs, row, to, key, now_ms)
        try:
            store.roll_back(group, row.lineage, update, now_ms)
        except ConflictError:
            if attempt == ATTEMPTS:
                raise
        else:
            log.warning("group %s: version %d takes back %d and restores %d", group, update.version, row.latest_version,
                        to)  # fmt: skip
            return store.update(group, update.version)
    raise AssertionError("the last attempt returns or raises")


def _made(store: Store, blobs: BlobStore, row: GroupRow, to: int, key: str, now_ms: int) -> NewUpdate:
    latest = _of_this_bundle(store, row, row.latest_version) if row.latest_version else None
    if latest is None or to == latest.version:
        raise ConflictError(
            f"expected an earlier version than the latest of group {row.name!r}, got {to} of {row.latest_version}",
            hint="'cema update list' shows the versions that are kept; 0 is the source",
        )
    model = latest if to == 0 else _of_this_bundle(store, row, to)
    bundle, manifest, parameters = _opened(blobs, row, model)
    if to == 0:  # exactly what the devices have in their bundle, in every world
        parameters = bundle.source_parameters()
        manifest = msgspec.structs.replace(manifest, encoding="float32", domain=msgspec.UNSET)
    manifest = msgspec.structs.replace(
        manifest, version=latest.version + 1, created_at_ms=now_ms, rollback_of=latest.version
    )
    data = encode_update(manifest, parameters)
    open_update(data, bundle.manifest)
    return NewUpdate(
        manifest.version,
        blobs.put(data),
        signing.sign(data, key),
        len(data),
        manifest.method,
        model.metrics if to else {},
        rollback_of=latest.version,
        restores=to,
    )


def _of_this_bundle(store: Store, row: GroupRow, version: int) -> UpdateRow:
    found = store.update(row.name, version)
    if found.fingerprint != row.fingerprint:
        raise ConflictError(
            f"version {version} of group {row.name!r} is for bundle {found.fingerprint[:12]}, "
            f"the devices run {row.fingerprint[:12]}",
            hint="take a version that was made for the group's bundle; 0 is its source",
        )
    return found


def _opened(blobs: BlobStore, group: GroupRow, row: UpdateRow) -> tuple[Bundle, UpdateManifest, NormParameters]:
    try:
        bundle = decode_bundle(blobs.get(group.bundle_blob))
        update = open_update(blobs.get(row.blob), bundle.manifest)
    except WireError as error:  # nothing that who asks could mend
        raise DamagedError(f"group {group.name!r}: {error.message}", hint="restore data_dir from a backup") from error
    return bundle, update.manifest, update.parameters
