"""The Store contract, on every implementation: groups, devices, uploads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields

import msgspec
import pytest

from cema.cloud.store.base import GroupState, StepCommit, Store
from cema.cloud.store.samples import Condition, StoredSample
from cema.errors import ConflictError, NotFoundError
from cema.wire.messages import Sample, SampleBatch

BOOT = b"b" * 16


def sample(number: int) -> Sample:
    return Sample(
        sample_id=number.to_bytes(16, "big"),
        seq=number,
        codec="png",
        image=b"image %d" % number,
        label=0,
        probability=0.5,
        entropy=1.0,
        update_version=0,
        captured_at_ms=0,
    )


def batch(
    *numbers: int, seen: int = 0, fingerprint: str = "f1", boot: bytes = BOOT, dropped: dict[str, int] | None = None
) -> SampleBatch:
    return SampleBatch(
        device_id="cam",
        boot_id=boot,
        fingerprint=fingerprint,
        samples_seen=seen,
        samples=[sample(n) for n in numbers],
        dropped=dropped or {},
    )


@pytest.fixture
def store(empty: Store) -> Store:
    empty.put_group("g", "f1", "bundle1", "on", 1)
    return empty


def test_unknown_names_are_not_found(store: Store) -> None:
    calls: list[Callable[[], object]] = [
        lambda: store.group("x"),
        lambda: store.state("x"),
        lambda: store.pending("x", 1),
        lambda: store.waiting("x"),
        lambda: store.replay("x"),
        lambda: store.updates("x"),
        lambda: store.update("g", 1),
        lambda: store.update_samples("g", 1),
        lambda: store.add_samples("x", batch(1), 1),
        lambda: store.enrol("cam", "x", "t", 1),
        lambda: store.revoke("cam", 1),
    ]
    for call in calls:
        with pytest.raises(NotFoundError):
            call()


def test_the_same_bundle_again_changes_only_adaptation(store: Store) -> None:
    store.add_samples("g", batch(1, seen=70), 2)
    row = store.put_group("g", "f1", "bundle1", "off", 3)
    assert (row.lineage, row.pending, row.samples_seen, row.adaptation) == (1, 1, 70, "off")
    assert store.groups() == [row]


def test_another_bundle_starts_a_new_lineage_and_drops_the_queue(store: Store) -> None:
    store.add_samples("g", batch(1, 2, seen=70), 2)
    row = store.put_group("g", "f2", "bundle2", "on", 3)
    assert (row.lineage, row.pending, row.samples_seen, row.fingerprint) == (2, 0, 0, "f2")
    assert store.pending("g", 9) == []
    # the ids are still known: a repetition is not trained on
    assert store.add_samples("g", batch(1, fingerprint="f2"), 4).duplicates == 1
    assert store.forget(5, id_memory_ms=100, keep_versions=1) == ["bundle1"]


def test_returning_to_an_earlier_bundle_keeps_its_blob(store: Store) -> None:
    store.put_group("g", "f2", "bundle2", "on", 3)
    store.put_group("g", "f1", "bundle1", "on", 4)
    assert store.forget(5, id_memory_ms=100, keep_versions=1) == ["bundle2"]


def test_token_leads_to_its_device_until_it_is_revoked(store: Store) -> None:
    row = store.enrol("cam", "g", "token1", 5)
    assert (row.group, row.created_ms, row.revoked_ms, row.last_seen_ms) == ("g", 5, None, 0)
    assert store.device_by_token("token1") == row
    assert store.device_by_token("token2") is None
    with pytest.raises(ConflictError):
        store.enrol("cam", "g", "token2", 6)
    assert store.revoke("cam", 7).revoked_ms == 7
    assert store.revoke("cam", 8).revoked_ms == 7
    assert store.device_by_token("token1") is None
    store.enrol("cam", "g", "token2", 9)
    assert store.device_by_token("token1") is None
    assert store.device_by_token("token2") is not None
    assert [device.device_id for device in store.devices()] == ["cam"]
    assert store.devices("other") == []


def test_samples_queue_up_in_order_and_duplicates_are_counted_once(store: Store) -> None:
    first = store.add_samples("g", batch(3, 1, 3), 2)
    assert (first.accepted, first.duplicates, first.rejected) == (2, 1, [])
    second = store.add_samples("g", batch(1, 2), 3)
    assert (second.accepted, second.duplicates, second.server_time_ms) == (1, 1, 3)
    queue = store.pending("g", 9)
    assert [s.image for s in queue] == [b"image 3", b"image 1", b"image 2"]
    assert [s.row_id for s in queue] == sorted(s.row_id for s in queue)
    assert [s.codec for s in queue] == ["png"] * 3
    assert store.pending("g", 2) == queue[:2]
    assert store.group("g").pending == 3


def conditions(samples: Sequence[StoredSample]) -> list[tuple[str, int]]:
    return [(sample.device_id, sample.domain) for sample in samples]


def upload(store: Store, device_id: str, number: int, domain: int | None, group: str = "g") -> None:
    known = {} if domain is None else {"domain": domain}
    made = batch(seen=64, boot=number.to_bytes(16, "big"))
    samples = [msgspec.structs.replace(sample(number), **known)]
    store.add_samples(group, msgspec.structs.replace(made, device_id=device_id, samples=samples), 2)


def test_samples_know_their_device_and_its_world_in_the_queue_and_in_replay(store: Store) -> None:
    largest = 1 << 53
    given = [("cam", 7), ("door", 7), ("cam", 8), ("cam", None), ("door", largest), ("cam", 7)]
    for number, (device_id, domain) in enumerate(given):
        upload(store, device_id, number, domain)
    expected = [(device_id, domain or 0) for device_id, domain in given]
    queue = store.pending("g", 9)
    assert conditions(queue) == expected
    row = store.claim("w", 3, lease_ms=1000, tick_images=64, publish_interval_ms=0)
    assert row is not None
    used = [sample.row_id for sample in queue[1:5]]
    store.commit_step(StepCommit("g", "w", row.lineage, 1, 0, consumed=used, evicted=used[:1]), 4)
    assert conditions(store.pending("g", 9)) == [expected[0], expected[5]]
    assert conditions(store.replay("g")) == expected[2:5]
    assert conditions(store.replay("g", used[2])) == expected[4:5]


def uploads(store: Store) -> list[tuple[Condition, int]]:
    return [(condition, waiting.uploads) for condition, waiting in store.waiting("g").items()]


def test_what_waits_is_counted_and_handed_out_by_device_and_world(store: Store) -> None:
    store.put_group("h", "f1", "bundle1", "on", 1)
    assert store.waiting("g") == {}
    for number, (device_id, domain) in enumerate([("door", 7), ("cam", 7), ("door", 7), ("cam", 8), ("cam", 7)]):
        upload(store, device_id, number, domain)
    upload(store, "cam", 9, 7, "h")
    assert uploads(store) == [(("door", 7), 2), (("cam", 7), 2), (("cam", 8), 1)]
    newest = {condition: waiting.newest for condition, waiting in store.waiting("g").items()}
    assert sorted(newest, key=newest.__getitem__) == [("door", 7), ("cam", 8), ("cam", 7)]
    assert newest["cam", 7] == store.pending("g", 9)[-1].row_id
    cam = store.pending("g", 9, Condition("cam", 7))
    assert [each.image for each in cam] == [b"image 1", b"image 4"]
    assert store.pending("g", 1, Condition("cam", 7)) == cam[:1]
    assert store.pending("g", 9, Condition("door", 8)) == []
    row = store.claim("w", 3, lease_ms=1000, tick_images=64, publish_interval_ms=0)
    assert row is not None
    store.commit_step(StepCommit("g", "w", row.lineage, 1, 0, consumed=[store.pending("g", 1)[0].row_id]), 4)
    assert uploads(store) == [(("cam", 7), 2), (("door", 7), 1), (("cam", 8), 1)]


def test_a_repeated_sample_keeps_the_world_in_which_it_came_first(store: Store) -> None:
    upload(store, "cam", 1, 7)
    upload(store, "cam", 1, 8)
    assert conditions(store.pending("g", 9)) == [("cam", 7)]
    store.put_group("h", "f1", "bundle1", "on", 1)
    upload(store, "cam", 1, 8, "h")
    assert conditions(store.pending("h", 9)) == [("cam", 8)]


def test_groups_do_not_share_sample_ids(store: Store) -> None:
    store.put_group("h", "f1", "bundle1", "on", 1)
    store.add_samples("g", batch(1), 2)
    assert store.add_samples("h", batch(1), 2).accepted == 1


def test_samples_of_another_bundle_are_rejected_one_by_one(store: Store) -> None:
    receipt = store.add_samples("g", batch(1, 2, seen=50, fingerprint="old"), 2)
    assert (receipt.accepted, receipt.duplicates) == (0, 0)
    assert [(r.sample_id, r.code) for r in receipt.rejected] == [
        (sample(n).sample_id.hex(), "base_mismatch") for n in (1, 2)
    ]
    assert store.group("g").samples_seen == 0
    # nor do these images count later, when the device runs the new bundle in the same boot
    store.add_samples("g", batch(seen=60), 3)
    assert store.group("g").samples_seen == 10


def test_samples_seen_grows_per_boot_and_never_twice(store: Store) -> None:
    seen = []
    for boot, value in [(b"a", 100), (b"a", 100), (b"a", 40), (b"a", 130), (b"c", 30), (b"a", 131)]:
        store.add_samples("g", batch(seen=value, boot=boot * 16), 2)
        seen.append(store.group("g").samples_seen)
    assert seen == [100, 100, 100, 130, 160, 161]


def test_device_row_shows_the_last_report_and_ignores_older_ones(store: Store) -> None:
    store.enrol("cam", "g", "token", 1)
    store.add_samples("g", batch(seen=100, dropped={"outbox_full": 2}), 10)
    store.add_samples("g", batch(seen=90, dropped={"outbox_full": 1}), 11)
    (device,) = store.devices("g")
    assert (device.samples_seen, dict(device.dropped), device.last_seen_ms) == (100, {"outbox_full": 2}, 11)


def test_forget_keeps_the_last_boot_so_that_nothing_counts_twice(store: Store) -> None:
    store.enrol("cam", "g", "token", 1)
    store.add_samples("g", batch(seen=100, boot=b"1" * 16), 10)
    store.add_samples("g", batch(seen=100, boot=b"2" * 16), 20)
    store.forget(1_000, id_memory_ms=10, keep_versions=1)
    store.add_samples("g", batch(seen=101, boot=b"2" * 16), 1_001)
    assert store.group("g").samples_seen == 201


def test_a_living_store_answers_ping(store: Store) -> None:
    store.ping()


def test_the_state_of_a_group_says_what_its_row_says_but_for_the_backlog(store: Store) -> None:
    store.enrol("cam", "g", "t", 1)
    store.add_samples("g", batch(1, 2, seen=5), 2)
    store.pause("g", paused=True, now_ms=3)
    row, state = store.group("g"), store.state("g")
    assert row.pending == 2
    assert all(getattr(state, field.name) == getattr(row, field.name) for field in fields(GroupState))
