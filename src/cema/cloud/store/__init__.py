"""The cloud's memory: rows in a database, immutable bytes in blobs.

Web process and workers share nothing else (design section 2). ``base`` is the contract, ``sql`` and ``blobs`` keep
it on disk, ``memory`` keeps it in one process for the benchmark's lock-step simulator.
"""

from __future__ import annotations

from pathlib import Path

from cema.cloud.store.base import BlobStore, Store
from cema.cloud.store.blobs import FolderBlobs
from cema.cloud.store.intact import check_intact
from cema.cloud.store.sealing import SampleKeys
from cema.cloud.store.sql import SqlStore
from cema.config import ServeConfig
from cema.errors import StorageError


def open_store(config: ServeConfig, *, for_pictures: bool = False, checked: bool = False) -> tuple[Store, BlobStore]:
    """The store that ``cema.toml`` names: SQLite and a folder below ``data_dir``. Raises StorageError.

    for_pictures: whether pictures will be written or read, and so all their keys have to be there; the first is made.
    checked: whether the whole database is looked through for damage first.
    """
    folder = Path(config.server.data_dir)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"expected a writable data_dir at {folder}: {error.strerror}") from error
    keys = sample_keys(config)
    if checked:
        check_intact(database_file(config))
    store = SqlStore.open(f"sqlite:///{database_file(config)}", keys)
    try:
        if for_pictures:
            keys.check(store.sealed_with())
            if keys.seals and not keys.names:
                keys.add()
    except StorageError:
        store.close()
        raise
    return store, FolderBlobs(folder / "blobs")


def database_file(config: ServeConfig) -> Path:
    return Path(config.server.data_dir) / "cema.db"


def sample_keys(config: ServeConfig) -> SampleKeys:
    """The keys that ``cema.toml`` names. Raises StorageError."""
    server = config.server
    file = Path(server.sample_key_file) if server.sample_key_file else Path(server.data_dir) / "keys" / "samples.key"
    return SampleKeys(file, seals=server.encrypt_samples)
