"""The Store contract, on every implementation: a rollback takes group, replay and lineage back with it."""

from __future__ import annotations

from typing import Any

import pytest

from cema.cloud.store.base import NewUpdate, StepCommit, Store
from cema.errors import ConflictError, NotFoundError
from cema.wire.messages import Sample, SampleBatch

FOREVER_MS = 1 << 40


@pytest.fixture
def store(empty: Store) -> Store:
    """A group g whose versions 1, 2, 3 learned from samples 0, 1, 2; sample 3 is used but not published, 4 waits."""
    empty.put_group("g", "f1", "bundle1", "on", 1)
    upload(empty, range(5))
    claim(empty)
    queue = [sample.row_id for sample in empty.pending("g", 9)]
    for version, row in enumerate(queue[:4], 1):
        update = new(version) if version < 4 else None
        empty.commit_step(StepCommit("g", "w", 1, version, 0, [row], checkpoint=f"c{version}", update=update), version)
    return empty


def upload(store: Store, numbers: range) -> None:
    samples = [
        Sample(
            sample_id=n.to_bytes(16, "big"), seq=n, codec="png", image=b"x", label=0, probability=0.5, entropy=1.0,
            update_version=0, captured_at_ms=0,
        )
        for n in numbers
    ]  # fmt: skip
    boot = numbers.start.to_bytes(16, "big")
    store.add_samples(
        "g", SampleBatch(device_id="cam", boot_id=boot, fingerprint="f1", samples_seen=6400, samples=samples), 1
    )


def claim(store: Store, worker: str = "w", now_ms: int = 10) -> object:
    return store.claim(worker, now_ms, lease_ms=1000, tick_images=64, publish_interval_ms=0)


def new(version: int, **changes: Any) -> NewUpdate:
    return NewUpdate(version, f"u{version}", f"s{version}", 7, "cema", {}, **changes)


def ids(samples: list[Any]) -> list[int]:
    return [int.from_bytes(sample.sample_id, "big") for sample in samples]


def test_a_rollback_is_a_new_version_and_says_what_it_takes_back_and_restores(store: Store) -> None:
    row = store.roll_back("g", 1, new(4, rollback_of=3, restores=1), 50)
    assert (row.latest_version, row.checkpoint, row.dirty, row.last_published_ms) == (4, None, False, 50)
    assert row == store.group("g")
    assert [(u.version, u.rollback_of, u.restores, u.samples) for u in store.updates("g")] == [
        (4, 3, 1, 0), (3, None, None, 1), (2, None, None, 1), (1, None, None, 1),
    ]  # fmt: skip
    assert store.latest_versions() == {"g": 4}


def test_what_was_learned_later_leaves_replay_and_is_never_taken_again(store: Store) -> None:
    store.roll_back("g", 1, new(4, rollback_of=3, restores=1), 50)
    assert ids(store.replay("g")) == [0]
    assert ids(store.pending("g", 9)) == [4], "what no step has used yet is still to be learned"
    upload(store, range(5))
    assert ids(store.pending("g", 9)) == [4]
    assert [len(store.update_samples("g", version)) for version in (1, 2, 3, 4)] == [1, 1, 1, 0]


def test_back_at_the_source_nothing_is_left_in_replay(store: Store) -> None:
    store.roll_back("g", 1, new(4, rollback_of=3, restores=0), 50)
    assert store.replay("g") == []


def test_what_is_learned_afterwards_belongs_to_the_next_version_alone(store: Store) -> None:
    store.roll_back("g", 1, new(4, rollback_of=3, restores=2), 50)
    assert claim(store) is not None
    rows = [sample.row_id for sample in store.pending("g", 9)]
    store.commit_step(StepCommit("g", "w", 1, 5, 0, rows, checkpoint="c5", update=new(5)), 60)
    assert [int.from_bytes(i, "big") for i in store.update_samples("g", 5)] == [4]
    assert (store.update("g", 5).rollback_of, store.update("g", 5).restores) == (None, None)
    store.roll_back("g", 1, new(6, rollback_of=5, restores=4), 70)
    assert ids(store.replay("g")) == [0, 1], "the same as with version 2, which version 4 was"


def test_a_step_under_way_is_lost_with_its_lease(store: Store) -> None:
    before = store.group("g").revision
    row = store.roll_back("g", 1, new(4, rollback_of=3, restores=1), 50)
    assert row.revision == before + 1
    for update in (None, new(5)):
        with pytest.raises(ConflictError):
            store.commit_step(StepCommit("g", "w", 1, 9, 0, checkpoint="bad", update=update), 51)
    assert not store.renew("g", "w", 52, 1000)
    assert store.group("g") == row
    assert claim(store, "other", 53) is not None, "it need not wait for the old lease to run out"


@pytest.mark.parametrize(("lineage", "version"), [(2, 4), (1, 3), (1, 5)])
def test_a_rollback_that_contradicts_the_store_changes_nothing(store: Store, lineage: int, version: int) -> None:
    before = store.groups(), store.replay("g"), store.updates("g")
    with pytest.raises(ConflictError):
        store.roll_back("g", lineage, new(version, rollback_of=3, restores=1), 50)
    assert (store.groups(), store.replay("g"), store.updates("g")) == before
    with pytest.raises(NotFoundError):
        store.roll_back("x", 1, new(4, rollback_of=3, restores=1), 50)


def test_the_checkpoint_is_garbage_and_the_version_that_was_restored_is_not(store: Store) -> None:
    store.forget(49, id_memory_ms=FOREVER_MS, keep_versions=9)
    store.roll_back("g", 1, new(4, rollback_of=3, restores=1), 50)
    assert store.forget(51, id_memory_ms=FOREVER_MS, keep_versions=9) == ["c4"]


def test_a_new_bundle_does_not_turn_the_count_of_revisions_back(store: Store) -> None:
    row = store.roll_back("g", 1, new(4, rollback_of=3, restores=1), 50)
    assert store.put_group("g", "f2", "bundle2", "on", 60).revision == row.revision
