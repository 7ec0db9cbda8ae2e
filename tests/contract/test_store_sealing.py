"""Pictures on the disk: encrypted when asked, mixed with older ones, lost with no key and by no mistake."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from cema.cli.main import main
from cema.cloud.store import open_store
from cema.cloud.store.base import Store
from cema.cloud.store.sealing import SampleKeys
from cema.config import ServeConfig, ServerConfig
from cema.errors import StorageError
from cema.wire.messages import Sample, SampleBatch

KEY_FILE = Path("data/keys/samples.key")


def picture(number: int) -> bytes:
    return b"the picture of number %d" % number


def upload(store: Store, *numbers: int) -> None:
    samples = [
        Sample(
            sample_id=number.to_bytes(16, "big"), seq=number, codec="png", image=picture(number), label=0,
            probability=0.5, entropy=1.0, update_version=0, captured_at_ms=0,
        )
        for number in numbers
    ]  # fmt: skip
    store.add_samples(
        "g", SampleBatch(device_id="cam", boot_id=bytes(16), fingerprint="f1", samples_seen=0, samples=samples), 1
    )


def images(store: Store) -> list[bytes]:
    return [sample.image for sample in store.pending("g", 99)]


class Cloud:
    """One data_dir, opened as often as wanted, with encryption on or off."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.key_file = folder, folder / KEY_FILE
        self._opened: list[Store] = []
        self.open(encrypt=False).put_group("g", "f1", "bundle1", "on", 1)

    def open(self, *, encrypt: bool = True, for_pictures: bool = True) -> Store:
        server = ServerConfig(data_dir=str(self.folder / "data"), encrypt_samples=encrypt)
        store, _ = open_store(ServeConfig(server=server), for_pictures=for_pictures)
        self._opened.append(store)
        return store

    def close(self) -> None:
        for store in self._opened:
            store.close()

    def on_disk(self, number: int) -> bool:
        return any(picture(number) in file.read_bytes() for file in self.folder.rglob("*") if file.is_file())


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    made = Cloud(tmp_path)
    yield made
    made.close()


def test_no_picture_lies_on_the_disk_and_all_are_read(cloud: Cloud) -> None:
    upload(cloud.open(encrypt=False), 1)
    assert cloud.on_disk(1), "the test would see it"
    assert not cloud.key_file.exists()
    store = cloud.open()
    upload(store, 2, 3)
    assert images(store) == [picture(1), picture(2), picture(3)], "older ones are read beside"
    assert not cloud.on_disk(2)
    assert not cloud.on_disk(3)
    assert stat.S_IMODE(cloud.key_file.stat().st_mode) == 0o600


def test_switched_off_again_older_pictures_are_read_and_new_ones_written_plainly(cloud: Cloud) -> None:
    upload(cloud.open(), 1)
    store = cloud.open(encrypt=False)
    upload(store, 2)
    assert images(store) == [picture(1), picture(2)]
    assert cloud.on_disk(2)


@pytest.mark.parametrize("encrypt", [True, False])
def test_a_lost_key_ends_the_start_with_what_to_do_makes_no_new_one_and_loses_nothing(
    cloud: Cloud, encrypt: bool
) -> None:
    upload(cloud.open(), 1)
    away = cloud.key_file.rename(cloud.folder / "away")
    with pytest.raises(StorageError, match=r"expected sample key [0-9a-f]{16} in .* which has none") as caught:
        cloud.open(encrypt=encrypt)
    assert "is its volume mounted?" in caught.value.hint
    assert not cloud.key_file.exists()
    away.rename(cloud.key_file)
    assert images(cloud.open(encrypt=encrypt)) == [picture(1)]


def test_another_key_is_named_and_refused(cloud: Cloud) -> None:
    upload(cloud.open(), 1)
    cloud.key_file.unlink()
    other = SampleKeys(cloud.key_file, seals=True).add()
    with pytest.raises(StorageError, match=rf"which has {other}"):
        cloud.open()


def test_without_the_key_nothing_is_stored_and_nothing_read_by_who_is_running(cloud: Cloud) -> None:
    upload(cloud.open(), 1)
    cloud.key_file.unlink()
    store = cloud.open(for_pictures=False)
    with pytest.raises(StorageError, match="expected sample key"):
        upload(store, 2)
    with pytest.raises(StorageError, match="expected sample key"):
        store.pending("g", 9)
    assert store.group("g").pending == 1


def test_pictures_whose_key_is_lost_for_good_can_be_deleted(cloud: Cloud) -> None:
    store = cloud.open()
    store.enrol("cam", "g", "token", 1)
    upload(store, 1, 2)
    cloud.key_file.unlink()
    assert cloud.open(for_pictures=False).delete_samples("cam") == {"g": 2}
    upload(again := cloud.open(), 3)
    assert images(again) == [picture(3)]


def test_after_a_rotation_new_pictures_have_the_new_key_and_old_ones_are_read(cloud: Cloud) -> None:
    upload(cloud.open(), 1)
    first = cloud.key_file.read_text()
    config = cloud.folder / "cema.toml"
    config.write_text("[server]\ndata_dir = 'data'\nencrypt_samples = true\n")
    done = CliRunner().invoke(main, ["sample", "rotate-key", "-c", str(config)])
    assert done.exit_code == 0, done.output
    assert "restart the service" in done.output
    assert cloud.key_file.read_text().startswith(first)
    assert stat.S_IMODE(cloud.key_file.stat().st_mode) == 0o600
    store = cloud.open()
    upload(store, 2)
    assert images(store) == [picture(1), picture(2)]
    cloud.key_file.write_text(first)
    with pytest.raises(StorageError, match="expected sample key"):
        cloud.open()


def test_a_key_is_added_only_where_pictures_are_encrypted(cloud: Cloud) -> None:
    config = cloud.folder / "cema.toml"
    config.write_text("[server]\ndata_dir = 'data'\n")
    done = CliRunner().invoke(main, ["sample", "rotate-key", "-c", str(config)])
    assert done.exit_code != 0
    assert "encrypt_samples" in str(done.exception)
    assert not cloud.key_file.exists()


@pytest.mark.parametrize("text", ["c2hvcnQ=\n", "no base64!\n", "\x00"])
def test_a_damaged_key_file_is_named(cloud: Cloud, text: str) -> None:
    cloud.open()
    cloud.key_file.write_text(text)
    with pytest.raises(StorageError, match=r"expected a key of 32 bytes in base64 in line 1 of .*samples\.key"):
        cloud.open()


def test_a_picture_in_the_place_of_another_or_changed_is_none_and_holds_up_no_other(
    cloud: Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    store = cloud.open()
    upload(store, 1, 2, 3, 4)
    raw = sqlite3.connect(cloud.folder / "data" / "cema.db")
    raw.execute("UPDATE payloads SET image = (SELECT image FROM payloads WHERE row_id = 2) WHERE row_id = 1")
    raw.execute("UPDATE payloads SET image = CAST(substr(image, 1, 9) AS BLOB) WHERE row_id = 3")
    raw.commit()
    raw.close()
    assert images(store) == [b"", picture(2), b"", picture(4)]
    assert caplog.text.count("is damaged") == 2


def test_processes_that_start_at_once_share_one_key(tmp_path: Path) -> None:
    file = tmp_path / "samples.key"
    one, other = SampleKeys(file, seals=True), SampleKeys(file, seals=True)
    assert one.add() == other.add()
    assert len(file.read_text().split()) == 1
