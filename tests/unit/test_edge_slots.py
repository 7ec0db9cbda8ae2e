"""The state folder after a power cut at any point."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cema.edge.checked import decode_checked, encode_checked
from cema.edge.slots import POINTER_FILE, Pointer, StateFolder, Stored
from cema.errors import ConflictError

FINGERPRINT = "f" * 64


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[StateFolder]:
    opened = StateFolder(tmp_path / "state")
    yield opened
    opened.close()


def reopened(path: Path) -> list[Stored]:
    folder = StateFolder(path)
    try:
        return folder.updates(FINGERPRINT)
    finally:
        folder.close()


def versions(path: Path) -> list[int]:
    return [stored.version for stored in reopened(path)]


def test_the_last_two_updates_are_kept_newest_first(folder: StateFolder) -> None:
    for version in (1, 2, 3):
        folder.put_update(b"update %d" % version, "sig", version, FINGERPRINT)
    folder.close()
    assert reopened(folder.path) == [Stored(b"update 3", "sig", 3), Stored(b"update 2", "sig", 2)]


def test_updates_of_another_bundle_are_not_offered(folder: StateFolder) -> None:
    folder.put_update(b"one", "sig", 1, FINGERPRINT)
    assert folder.updates("0" * 64) == []


@pytest.mark.parametrize("name", ["slot-b", "slot-a"])
def test_a_slot_torn_at_any_byte_leaves_the_other(folder: StateFolder, name: str) -> None:
    folder.put_update(b"update one", "sig", 1, FINGERPRINT)
    folder.put_update(b"update two", "sig", 2, FINGERPRINT)
    folder.close()
    whole = (folder.path / name).read_bytes()
    for length in range(len(whole)):
        (folder.path / name).write_bytes(whole[:length])
        assert versions(folder.path) == ([1] if name == "slot-b" else [2])


def test_the_only_good_update_is_not_overwritten_while_the_newer_one_is_damaged(folder: StateFolder) -> None:
    for version in (1, 2):
        folder.put_update(b"update %d" % version, "sig", version, FINGERPRINT)
    (folder.path / "slot-b").write_bytes(b"torn")
    folder.put_update(b"update 3", "sig", 3, FINGERPRINT)
    folder.close()
    assert versions(folder.path) == [3, 1]


def test_a_pointer_torn_at_any_byte_means_source_and_never_an_error(folder: StateFolder) -> None:
    folder.put_update(b"update one", "sig", 1, FINGERPRINT)
    folder.close()
    whole = (folder.path / POINTER_FILE).read_bytes()
    for length in range(len(whole)):
        (folder.path / POINTER_FILE).write_bytes(whole[:length])
        assert versions(folder.path) == []


def test_with_a_damaged_pointer_the_bundle_is_found_and_nothing_else_is_believed(folder: StateFolder) -> None:
    folder.put_bundle(b"bundle", "signed")
    folder.put_update(b"update one", "sig", 1, FINGERPRINT)
    folder.set_adaptation("off")
    folder.close()
    whole = (folder.path / POINTER_FILE).read_bytes()
    for place in range(len(whole)):
        for bit in (1, 4, 32):
            flipped = bytes([*whole[:place], whole[place] ^ bit, *whole[place + 1 :]])
            (folder.path / POINTER_FILE).write_bytes(flipped)
            again = StateFolder(folder.path)
            found = (again.bundle(), again.updates(FINGERPRINT), again.adaptation)
            again.close()
            assert found == (Stored(b"bundle", "signed"), [], "on"), flipped


def test_a_pointer_of_before_without_a_checksum_is_read(folder: StateFolder) -> None:
    folder.put_update(b"update one", "sig", 1, FINGERPRINT)
    folder.close()
    fields = json.loads((folder.path / POINTER_FILE).read_bytes())
    del fields["check"]
    (folder.path / POINTER_FILE).write_text(json.dumps(fields))
    assert versions(folder.path) == [1]


def test_a_pointer_of_a_later_agent_is_read_if_its_checksum_is_right(folder: StateFolder) -> None:
    class Later(Pointer, frozen=True):
        news: str = ""

    folder.put_update(b"update one", "sig", 1, FINGERPRINT)
    folder.close()
    here = decode_checked((folder.path / POINTER_FILE).read_bytes(), Pointer)
    later = encode_checked(Later(slots=here.slots, active=here.active, news="of another time"))
    (folder.path / POINTER_FILE).write_bytes(later)
    assert versions(folder.path) == [1]
    (folder.path / POINTER_FILE).write_bytes(later.replace(b"check", b"cheek"))
    assert versions(folder.path) == []


def test_a_power_cut_between_any_two_operations_keeps_a_good_version(
    folder: StateFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.put_update(b"update one", "sig", 1, FINGERPRINT)
    folder.put_update(b"update two", "sig", 2, FINGERPRINT)
    folder.close()
    cuts = 0
    while True:
        copy = tmp_path / f"cut{cuts}"
        shutil.copytree(folder.path, copy)
        with monkeypatch.context() as patch:
            finished = put_until_cut(StateFolder(copy), cuts, patch)
        if finished:
            break
        assert versions(copy)[0] in (2, 3)
        cuts += 1
    assert cuts >= 9  # three files, each at least fsync, rename, fsync of the folder
    assert versions(copy) == [3, 2]


def put_until_cut(folder: StateFolder, operations: int, patch: pytest.MonkeyPatch) -> bool:
    """Store version 3, but die before the operation of that number; True if it was not reached."""
    remaining = [operations]

    def cutting(real: Callable[..., object]) -> Callable[..., object]:
        def operation(*args: object) -> object:
            if remaining[0] == 0:
                raise SystemExit
            remaining[0] -= 1
            return real(*args)

        return operation

    patch.setattr(os, "fsync", cutting(os.fsync))
    patch.setattr(os, "replace", cutting(os.replace))
    try:
        folder.put_update(b"update three", "sig", 3, FINGERPRINT)
    except SystemExit:
        return False
    finally:
        folder.close()
    return True


def test_a_bundle_replaces_the_old_one_and_a_damaged_one_is_absent(folder: StateFolder) -> None:
    assert folder.bundle() is None
    folder.put_bundle(b"old", "s1")
    folder.put_bundle(b"new", "s2")
    assert folder.bundle() == Stored(b"new", "s2")
    (file,) = [p for p in folder.path.glob("bundle-*") if p.suffix != ".sig"]
    file.write_bytes(b"nex")
    assert folder.bundle() is None


def test_the_switch_survives_a_restart(folder: StateFolder) -> None:
    folder.set_adaptation("off")
    folder.close()
    again = StateFolder(folder.path)
    assert again.adaptation == "off"
    again.close()


def test_a_second_agent_on_the_same_folder_is_refused(folder: StateFolder) -> None:
    with pytest.raises(ConflictError, match="in use by another agent"):
        StateFolder(folder.path)
