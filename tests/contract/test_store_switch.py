"""The Store contract, on every implementation: what operators switch off stays off until they switch it on."""

from __future__ import annotations

import pytest

from cema.cloud.store.base import StepCommit, Store
from cema.errors import ConflictError, NotFoundError
from cema.wire.messages import SampleBatch


@pytest.fixture
def store(empty: Store) -> Store:
    empty.put_group("g", "f1", "bundle1", "on", 1)
    empty.enrol("cam", "g", "token", 1)
    report = SampleBatch(device_id="cam", boot_id=bytes(16), fingerprint="f1", samples_seen=640, samples=[])
    empty.add_samples("g", report, 1)
    return empty


def claim(store: Store, now_ms: int = 100) -> object:
    return store.claim("w", now_ms, lease_ms=1000, tick_images=64, publish_interval_ms=0)


def test_a_paused_group_gets_no_steps_until_it_is_resumed(store: Store) -> None:
    row = store.pause("g", True, 5)
    assert (row.paused_ms, row.adapting, row.adaptation) == (5, False, "on")
    assert row == store.group("g")
    assert claim(store) is None
    assert store.pause("g", True, 9).paused_ms == 5, "since the first time"
    row = store.pause("g", False, 10)
    assert (row.paused_ms, row.adapting) == (None, True)
    assert store.pause("g", False, 11) == row
    assert claim(store) is not None


def test_a_step_under_way_is_lost_when_its_group_is_paused(store: Store) -> None:
    claim(store)
    store.pause("g", True, 101)
    with pytest.raises(ConflictError):
        store.commit_step(StepCommit("g", "w", 1, 1, 0, checkpoint="c"), 102)
    store.pause("g", False, 103)
    assert claim(store, 104) is not None, "it need not wait for the old lease to run out"
    store.pause("g", False, 105)
    store.commit_step(StepCommit("g", "w", 1, 1, 0, checkpoint="c"), 106)  # resuming what is on takes no lease


@pytest.mark.parametrize("fingerprint", ["f1", "f2"])
def test_neither_a_restart_of_the_service_nor_a_new_bundle_resumes_a_group(store: Store, fingerprint: str) -> None:
    store.pause("g", True, 5)
    row = store.put_group("g", fingerprint, "bundle2", "on", 6)
    assert (row.paused_ms, row.adapting) == (5, False)


def test_resuming_does_not_overrule_the_configuration(store: Store) -> None:
    store.put_group("g", "f1", "bundle1", "off", 2)
    assert not store.pause("g", False, 3).adapting
    assert claim(store) is None


def test_a_device_is_paused_by_itself(store: Store) -> None:
    store.enrol("gate", "g", "other token", 1)
    assert store.pause_device("cam", True, 5).paused_ms == 5
    assert store.pause_device("cam", True, 6).paused_ms == 5
    assert {row.device_id: row.paused_ms for row in store.devices()} == {"cam": 5, "gate": None}
    known = store.device_by_token("token")
    assert known is not None
    assert known.paused_ms == 5
    assert store.group("g").adapting
    assert store.pause_device("cam", False, 7).paused_ms is None


def test_a_device_that_is_enrolled_anew_is_not_paused(store: Store) -> None:
    store.pause_device("cam", True, 5)
    store.revoke("cam", 6)
    with pytest.raises(NotFoundError):
        store.pause_device("cam", False, 7)
    assert store.enrol("cam", "g", "new token", 8).paused_ms is None


def test_unknown_names_are_not_found(store: Store) -> None:
    with pytest.raises(NotFoundError):
        store.pause("x", True, 5)
    with pytest.raises(NotFoundError):
        store.pause_device("x", True, 5)
