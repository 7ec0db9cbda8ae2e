"""The cloud's signing key (Ed25519): made once, kept in ``data_dir/keys/signing.key``, readable by its owner alone.

Workers sign updates with it, the web process signs bundles, devices carry its public half in ``device.toml``.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from cema.config import ServeConfig
from cema.errors import StorageError
from cema.wire import signing


def signing_key(config: ServeConfig) -> str:
    """The private key, base64; made at the first call. Several processes may call at once. Raises StorageError."""
    path = Path(config.server.data_dir) / "keys" / "signing.key"
    try:
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write_once(path, signing.generate_key())
        key = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"expected a signing key at {path}: {error}") from error
    signing.public_key(key)  # raises SignatureError for a damaged file, before anything is signed with it
    return key


def _write_once(path: Path, key: str) -> None:
    """A link appears complete or not at all, and never replaces the key that another process has just made."""
    handle, name = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)  # mkstemp makes it 0600
    try:
        with os.fdopen(handle, "w") as file:
            file.write(key + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(name, path)
        except FileExistsError:
            return
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        os.unlink(name)
