"""Authorisation beyond the single request: groups that stay apart, caches, revocation while somebody waits.

Who may ask what at all is in ``test_http_matrix.py``.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cema.wire.tokens import token_digest


def test_failed_authentication_is_counted_by_reason(cast: Any) -> None:
    for token in (None, "guess", "secret-of-gone", "once-for-late"):
        cast.call("/v1/groups/g", token=token)
    values = cast.metrics()
    for reason, count in {"missing": 1, "unknown": 2, "expired": 1}.items():
        assert values[f"cema_auth_failures_total,reason={reason}"] == count


# one group's samples and updates never reach another


def test_samples_and_updates_stay_in_their_group(cast: Any) -> None:
    assert cast.upload(cast.batch(cast.sample(1))).status == 200
    assert [cast.store.group(name).pending for name in ("g", "other")] == [1, 0]
    spy = {"token": "secret-of-spy"}
    assert cast.call("/v1/groups/other/updates", **spy).json()["updates"] == []
    assert cast.call("/v1/groups/other/updates/latest?after=0&from=0", **spy).status == 204
    assert cast.error_of(cast.call("/v1/groups/other/updates/1", **spy)) == (404, "not_found")
    crafted = cast.upload(cast.batch(cast.sample(2)), **spy)  # a batch for g, from a device of another group
    assert cast.error_of(crafted) == (403, "forbidden")
    for path in ("g%2F..%2Fother", "other/../g", "g%00", "G"):
        assert cast.call(f"/v1/groups/{path}/updates/1", **spy).status in (403, 404)


def test_a_device_that_moves_to_another_group_loses_the_old_one(cast: Any) -> None:
    cast.store.revoke("cam", 3)
    cast.store.enrol("cam", "other", token_digest("second-secret-of-cam"), 4)
    assert cast.call("/v1/groups/g/updates/1").status == 401
    assert cast.call("/v1/groups/g/updates/1", token="second-secret-of-cam").status == 403
    assert cast.call("/v1/groups/other", token="second-secret-of-cam").status == 200


def test_a_shared_cache_has_to_ask_before_it_hands_out_a_version(cast: Any) -> None:
    """RFC 9111: with s-maxage=0 what a cache keeps is stale at once, and the cloud looks at the token again."""
    stored = cast.call("/v1/groups/g/updates/1")
    assert "s-maxage=0" in stored.headers["cache-control"]
    validate = {"If_None_Match": stored.headers["etag"]}
    assert cast.call("/v1/groups/g/updates/1", **validate).status == 304
    assert cast.call("/v1/groups/g/updates/1", token=None, **validate).status == 401
    assert cast.call("/v1/groups/g/updates/1", token="secret-of-spy", **validate).status == 403


# revocation


def test_a_device_revoked_while_its_poll_waits_gets_nothing_more(cast: Any) -> None:
    with ThreadPoolExecutor(1) as pool:
        poll = pool.submit(cast.call, "/v1/groups/g/updates/latest?after=1&wait=30")
        while cast.metrics()["cema_polls_waiting"] != 1:
            pass
        assert cast.administer("/v1/admin/devices/cam/revoke", "POST").json()["revoked"] is not None
        cast.publish(b"version 2")
        answer = poll.result(30)
    assert cast.error_of(answer) == (401, "unauthenticated")
    assert b"version 2" not in answer.data
    assert cast.call("/v1/groups/g").status == 401


def test_operators_see_what_they_steer(cast: Any) -> None:
    (group,) = [row for row in cast.administer("/v1/admin/groups").json()["groups"] if row["group"] == "g"]
    assert group == cast.administer("/v1/admin/groups/g").json()
    assert (group["latest_version"], group["adaptation"]) == (1, "on")
    names = [row["device_id"] for row in cast.administer("/v1/admin/devices?group=g").json()["devices"]]
    assert names == ["cam", "gone", "late", "mate", "new", "swap", "victim"]
    assert "spy" in [row["device_id"] for row in cast.administer("/v1/admin/devices").json()["devices"]]
    assert cast.administer("/v1/admin/groups/g/updates").json()["updates"][0]["version"] == 1
    assert cast.administer("/v1/admin/devices/cam/rotate", "POST").json()["rotate"]
    assert cast.call("/v1/groups/g").json()["rotate_key"] is True
    for method, path in (("GET", "groups/x"), ("POST", "devices/x/revoke"), ("POST", "devices/gone/rotate")):
        assert cast.error_of(cast.administer(f"/v1/admin/{path}", method)) == (404, "not_found")
