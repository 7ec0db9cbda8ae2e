"""A published version as a file for devices without a network, with the group's bundle if asked."""

from __future__ import annotations

from cema.cloud.store.base import BlobStore, Store, UpdateRow
from cema.errors import ConflictError, NotFoundError
from cema.wire import signing
from cema.wire.update_file import UpdateFile, encode_update_file


def export_update(
    store: Store, blobs: BlobStore, group: str, version: int | None, *, with_bundle: bool, key: str
) -> tuple[UpdateRow, bytes]:
    """The row of a version (None = the latest) and the bytes of its file. key: private, base64; signs the bundle.

    Raises NotFoundError (no such group or version), ConflictError (with_bundle: the group has another one by now).
    """
    row = store.group(group)
    if version is None and row.latest_version == 0:
        raise NotFoundError(f"group {group!r} has no version yet", hint="devices run the source of their bundle")
    update = store.update(group, row.latest_version if version is None else version)
    bundle = signature = None
    if with_bundle:
        if update.fingerprint != row.fingerprint:
            raise ConflictError(
                f"version {update.version} is for bundle {update.fingerprint[:12]}, "
                f"group {group!r} runs {row.fingerprint[:12]}",
                hint="take a version of the group's present bundle, or leave the bundle out",
            )
        bundle = blobs.get(row.bundle_blob)
        signature = signing.sign(bundle, key)
    content = UpdateFile(
        update=blobs.get(update.blob),
        signature=update.signature,
        bundle=bundle or b"",
        bundle_signature=signature or "",
    )
    return update, encode_update_file(content)
