"""Immutable bytes in a folder, named by their sha256: ``blobs/ab/abcdef...``.

Updates, bundles and checkpoints lie here. A blob is complete and on disk before any row refers to it, so a power
cut leaves at most a file that nobody knows.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
from pathlib import Path

from cema.errors import DamagedError, NotFoundError, StorageError, shown

_NAME = re.compile(r"[0-9a-f]{64}")


class FolderBlobs:
    """BlobStore on a local file system."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._root = Path(root)

    def put(self, data: bytes) -> str:
        """Write, fsync, rename, fsync of the folder. Writes even if the file exists: that repairs a damaged one."""
        blob = hashlib.sha256(data).hexdigest()
        path = self._path(blob)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write_durably(path, data)
            for folder in (path.parent, self._root, self._root.parent):
                _fsync_folder(folder)
        except OSError as error:
            raise StorageError(f"cannot write blob {blob[:12]} ({len(data)} bytes): {error.strerror}") from error
        return blob

    def get(self, blob: str) -> bytes:
        path = self._path(blob)
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise NotFoundError(f"there is no blob {blob[:12]}") from error
        except OSError as error:
            raise StorageError(f"cannot read blob {blob[:12]}: {error.strerror}") from error
        if hashlib.sha256(data).hexdigest() != blob:
            raise DamagedError(
                f"blob {blob[:12]} is damaged: its {len(data)} bytes have another sha256",
                hint="restore the file from a backup, or build and register the content again",
            )
        return data

    def delete(self, blob: str) -> None:
        try:
            self._path(blob).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"cannot delete blob {blob[:12]}: {error.strerror}") from error

    def _path(self, blob: str) -> Path:
        if not _NAME.fullmatch(blob):
            raise NotFoundError(f"expected a sha256 in hex as the name of a blob, got {shown(blob)}")
        return self._root / blob[:2] / blob


def _write_durably(path: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class MemoryBlobs:
    """BlobStore in a dictionary."""

    def __init__(self) -> None:
        self._blobs: dict[str, bytes] = {}

    def put(self, data: bytes) -> str:
        blob = hashlib.sha256(data).hexdigest()
        self._blobs[blob] = bytes(data)
        return blob

    def get(self, blob: str) -> bytes:
        if blob not in self._blobs:
            raise NotFoundError(f"there is no blob {blob[:12]}")
        return self._blobs[blob]

    def delete(self, blob: str) -> None:
        self._blobs.pop(blob, None)
