"""From ``cema.toml`` to the store: each configured group gets its bundle; others are switched off."""

from __future__ import annotations

import logging
from pathlib import Path

from cema.cloud.store.base import BlobStore, GroupRow, Store
from cema.config import ServeConfig
from cema.errors import BundleError
from cema.wire.bundle import decode_bundle

log = logging.getLogger(__name__)


def register_groups(config: ServeConfig, store: Store, blobs: BlobStore, now_ms: int) -> list[GroupRow]:
    """Bring the store's groups in line with the configuration. Raises BundleError for a file that is none."""
    rows = [register_group(config, name, store, blobs, now_ms) for name in config.groups]
    for row in store.groups():
        if row.name not in config.groups and row.adaptation == "on":
            log.warning("group %s is not configured any more: its adaptation is switched off", row.name)
            store.put_group(row.name, row.fingerprint, row.bundle_blob, "off", now_ms)
    return rows


def register_group(config: ServeConfig, name: str, store: Store, blobs: BlobStore, now_ms: int) -> GroupRow:
    """Put the bundle of one configured group into the store. Raises BundleError."""
    group = config.groups[name]
    try:
        data = Path(group.bundle).read_bytes()
    except OSError as error:
        raise BundleError(
            f"expected the bundle of group {name!r} at {group.bundle}: {error.strerror}",
            hint="make it with 'cema bundle build', or correct groups.*.bundle",
        ) from error
    fingerprint = decode_bundle(data).manifest.fingerprint
    row = store.put_group(name, fingerprint, blobs.put(data), group.adaptation, now_ms)
    # Again, now that a row refers to it: a house-keeper may have deleted these bytes, unused until now, in between.
    blobs.put(data)
    return row
