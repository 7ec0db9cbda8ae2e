"""An update that comes as a file, for a device that the cloud cannot reach: verified, checked, kept for the next start.

The agent is not running meanwhile: whoever holds the folder's lock decides what is in it. What is stored here is
what the poller would have stored, so the agent starts with it like with any other update.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from cema.config import DeviceConfig
from cema.edge.session import EdgeSession
from cema.edge.slots import StateFolder, Stored
from cema.edge.verification import check_manifest, open_bundle, trusted_key
from cema.errors import BaseMismatchError, ConfigError, ConflictError, NotFoundError, WireError
from cema.wire.bundle import Bundle
from cema.wire.messages import UpdateManifest
from cema.wire.update import Update, open_update
from cema.wire.update_file import UpdateFile


@dataclass(frozen=True)
class Imported:
    """What the device starts with from now on. changed: False if it had just that already."""

    manifest: UpdateManifest
    new_bundle: bool
    changed: bool


def import_update(config: DeviceConfig, content: UpdateFile) -> Imported:
    """Take over an update, and the bundle that came with it, if it is another one. All is checked before the first
    change.

    Raises ConfigError (no public key), ConflictError (the agent is running), NotFoundError (no bundle, here or there),
    SignatureError, BaseMismatchError, UpdateContentError (another group, or not newer), BundleError, StorageError.
    """
    key = _key(config)
    try:
        folder = StateFolder(config.state_dir)
    except ConflictError as error:
        raise ConflictError(
            f"the agent of device {config.device_id!r} is running: it holds the state folder {config.state_dir}",
            hint="stop it, import the file, start it again",
        ) from error
    try:
        return _taken_over(config, folder, content, key)
    finally:
        folder.close()


def _key(config: DeviceConfig) -> str:
    if config.public_key is None:
        raise ConfigError(
            "expected public_key in device.toml: what comes as a file is always verified",
            hint="take the one that 'cema device enrol' wrote",
        )
    key = trusted_key(msgspec.structs.replace(config, verify_updates=True))
    assert key is not None
    return key


def _taken_over(config: DeviceConfig, folder: StateFolder, content: UpdateFile, key: str) -> Imported:
    stored = folder.bundle()
    bundle, offered = _bundle_for(stored, content, key)
    update = _opened(content, bundle, key)
    before = None if folder.group not in (None, config.group) else folder.latest()
    if before is not None and before.data == update.data and not offered:
        return Imported(update.manifest, new_bundle=False, changed=False)
    check_manifest(update.manifest, bundle, config.group, 0 if before is None else before.version)
    runtime = config.runtime
    session = EdgeSession(
        bundle, update.parameters, update.manifest.version, providers=runtime.providers, threads=runtime.threads
    )
    session.smoke_test()
    if offered:
        folder.put_bundle(content.bundle, content.bundle_signature)
    folder.put_update(update.data, content.signature, update.manifest.version, bundle.manifest.fingerprint)
    return Imported(update.manifest, new_bundle=offered, changed=True)


def _bundle_for(stored: Stored | None, content: UpdateFile, key: str) -> tuple[Bundle, bool]:
    """The bundle that the device will run, and whether that is the file's, which it has not got."""
    if content.bundle and (stored is None or stored.data != content.bundle):
        return open_bundle(content.bundle, content.bundle_signature, key), True
    if stored is None:
        raise NotFoundError(
            "expected a bundle in the state folder or in the file, found none", hint="export the file with --bundle"
        )
    try:
        return open_bundle(stored.data, stored.signature, key), False
    except WireError:
        if not content.bundle:
            raise
        return open_bundle(content.bundle, content.bundle_signature, key), True


def _opened(content: UpdateFile, bundle: Bundle, key: str) -> Update:
    try:
        return open_update(content.update, bundle.manifest, signature=content.signature, key=key)
    except BaseMismatchError as error:
        raise BaseMismatchError(error.message, hint="export the file with --bundle", **error.values) from error
