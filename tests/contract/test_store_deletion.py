"""The Store contract, on every implementation: a device's samples are deleted on demand, old ones by rule."""

from __future__ import annotations

import itertools
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from cema.cloud.store.base import NewUpdate, StepCommit, Store
from cema.cloud.store.checks import descendants
from cema.cloud.store.memory import MemoryStore
from cema.cloud.store.sql import SqlStore
from cema.errors import ConflictError, NotFoundError
from cema.wire.messages import Sample, SampleBatch

FOREVER_MS = 1 << 40


@pytest.fixture
def store(empty: Store) -> Store:
    """Groups g and h; devices cam and gate, both of g."""
    for group in ("g", "h"):
        empty.put_group(group, "f1", "bundle1", "on", 1)
    for device in ("cam", "gate"):
        empty.enrol(device, "g", f"token of {device}", 1)
    return empty


def upload(store: Store, device: str, *numbers: int, now_ms: int = 1, group: str = "g") -> int:
    """Returns how many the store took."""
    samples = [
        Sample(
            sample_id=n.to_bytes(16, "big"), seq=n, codec="png", image=f"picture {n}".encode(), label=0,
            probability=0.5, entropy=1.0, update_version=0, captured_at_ms=0, domain=7,
        )
        for n in numbers
    ]  # fmt: skip
    boot = f"{device:8}{group:8}".encode()
    batch = SampleBatch(device_id=device, boot_id=boot, fingerprint="f1", samples_seen=64_000, samples=samples)
    return store.add_samples(group, batch, now_ms).accepted


ticks = itertools.count(1)


def step(store: Store, *numbers: int, publish: bool = True, **changes: Any) -> None:
    """Learn from these samples, as a worker does."""
    store.claim("w", FOREVER_MS, lease_ms=1000, tick_images=64, publish_interval_ms=0)
    rows = [s.row_id for s in store.pending("g", 99) if int.from_bytes(s.sample_id, "big") in numbers]
    assert len(rows) == len(numbers)
    row = store.group("g")
    update = NewUpdate(row.latest_version + 1, f"u{row.latest_version + 1}", "s", 7, "cema") if publish else None
    store.commit_step(
        StepCommit("g", "w", row.lineage, next(ticks), 0, rows, checkpoint="c", update=update, **changes), 5
    )
    store.release("g", "w")


def back(store: Store, to: int) -> None:
    latest = store.group("g").latest_version
    new = NewUpdate(latest + 1, f"u{latest + 1}", "s", 7, "cema", rollback_of=latest, restores=to)
    store.roll_back("g", store.group("g").lineage, new, 6)


def numbers(samples: list[Any]) -> list[int]:
    return [int.from_bytes(sample.sample_id, "big") for sample in samples]


def marks(store: Store) -> dict[int, int]:
    return {row.version: row.deleted_samples for row in store.updates("g")}


def test_what_a_device_uploaded_is_gone_from_queue_and_replay_and_the_rest_stays(store: Store) -> None:
    upload(store, "cam", 0, 1, 2)
    upload(store, "gate", 3, 4)
    step(store, 0, 3)
    assert store.delete_samples("cam") == {"g": 3}
    assert (numbers(store.pending("g", 9)), numbers(store.replay("g"))) == ([4], [3])
    assert store.group("g").pending == 1
    assert store.delete_samples("cam") == {}


def test_a_late_repetition_brings_nothing_back_and_a_new_sample_is_taken(store: Store) -> None:
    upload(store, "cam", 0, 1)
    store.delete_samples("cam")
    assert upload(store, "cam", 0, 1, 2) == 1
    assert numbers(store.pending("g", 9)) == [2]


def test_one_group_or_all_of_them(store: Store) -> None:
    upload(store, "cam", 0)
    upload(store, "cam", 1, 2, group="h")
    assert store.delete_samples("cam", "h") == {"h": 2}
    assert store.group("g").pending == 1
    upload(store, "cam", 3, group="h")
    assert store.delete_samples("cam") == {"g": 1, "h": 1}


def test_unknown_names_are_not_found_and_revoked_devices_are(store: Store) -> None:
    for device, group in (("x", None), ("cam", "x")):
        with pytest.raises(NotFoundError):
            store.delete_samples(device, group)
    upload(store, "cam", 0)
    store.revoke("cam", 2)
    assert store.delete_samples("cam") == {"g": 1}


def test_versions_that_learned_from_them_and_those_that_go_on_from_there_are_marked(store: Store) -> None:
    upload(store, "cam", 1, 3)
    upload(store, "gate", 0, 2, 4)
    for number in range(5):
        step(store, number)
    assert marks(store) == dict.fromkeys(range(1, 6), 0)
    store.delete_samples("cam")
    assert marks(store) == {1: 0, 2: 1, 3: 1, 4: 2, 5: 2}
    upload(store, "gate", 5)
    step(store, 5)
    assert store.update("g", 6).deleted_samples == 2, "it goes on from version 5"
    store.delete_samples("gate")
    assert marks(store) == {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 6}


def test_samples_that_have_left_replay_count_as_long_as_their_ids_are_known(store: Store) -> None:
    upload(store, "cam", 0)
    step(store, 0, evicted=[store.pending("g", 1)[0].row_id])
    assert store.delete_samples("cam") == {"g": 1}
    assert marks(store) == {1: 1}


def test_what_was_used_and_not_yet_published_marks_the_version_that_comes(store: Store) -> None:
    upload(store, "cam", 0, 1)
    upload(store, "gate", 2)
    step(store, 0, publish=False)
    store.delete_samples("cam")
    step(store, 2)
    assert marks(store) == {1: 1}, "sample 1 was never used"
    assert store.update("g", 1).samples == 2


def test_a_rollback_to_before_is_not_marked_and_one_to_after_is(store: Store) -> None:
    upload(store, "gate", 0, 2)
    upload(store, "cam", 1)
    for number in range(3):
        step(store, number)
    back(store, 1)
    store.delete_samples("cam")
    assert marks(store) == {1: 0, 2: 1, 3: 1, 4: 0}
    upload(store, "gate", 4)
    step(store, 4)
    back(store, 2)
    back(store, 0)
    assert marks(store) == {1: 0, 2: 1, 3: 1, 4: 0, 5: 0, 6: 1, 7: 0}


def test_another_bundle_begins_unmarked(store: Store) -> None:
    upload(store, "cam", 0)
    step(store, 0)
    store.delete_samples("cam")
    store.put_group("g", "f2", "bundle2", "on", 9)
    batch = SampleBatch(device_id="gate", boot_id=bytes(16), fingerprint="f2", samples_seen=64_000, samples=[])
    store.add_samples("g", batch, 9)
    step(store)
    assert marks(store) == {1: 1, 2: 0}


def test_a_step_under_way_with_their_pictures_is_lost(store: Store) -> None:
    upload(store, "cam", 0)
    upload(store, "gate", 1)
    store.claim("w", 10, lease_ms=1000, tick_images=64, publish_interval_ms=0)
    rows = [sample.row_id for sample in store.pending("g", 9)]
    before = store.group("g").revision
    store.delete_samples("cam")
    assert store.group("g").revision == before + 1
    with pytest.raises(ConflictError):
        store.commit_step(StepCommit("g", "w", 1, 1, 0, rows, checkpoint="c"), 11)
    assert numbers(store.pending("g", 9)) == [1]


def test_a_deletion_that_finds_nothing_disturbs_nobody(store: Store) -> None:
    upload(store, "gate", 1)
    before = store.group("g")
    store.delete_samples("cam")
    store.expire_samples(0, 9)
    assert store.group("g") == before


def test_ids_of_deleted_samples_are_forgotten_like_all_others(store: Store) -> None:
    upload(store, "cam", 0, now_ms=10)
    store.delete_samples("cam")
    store.forget(110, id_memory_ms=100, keep_versions=9)
    assert upload(store, "cam", 0) == 0
    store.forget(111, id_memory_ms=100, keep_versions=9)
    assert upload(store, "cam", 0) == 1


def test_old_samples_and_those_beyond_the_limit_are_deleted_oldest_first(store: Store) -> None:
    for number in range(6):
        upload(store, "cam", number, now_ms=100 + number)
    step(store, 0, 3)
    assert store.expire_samples(102, 99) == {"g": 2}
    assert (numbers(store.pending("g", 9)), numbers(store.replay("g"))) == ([2, 4, 5], [3])
    assert store.expire_samples(0, 3) == {"g": 1}
    assert (numbers(store.pending("g", 9)), numbers(store.replay("g"))) == ([4, 5], [3])
    assert store.expire_samples(0, 3) == {}
    assert upload(store, "cam", *range(6)) == 0, "their ids are remembered"
    assert marks(store) == {1: 0}, "nobody wished them away"


def test_the_limit_holds_for_each_group_by_itself(store: Store) -> None:
    upload(store, "cam", 0, 1, 2)
    upload(store, "cam", 3, 4, group="h")
    assert store.expire_samples(0, 2) == {"g": 1}
    assert [store.group(name).pending for name in ("g", "h")] == [2, 2]


def test_nothing_of_a_deleted_picture_is_left_in_the_files_of_the_database(tmp_path: Path) -> None:
    store = SqlStore.open(f"sqlite:///{tmp_path / 'cema.db'}")
    store.put_group("g", "f1", "bundle1", "on", 1)
    store.enrol("cam", "g", "token", 1)
    upload(store, "cam", *range(50))

    def left() -> bool:
        return any(b"picture 7" in path.read_bytes() for path in tmp_path.iterdir())

    assert left()
    store.delete_samples("cam")
    assert not left()
    store.close()


def test_a_reader_delays_no_deletion_and_is_told_of_what_it_holds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = SqlStore.open(f"sqlite:///{tmp_path / 'cema.db'}")
    store.put_group("g", "f1", "bundle1", "on", 1)
    store.enrol("cam", "g", "token", 1)
    upload(store, "cam", 7)
    backup = sqlite3.connect(tmp_path / "cema.db", isolation_level=None)
    backup.execute("BEGIN")
    assert backup.execute("SELECT count(*) FROM samples").fetchone() == (1,)
    assert store.delete_samples("cam") == {"g": 1}
    assert "stay in the database's -wal file" in caplog.text
    backup.execute("ROLLBACK")
    backup.close()
    store.delete_samples("cam")
    assert not any(b"picture 7" in path.read_bytes() for path in tmp_path.iterdir())
    store.close()


def test_where_the_ancestor_is_forgotten_a_version_is_rather_marked_than_not() -> None:
    store = MemoryStore()
    store.put_group("g", "f1", "b", "on", 1)
    store.enrol("gate", "g", "t", 1)
    upload(store, "gate", *range(4))
    for number in range(4):
        step(store, number)
    kept = [row for row in store.updates("g") if row.version >= 3]
    assert descendants(kept, {1: 1, 2: 2, 4: 4}) == {3: 3, 4: 7}
