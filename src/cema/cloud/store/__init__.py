"""The cloud's memory: rows in a database, immutable bytes in blobs.

Web process and workers share nothing else (design section 2). ``base`` is the contract, ``sql`` and ``blobs`` keep
it on disk, ``memory`` keeps it in one process for the benchmark's lock-step simulator.
"""

from __future__ import annotations

from pathlib import Path

from cema.cloud.store.base import BlobStore, Store
from cema.cloud.store.blobs import FolderBlobs
from cema.cloud.store.sql import SqlStore
from cema.config import ServeConfig
from cema.errors import StorageError


def open_store(config: ServeConfig) -> tuple[Store, BlobStore]:
    """The store that ``cema.toml`` names: SQLite and a folder below ``data_dir``. Raises StorageError."""
    folder = Path(config.server.data_dir)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"expected a writable data_dir at {folder}: {error.strerror}") from error
    return SqlStore.open(f"sqlite:///{folder / 'cema.db'}"), FolderBlobs(folder / "blobs")
