"""The BlobStore contract, on every implementation, and what only a folder has to promise."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cema.cloud.store.base import BlobStore
from cema.cloud.store.blobs import FolderBlobs, MemoryBlobs
from cema.errors import NotFoundError, StorageError


@pytest.fixture(params=["memory", "folder"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    return MemoryBlobs() if request.param == "memory" else FolderBlobs(tmp_path / "blobs")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=4096))
def test_what_was_put_is_got_by_its_sha256(blobs: BlobStore, data: bytes) -> None:
    blob = blobs.put(data)
    assert blob == hashlib.sha256(data).hexdigest()
    assert blobs.get(blob) == data


def test_the_same_bytes_may_be_put_by_many_at_once(blobs: BlobStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(blobs.put, [b"same"] * 32))) == 1


def test_a_deleted_blob_is_not_found_and_may_be_deleted_again(blobs: BlobStore) -> None:
    blob = blobs.put(b"x")
    blobs.delete(blob)
    blobs.delete(blob)
    with pytest.raises(NotFoundError):
        blobs.get(blob)


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "A" * 64, "0" * 63, "0" * 64])
def test_a_name_that_is_no_known_sha256_is_not_found(blobs: BlobStore, name: str) -> None:
    with pytest.raises(NotFoundError):
        blobs.get(name)


def test_a_damaged_file_is_noticed_and_repaired_by_putting_it_again(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path)
    blob = blobs.put(b"content")
    path = tmp_path / blob[:2] / blob
    path.write_bytes(b"c0ntent")
    with pytest.raises(StorageError, match="damaged"):
        blobs.get(blob)
    blobs.put(b"content")
    assert blobs.get(blob) == b"content"
    assert list(path.parent.iterdir()) == [path], "no temporary file is left"


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        FolderBlobs(tmp_path / "file" / "blobs").put(b"x")
