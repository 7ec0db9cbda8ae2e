"""The signing key: made once, private, the same for all processes."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cema.cloud.keys import signing_key
from cema.config import ServeConfig, ServerConfig
from cema.errors import SignatureError, StorageError
from cema.wire import signing


def config(folder: Path) -> ServeConfig:
    return ServeConfig(server=ServerConfig(data_dir=str(folder)))


def test_the_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    key = signing_key(config(tmp_path))
    assert signing_key(config(tmp_path)) == key
    (file,) = (tmp_path / "keys").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    signing.verify(b"x", signing.sign(b"x", key), signing.public_key(key))


def test_callers_that_start_at_once_get_the_same_key(tmp_path: Path) -> None:
    start = threading.Barrier(8)

    def call(_: int) -> str:
        start.wait(30)
        return signing_key(config(tmp_path))

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(call, range(8)))) == 1
    assert len(list((tmp_path / "keys").iterdir())) == 1


def test_a_damaged_key_is_refused_and_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "signing.key").write_text("c2hvcnQ=")
    with pytest.raises(SignatureError):
        signing_key(config(tmp_path))
    assert (tmp_path / "keys" / "signing.key").read_text() == "c2hvcnQ="


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("")
    with pytest.raises(StorageError, match=r"signing\.key"):
        signing_key(config(tmp_path))
