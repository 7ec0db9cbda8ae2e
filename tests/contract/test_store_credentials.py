"""The Store contract for keys and users, on every implementation: what is valid when, and for whom."""

from __future__ import annotations

import pytest

from cema.cloud.store.base import Store
from cema.errors import ConflictError, EnrolmentError, NotFoundError

UNTIL_MS = 1000


@pytest.fixture
def store(empty: Store) -> Store:
    empty.put_group("g", "f1", "bundle1", "on", 1)
    return empty


def name_of(store: Store, token: str) -> str | None:
    row = store.device_by_token(token)
    return row.device_id if row else None


def test_a_one_time_token_is_told_apart_from_a_key(store: Store) -> None:
    assert store.enrol("cam", "g", "once", 1, token_expires_ms=UNTIL_MS).token_expires_ms == UNTIL_MS
    assert store.enrol("cam2", "g", "key", 1).token_expires_ms is None
    row = store.device_by_token("once")
    assert row is not None
    assert row.token_expires_ms == UNTIL_MS


def test_a_proposed_key_replaces_the_token_when_it_is_used_and_not_before(store: Store) -> None:
    store.enrol("cam", "g", "once", 1, token_expires_ms=UNTIL_MS)
    for _ in range(3):  # an answer that got lost is asked for again
        row = store.propose_key("once", "key1")
        assert row is not None
        assert row.device_id == "cam"
    assert name_of(store, "once") == "cam"
    used = store.device_by_token("key1")
    assert used is not None
    assert used.token_expires_ms is None
    assert (name_of(store, "once"), name_of(store, "key1")) == (None, "cam")
    assert store.propose_key("once", "key1") is None
    assert store.propose_key("key1", "key1") is not None


def test_a_one_time_token_buys_one_key_only(store: Store) -> None:
    store.enrol("cam", "g", "once", 1, token_expires_ms=UNTIL_MS)
    store.propose_key("once", "key1")
    with pytest.raises(EnrolmentError, match="has bought another key"):
        store.propose_key("once", "thief")
    assert (name_of(store, "thief"), name_of(store, "key1")) == (None, "cam")


def test_a_key_may_propose_again_and_the_last_proposal_counts(store: Store) -> None:
    store.enrol("cam", "g", "key1", 1)
    store.propose_key("key1", "key2")
    store.propose_key("key1", "key3")
    assert (name_of(store, "key2"), name_of(store, "key1")) == (None, "cam")
    assert name_of(store, "key3") == "cam"
    assert name_of(store, "key1") is None


def test_a_proposed_key_may_be_presented_to_propose_itself(store: Store) -> None:
    store.enrol("cam", "g", "once", 1, token_expires_ms=UNTIL_MS)
    store.propose_key("once", "key1")
    assert store.propose_key("key1", "key1") is not None
    assert name_of(store, "once") is None


def test_nobody_can_propose_the_secret_of_another(store: Store) -> None:
    store.enrol("cam", "g", "key1", 1)
    store.enrol("cam2", "g", "key2", 1)
    store.propose_key("key2", "next2")
    store.enrol("gone", "g", "key3", 1)
    store.revoke("gone", 2)
    store.add_user("eve", "operator", "user1", 1)
    for taken in ("key2", "next2", "key3", "user1"):
        with pytest.raises(ConflictError, match="nobody else"):
            store.propose_key("key1", taken)
    assert (name_of(store, "key1"), name_of(store, "key2")) == ("cam", "cam2")


def test_revocation_ends_all_keys_of_a_device(store: Store) -> None:
    store.enrol("cam", "g", "key1", 1)
    store.propose_key("key1", "key2")
    store.revoke("cam", 2)
    assert (name_of(store, "key1"), name_of(store, "key2")) == (None, None)
    assert store.propose_key("key1", "key3") is None
    store.enrol("cam", "g", "key4", 3)
    assert [name_of(store, key) for key in ("key1", "key2", "key4")] == [None, None, "cam"]


def test_a_rotation_is_asked_for_until_it_is_done(store: Store) -> None:
    store.enrol("cam", "g", "key1", 1)
    assert not store.devices()[0].rotate
    assert store.ask_rotation("cam").rotate
    store.propose_key("key1", "key2")
    assert store.devices()[0].rotate
    used = store.device_by_token("key2")
    assert used is not None
    assert not used.rotate
    assert not store.devices()[0].rotate


def test_a_rotation_needs_a_living_device(store: Store) -> None:
    store.enrol("cam", "g", "key1", 1)
    store.revoke("cam", 2)
    for name in ("cam", "nobody"):
        with pytest.raises(NotFoundError):
            store.ask_rotation(name)


def test_enrolling_and_revoking_is_dated(store: Store) -> None:
    assert store.devices_changed_ms() == 0
    store.enrol("cam", "g", "key1", 5)
    store.enrol("cam2", "g", "key2", 7)
    assert store.devices_changed_ms() == 7
    store.revoke("cam", 9)
    assert store.devices_changed_ms() == 9
    store.enrol("cam", "g", "key3", 11)
    assert store.devices_changed_ms() == 11


def test_users_come_and_go(store: Store) -> None:
    ann = store.add_user("ann", "operator", "t1", 5)
    assert (ann.name, ann.role, ann.created_ms, ann.revoked_ms) == ("ann", "operator", 5, None)
    bob = store.add_user("bob", "reader", "t2", 6)
    assert store.users() == [ann, bob]
    assert (store.user_by_token("t1"), store.user_by_token("t2"), store.user_by_token("t3")) == (ann, bob, None)
    with pytest.raises(ConflictError, match="ann"):
        store.add_user("ann", "reader", "t3", 7)
    assert store.revoke_user("ann", 8).revoked_ms == 8
    assert store.revoke_user("ann", 9).revoked_ms == 8
    assert store.user_by_token("t1") is None
    assert store.add_user("ann", "reader", "t3", 10).role == "reader"
    assert (store.user_by_token("t1"), store.users()[0].created_ms) == (None, 10)
    with pytest.raises(NotFoundError):
        store.revoke_user("nobody", 1)


def test_devices_and_users_are_not_each_other(store: Store) -> None:
    store.enrol("cam", "g", "key1", 1)
    store.add_user("ann", "operator", "t1", 1)
    assert store.user_by_token("key1") is None
    assert store.device_by_token("t1") is None
