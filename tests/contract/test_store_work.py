"""The Store contract, on every implementation: leases, adapt steps, versions, forgetting."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from cema.cloud.store.base import GroupRow, NewUpdate, StepCommit, Store
from cema.errors import ConflictError
from cema.wire.messages import Sample, SampleBatch

FOREVER_MS = 1 << 40


def upload(store: Store, numbers: range, *, seen: int, now_ms: int = 1, group: str = "g") -> None:
    made = [
        Sample(
            sample_id=n.to_bytes(16, "big"), seq=n, codec="png", image=b"x", label=0, probability=0.5, entropy=1.0,
            update_version=0, captured_at_ms=0,
        )
        for n in numbers
    ]  # fmt: skip
    boot = f"{group:16}".encode()
    store.add_samples(
        group,
        SampleBatch(device_id="cam", boot_id=boot, fingerprint="f1", samples_seen=seen, samples=made),
        now_ms,
    )


def claim(store: Store, worker: str = "w1", now_ms: int = 100) -> GroupRow | None:
    return store.claim(worker, now_ms, lease_ms=1000, tick_images=64, publish_interval_ms=500)


def new_update(version: int, **changes: Any) -> NewUpdate:
    made = NewUpdate(version, f"update{version}", f"signature{version}", 7, "cema-paper", {"loss": 0.5})
    return replace(made, **changes)


def ids(*numbers: int) -> list[bytes]:
    return [n.to_bytes(16, "big") for n in numbers]


@pytest.fixture
def store(empty: Store) -> Store:
    empty.put_group("g", "f1", "bundle1", "on", 1)
    return empty


def step(store: Store, **changes: Any) -> StepCommit:
    row = store.group("g")
    made = StepCommit("g", "w1", row.lineage, row.ticks_done + 1, row.ticks_dropped, checkpoint="state")
    return replace(made, **changes)


def rows(store: Store) -> list[int]:
    return [s.row_id for s in store.pending("g", 1000)]


def test_a_group_is_claimed_when_a_tick_is_due(store: Store) -> None:
    upload(store, range(0), seen=63)
    assert claim(store) is None
    upload(store, range(0), seen=64)
    row = claim(store)
    assert row is not None
    assert (row.name, row.samples_seen) == ("g", 64)
    assert claim(store) is None, "a worker that keeps a lease does not get the group again"
    store.commit_step(StepCommit("g", "w1", 1, ticks_done=1, ticks_dropped=0), 2)
    store.release("g", "w1")
    assert claim(store) is None, "the tick is done"


def test_nothing_is_claimed_while_adaptation_is_off(store: Store) -> None:
    upload(store, range(0), seen=64)
    store.put_group("g", "f1", "bundle1", "off", 2)
    assert claim(store) is None


def test_a_leased_group_is_free_again_when_the_lease_is_over(store: Store) -> None:
    upload(store, range(0), seen=64)
    assert claim(store, "w1", 100) is not None
    assert claim(store, "w2", 1099) is None
    assert store.renew("g", "w1", 1000, 1000)
    assert claim(store, "w2", 1999) is None
    assert claim(store, "w2", 2000) is not None
    assert not store.renew("g", "w1", 2001, 1000)
    store.release("g", "w1")  # no longer its to give
    assert claim(store, "w3", 2002) is None
    store.release("g", "w2")
    assert claim(store, "w3", 2003) is not None


def test_two_threads_never_hold_the_same_group(store: Store) -> None:
    upload(store, range(0), seen=64)
    start = threading.Barrier(8)

    def attempt(number: int) -> GroupRow | None:
        start.wait(30)
        return claim(store, f"w{number}")

    with ThreadPoolExecutor(8) as pool:
        winners = [row for row in pool.map(attempt, range(8)) if row]
    assert len(winners) == 1


def test_the_least_recently_served_group_comes_first(store: Store) -> None:
    store.put_group("h", "f1", "bundle1", "on", 1)
    upload(store, range(0), seen=64 * 9)
    upload(store, range(0), seen=64 * 9, group="h")
    served = []
    for _ in range(4):
        row = claim(store)
        assert row is not None
        served.append(row.name)
        store.release(row.name, "w1")
    assert served == ["g", "h", "g", "h"]


def test_a_step_moves_samples_from_pending_to_replay_to_nowhere(store: Store) -> None:
    upload(store, range(4), seen=64)
    claim(store)
    queue = rows(store)
    store.commit_step(step(store, consumed=queue[:3], evicted=queue[:1], update=new_update(1)), 50)
    group = store.group("g")
    assert (group.pending, group.latest_version, group.ticks_done, group.dirty) == (1, 1, 1, False)
    assert (group.checkpoint, group.last_published_ms) == ("state", 50)
    assert [s.row_id for s in store.replay("g")] == queue[1:3]
    assert [s.row_id for s in store.replay("g", after_row=queue[1])] == queue[2:3]
    upload(store, range(4), seen=64)
    assert rows(store) == queue[3:], "an evicted or replayed id was taken again"
    assert store.latest_versions() == {"g": 1}


def test_a_version_knows_what_it_learned_from(store: Store) -> None:
    upload(store, range(6), seen=640)
    claim(store)
    queue = rows(store)
    store.commit_step(step(store, consumed=queue[:2]), 10)
    assert store.group("g").dirty
    store.commit_step(step(store, consumed=queue[2:3], evicted=queue[:1], update=new_update(1)), 11)
    store.commit_step(step(store, consumed=queue[3:4]), 12)
    store.commit_step(step(store, consumed=queue[4:], update=new_update(2)), 14)
    assert store.update_samples("g", 1) == ids(0, 1, 2)
    assert store.update_samples("g", 2) == ids(3, 4, 5)
    assert [(u.version, u.samples, u.rollback_of) for u in store.updates("g")] == [(2, 3, None), (1, 3, None)]
    assert [u.version for u in store.updates("g", limit=1)] == [2]
    row = store.update("g", 1)
    assert (row.blob, row.signature, row.fingerprint, row.size_bytes) == ("update1", "signature1", "f1", 7)
    assert (row.method, row.created_ms, dict(row.metrics)) == ("cema-paper", 11, {"loss": 0.5})


def test_a_dirty_group_is_claimed_when_its_publication_is_due(store: Store) -> None:
    upload(store, range(2), seen=64)
    claim(store)
    store.commit_step(step(store, consumed=rows(store)[:1], update=new_update(1)), 1000)
    upload(store, range(0), seen=128)
    store.commit_step(step(store, consumed=rows(store)), 1100)
    store.release("g", "w1")
    assert claim(store, "w1", 1499) is None
    assert claim(store, "w1", 1500) is not None


def test_a_clock_that_was_set_back_keeps_no_group_from_being_published_or_served(store: Store) -> None:
    ahead_ms = 50_000_000
    upload(store, range(2), seen=64)
    claim(store, "w1", ahead_ms)
    store.commit_step(step(store, consumed=rows(store)[:1], update=new_update(1)), ahead_ms)
    upload(store, range(0), seen=128)
    store.commit_step(step(store, consumed=rows(store)), ahead_ms + 100)
    assert claim(store, "w2", ahead_ms - 900) is None, "a lease that w1's clock could have given is one"
    assert claim(store, "w2", 100) is not None
    store.release("g", "w2")
    assert claim(store, "w2", 101) is not None


def state(store: Store) -> object:
    return store.groups(), store.pending("g", 99), store.replay("g"), store.updates("g")


@pytest.mark.parametrize(
    "wrong",
    [
        {"worker": "w2"},
        {"lineage": 2},
        {"update": new_update(3)},
        {"consumed": [10_000]},
        {"evicted": [10_000]},
    ],
    ids=str,
)
def test_a_step_that_contradicts_the_store_changes_nothing(store: Store, wrong: dict[str, Any]) -> None:
    upload(store, range(4), seen=128)
    claim(store)
    queue = rows(store)
    store.commit_step(step(store, consumed=queue[:2], update=new_update(1)), 10)
    before = state(store)
    good: dict[str, Any] = {
        "consumed": queue[2:],
        "evicted": queue[:1],
        "checkpoint": "state2",
        "update": new_update(2),
    }
    bad = {**good, **wrong}
    if "consumed" in wrong or "evicted" in wrong:
        field = next(iter(wrong))
        bad[field] = [*good[field], *wrong[field]]
    with pytest.raises(ConflictError):
        store.commit_step(step(store, **bad), 11)
    assert state(store) == before
    assert store.forget(12, id_memory_ms=FOREVER_MS, keep_versions=9) == []
    store.commit_step(step(store, **good), 13)
    assert store.group("g").latest_version == 2


def test_a_sample_is_consumed_only_once(store: Store) -> None:
    upload(store, range(1), seen=128)
    claim(store)
    queue = rows(store)
    store.commit_step(step(store, consumed=queue), 10)
    with pytest.raises(ConflictError):
        store.commit_step(step(store, consumed=queue), 11)


def test_a_step_after_the_lease_was_lost_changes_nothing(store: Store) -> None:
    upload(store, range(2), seen=64)
    claim(store, "w1", 100)
    late = step(store, consumed=rows(store), update=new_update(1))
    assert claim(store, "w2", 5000) is not None
    before = state(store)
    with pytest.raises(ConflictError):
        store.commit_step(late, 5001)
    store.release("g", "w2")
    with pytest.raises(ConflictError):
        store.commit_step(late, 5002)
    assert state(store) == before


def test_a_step_of_an_old_lineage_changes_nothing(store: Store) -> None:
    upload(store, range(2), seen=64)
    claim(store)
    late = step(store, consumed=rows(store), update=new_update(1))
    store.put_group("g", "f2", "bundle2", "on", 5)
    before = state(store)
    with pytest.raises(ConflictError):
        store.commit_step(late, 6)
    assert state(store) == before


def test_versions_go_on_rising_in_a_new_lineage_and_learn_only_from_it(store: Store) -> None:
    upload(store, range(2), seen=640)
    claim(store)
    queue = rows(store)
    store.commit_step(step(store, consumed=queue[:1], update=new_update(1)), 10)
    store.commit_step(step(store, consumed=queue[1:]), 11)  # used, never published
    store.put_group("g", "f2", "bundle2", "on", 12)
    store.put_group("g", "f1", "bundle1", "on", 13)
    upload(store, range(5, 6), seen=6400)
    assert claim(store) is not None
    store.commit_step(step(store, consumed=rows(store), update=new_update(2)), 14)
    assert store.update_samples("g", 2) == ids(5)
    assert store.update_samples("g", 1) == ids(0)
    assert store.group("g").lineage == 3


def test_forget_returns_each_unreferenced_blob_once(store: Store) -> None:
    upload(store, range(0), seen=6400)
    claim(store)
    for version in (1, 2, 3):
        store.commit_step(step(store, checkpoint=f"state{version}", update=new_update(version)), version)
    assert store.forget(10, id_memory_ms=FOREVER_MS, keep_versions=2) == ["state1", "state2", "update1"]
    assert store.forget(10, id_memory_ms=FOREVER_MS, keep_versions=2) == []
    assert [u.version for u in store.updates("g")] == [3, 2]


def test_forget_keeps_ids_that_may_still_be_trained_on(store: Store) -> None:
    upload(store, range(3), seen=64, now_ms=10)
    claim(store)
    queue = rows(store)
    store.commit_step(step(store, consumed=queue[:2], evicted=queue[:1]), 20)
    store.forget(109, id_memory_ms=100, keep_versions=1)
    upload(store, range(3), seen=64, now_ms=109)
    assert rows(store) == queue[2:]
    store.forget(111, id_memory_ms=100, keep_versions=1)
    upload(store, range(3), seen=64, now_ms=112)
    assert len(rows(store)) == 2, "only the evicted one was forgotten"
    assert rows(store)[-1] > queue[-1], "row ids are never used again"
