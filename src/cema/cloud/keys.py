"""The cloud's signing key (Ed25519): made once, kept in ``data_dir/keys/signing.key``, readable by its owner alone.

Workers sign updates with it, the web process signs bundles, devices carry its public half in ``device.toml``.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cema.config import ServeConfig
from cema.errors import StorageError
from cema.wire import signing


def signing_key(config: ServeConfig) -> str:
    """The private key, base64; made at the first call. Several processes may call at once. Raises StorageError."""
    path = Path(config.server.data_dir) / "keys" / "signing.key"
    try:
        if not path.exists():
            write_once(path, signing.generate_key() + "\n")
        key = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"expected a signing key at {path}: {error}") from error
    signing.public_key(key)  # raises SignatureError for a damaged file, before anything is signed with it
    return key


def write_once(path: Path, text: str) -> None:
    """A file of mode 0600 that appears complete or not at all, and never replaces the one that another process has just
    made. Raises OSError."""
    with _written_beside(path, text) as name, contextlib.suppress(FileExistsError):
        os.link(name, path)


def replace_private(path: Path, text: str) -> None:
    """As ``write_once``, in the place of what is there. Raises OSError."""
    with _written_beside(path, text) as name:
        os.replace(name, path)


@contextlib.contextmanager
def _written_beside(path: Path, text: str) -> Iterator[str]:
    """A file on the disk under another name, for the time of the block; then the folder as the block left it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)  # mkstemp makes it 0600
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        yield name
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
