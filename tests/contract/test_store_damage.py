"""A damaged database is said, wherever the damage is, and by whoever meets it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cema.cloud.store.intact import check_intact
from cema.cloud.store.sql import SqlStore
from cema.errors import DamagedError, StorageError
from cema.wire.messages import Sample, SampleBatch

PAGE_BYTES = 4096
SAMPLES = 200


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Pictures that fill many pages, each smaller than one."""
    file = tmp_path / "cema.db"
    store = SqlStore.open(f"sqlite:///{file}")
    store.put_group("g", "f1", "bundle1", "on", 1)
    samples = [
        Sample(
            sample_id=number.to_bytes(16, "big"), seq=number, codec="png", image=b"%04d" % number * 200, label=0,
            probability=0.5, entropy=1.0, update_version=0, captured_at_ms=0,
        )
        for number in range(SAMPLES)
    ]  # fmt: skip
    store.add_samples(
        "g", SampleBatch(device_id="cam", boot_id=bytes(16), fingerprint="f1", samples_seen=0, samples=samples), 1
    )
    store.close()
    return file


def test_a_whole_one_and_none_at_all_are_fine(database: Path, tmp_path: Path) -> None:
    check_intact(database)
    check_intact(tmp_path / "not yet")
    assert not (tmp_path / "not yet").exists()


def test_a_page_gone_to_zero_is_found_wherever_it_is(database: Path) -> None:
    whole = database.read_bytes()
    assert len(whole) > 50 * PAGE_BYTES
    for start in range(0, len(whole), PAGE_BYTES):
        database.write_bytes(whole[:start] + bytes(PAGE_BYTES) + whole[start + PAGE_BYTES :])
        with pytest.raises(DamagedError, match=r"cema\.db is damaged"):
            check_intact(database)


@pytest.mark.parametrize("left", [0.1, 0.5, 0.99])
def test_a_file_of_which_the_end_is_missing_is_found(database: Path, left: float) -> None:
    whole = database.read_bytes()
    database.write_bytes(whole[: int(len(whole) * left)])
    with pytest.raises(DamagedError) as caught:
        check_intact(database)
    assert "restore cema.db from a backup" in caught.value.hint


def test_what_is_no_database_is_found_and_cannot_be_opened(database: Path) -> None:
    database.write_bytes(b"not a database, surely" * 100)
    with pytest.raises(DamagedError):
        check_intact(database)
    with pytest.raises(DamagedError):
        SqlStore.open(f"sqlite:///{database}")


def test_a_file_that_cannot_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    (tmp_path / "cema.db").mkdir()
    with pytest.raises(StorageError, match="cannot open") as caught:
        check_intact(tmp_path / "cema.db")
    assert not isinstance(caught.value, DamagedError)


def test_who_meets_damage_while_running_says_so(database: Path) -> None:
    whole = database.read_bytes()
    place = whole.index(b"0100" * 20) // PAGE_BYTES * PAGE_BYTES
    store = SqlStore.open(f"sqlite:///{database}")
    database.write_bytes(whole[:place] + bytes(PAGE_BYTES) + whole[place + PAGE_BYTES :])
    with pytest.raises(DamagedError, match="is damaged") as caught:
        store.pending("g", SAMPLES)
    assert "restore" in caught.value.hint
    store.close()
