"""What a device believes of what the cloud sent: by whose key, of which group, and that it is not an old one again.

In: bytes with signature and statement. Out: a bundle, its place, or an error; updater.py does nothing before these.
"""

from __future__ import annotations

import hashlib

from cema.config import DeviceConfig
from cema.errors import BundleError, ConfigError, SignatureError, UpdateContentError, shown
from cema.wire import signing
from cema.wire.bundle import Bundle, decode_bundle
from cema.wire.messages import UpdateManifest
from cema.wire.statement import open_statement


def trusted_key(config: DeviceConfig) -> str | None:
    """The key that updates and bundles are checked against; None if the configuration waives the check.

    Raises ConfigError (no usable key), DependencyError (PyNaCl is missing): at start, not at the first update.
    """
    if not config.verify_updates:
        return None
    if config.public_key is None:
        raise ConfigError(
            "expected public_key in device.toml, since verify_updates is true",
            hint="run 'cema device enrol' again, or set verify_updates = false if the link is trusted",
        )
    try:
        signing.check_key(config.public_key)
    except SignatureError as error:
        raise ConfigError(f"expected an Ed25519 public key in base64 as public_key: {error.message}") from error
    return config.public_key


def open_bundle(data: bytes, signature: str, key: str | None) -> Bundle:
    """Verify, then decode a bundle. Raises SignatureError, BundleError, SizeLimitError."""
    if key is not None:
        signing.verify(data, signature, key)
    return decode_bundle(data)


def place_of(statement: str, data: bytes, key: str | None, group: str, seen: int) -> int:
    """The place of bundle ``data`` among those of ``group``, by the cloud's statement; 0 if there is none.

    seen: the place of the last one, 0 if no statement ever came: a cloud of before makes none. Raises SignatureError,
    MessageError; BundleError for a bundle that is not the group's, not this one, or older than the last.
    """
    if key is None or not (statement or seen):
        return seen
    if not statement:
        raise BundleError(
            "expected a statement with the bundle, as with the one before, got none",
            hint="something between device and cloud removes headers, or answers for the cloud",
        )
    said = open_statement(statement, key)
    if (said.group, said.sha256) != (group, hashlib.sha256(data).hexdigest()):
        raise BundleError(f"expected this bundle of group {group}, the statement is of another, of {shown(said.group)}")
    if said.sequence < seen:
        raise BundleError(
            f"expected bundle {seen} of group {group} or a later one, got {said.sequence}",
            hint="an old one was sent again; if the cloud was restored from a backup, remove pointer.json in state_dir",
        )
    return said.sequence


def check_manifest(manifest: UpdateManifest, bundle: Bundle, group: str, have: int) -> None:
    """Whether a verified update is for a device of ``group`` that runs ``bundle`` and has version ``have``.

    Raises UpdateContentError.
    """
    if manifest.group != group:
        raise UpdateContentError(f"expected an update for group {group}, got {shown(manifest.group)}")
    if manifest.stats_owner == "edge" and bundle.follows and not bundle.measures:
        raise UpdateContentError(
            "expected an update with running statistics: this bundle cannot measure its own",
            hint="build the bundle without --int8, or use a method whose statistics are the cloud's",
        )
    if manifest.version <= have:  # a rollback has a new version, too: this is an old one, replayed
        raise UpdateContentError(
            f"expected a version above {have}, got {manifest.version}",
            hint="versions only rise, also when the cloud rolls back",
            version=manifest.version,
        )
