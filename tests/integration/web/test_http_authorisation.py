"""Who may do what: every route of both listeners, asked by everybody over real HTTP.

The routes are read from the applications: one that is missing in the tables below fails the test.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
from fastapi import FastAPI

from cema.cloud.app import create_admin_app, create_app
from cema.config import AdminConfig, ServeConfig
from cema.wire.messages import MSGPACK_TYPE, KeyProposal, encode_msgpack
from cema.wire.tokens import token_digest

CALLERS = {
    "nobody": None,
    "guesser": "guess",
    "revoked device": "secret-of-gone",
    "device with a one-time token": "once",
    "device with an expired one-time token": "once-upon-a-time",
    "device": "secret-of-cam",
    "device of another group": "secret-of-spy",
    "reader": "secret-of-ron",
    "operator": "secret-of-ann",
    "revoked operator": "secret-of-max",
}
UNKNOWN = {"nobody": 401, "guesser": 401, "revoked device": 401, "revoked operator": 401}
DEVICES = {name: 403 for name in CALLERS if name not in UNKNOWN and "device" in name}
PEOPLE = {"reader": 403, "operator": 403}
ALLOWED = 0
PUBLIC = dict.fromkeys(CALLERS, ALLOWED)
DEVICE = UNKNOWN | DEVICES | PEOPLE | {"device with an expired one-time token": 401, "device": ALLOWED}
ENROLLING = DEVICE | {"device with a one-time token": ALLOWED}
LOOK = UNKNOWN | DEVICES | dict.fromkeys(PEOPLE, ALLOWED)
CHANGE = LOOK | {"reader": 403}


class Cell(NamedTuple):
    """policy: status by caller. ok: the answer to those who may. path: with real names in it."""

    policy: dict[str, int]
    path: str
    ok: int = 200


PAGES = {
    (method, path): Cell(PUBLIC, path)
    for path in ("/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc")
    for method in ("GET", "HEAD")
}
EVERYWHERE = PAGES | {("GET", "/healthz"): Cell(PUBLIC, "/healthz"), ("GET", "/readyz"): Cell(PUBLIC, "/readyz")}
OF_DEVICES = {
    ("GET", "/v1/groups/{group}"): Cell(DEVICE, "/v1/groups/g"),
    ("POST", "/v1/groups/{group}/samples"): Cell(DEVICE, "/v1/groups/g/samples"),
    ("GET", "/v1/groups/{group}/updates/latest"): Cell(DEVICE, "/v1/groups/g/updates/latest?after=0"),
    ("GET", "/v1/groups/{group}/updates/{version}"): Cell(DEVICE, "/v1/groups/g/updates/1"),
    ("GET", "/v1/groups/{group}/updates"): Cell(DEVICE, "/v1/groups/g/updates"),
    ("GET", "/v1/groups/{group}/bundle"): Cell(DEVICE, "/v1/groups/g/bundle"),
    ("POST", "/v1/groups/{group}/key"): Cell(ENROLLING, "/v1/groups/g/key"),
}
OF_PEOPLE = {
    ("GET", "/v1/admin/groups"): Cell(LOOK, "/v1/admin/groups"),
    ("GET", "/v1/admin/groups/{group}"): Cell(LOOK, "/v1/admin/groups/g"),
    ("GET", "/v1/admin/groups/{group}/updates"): Cell(LOOK, "/v1/admin/groups/g/updates"),
    # 409: there is nothing earlier; test_http_rollback.py has the rest
    ("POST", "/v1/admin/groups/{group}/rollback"): Cell(CHANGE, "/v1/admin/groups/g/rollback?to=1", 409),
    ("POST", "/v1/admin/groups/{group}/pause"): Cell(CHANGE, "/v1/admin/groups/g/pause"),
    ("POST", "/v1/admin/groups/{group}/resume"): Cell(CHANGE, "/v1/admin/groups/g/resume"),
    ("GET", "/v1/admin/devices"): Cell(LOOK, "/v1/admin/devices?group=g"),
    ("POST", "/v1/admin/devices/{name}/revoke"): Cell(CHANGE, "/v1/admin/devices/victim/revoke"),
    ("POST", "/v1/admin/devices/{name}/rotate"): Cell(CHANGE, "/v1/admin/devices/cam/rotate"),
    ("POST", "/v1/admin/devices/{name}/pause"): Cell(CHANGE, "/v1/admin/devices/cam/pause"),
    ("POST", "/v1/admin/devices/{name}/resume"): Cell(CHANGE, "/v1/admin/devices/cam/resume"),
    ("POST", "/v1/admin/devices/{name}/delete-samples"): Cell(CHANGE, "/v1/admin/devices/cam/delete-samples?group=g"),
    ("GET", "/metrics"): Cell(LOOK, "/metrics"),
}


def routes_of(routes: list[Any]) -> Iterator[tuple[str, str]]:
    """Every (method, path) of an application, whatever it was put together from."""
    for route in routes:
        if hasattr(route, "original_router"):  # how newer versions of FastAPI keep what was included
            yield from routes_of(route.original_router.routes)
        else:
            yield from ((method, route.path) for method in route.methods)


def refused(table: dict[tuple[str, str], Cell]) -> Iterator[tuple[str, str, Cell]]:
    for (method, _), cell in table.items():
        yield from ((method, caller, cell) for caller, status in cell.policy.items() if status != ALLOWED)


def ask(service: Any, listener: str, method: str, caller: str, cell: Cell) -> Any:
    send = service.call if listener == "devices" else service.administer
    device = "new" if "one-time" in caller else "cam"
    body = None
    if cell.path.endswith("/samples"):
        body = encode_msgpack(service.batch(service.sample(1)))
    if cell.path.endswith("/key"):
        body = encode_msgpack(KeyProposal(device_id=device, key_sha256=token_digest(f"new key of {device}")))
    return send(cell.path, method, token=CALLERS[caller], body=body, Content_Type=MSGPACK_TYPE)


def state(service: Any) -> tuple[Any, ...]:
    store = service.store
    return store.groups(), store.devices(), store.users(), store.pending("g", 9), store.pending("other", 9)


@pytest.fixture
def cast(service: Any) -> Any:
    """The service with everybody of CALLERS, and a version to fetch."""
    store = service.store
    store.enrol("gone", "g", token_digest("secret-of-gone"), 1)
    store.revoke("gone", 2)
    store.enrol("new", "g", token_digest("once"), 1, token_expires_ms=1235)
    store.enrol("late", "g", token_digest("once-upon-a-time"), 1, token_expires_ms=1234)
    store.enrol("spy", "other", token_digest("secret-of-spy"), 1)
    store.enrol("victim", "g", token_digest("secret-of-victim"), 1)
    store.add_user("max", "operator", token_digest("secret-of-max"), 1)
    store.revoke_user("max", 2)
    service.publish(b"version 1")
    return service


LISTENERS = [("devices", EVERYWHERE | OF_DEVICES), ("people", EVERYWHERE | OF_PEOPLE)]


def test_every_route_has_its_row_in_the_tables(service: Any) -> None:
    app: FastAPI = service.server.config.app
    together = ServeConfig(server=service.config.server, admin=AdminConfig(listener="shared"))
    shared = create_app(together, service.store, service.blobs)
    for made, table in (
        (app, EVERYWHERE | OF_DEVICES),
        (create_admin_app(app), EVERYWHERE | OF_PEOPLE),
        (shared, EVERYWHERE | OF_DEVICES | OF_PEOPLE),
    ):
        assert set(routes_of(made.routes)) == set(table)
        assert {path for _, path in table} >= set(made.openapi()["paths"])
    for table in (OF_DEVICES, OF_PEOPLE):
        assert all(set(cell.policy) == set(CALLERS) for cell in table.values())


@pytest.mark.parametrize(("listener", "table"), LISTENERS)
def test_who_may_not_is_refused_and_changes_nothing(cast: Any, listener: str, table: dict[Any, Cell]) -> None:
    before, wrong = state(cast), {}
    for method, caller, cell in refused(table):
        answer = ask(cast, listener, method, caller, cell)
        if answer.status != cell.policy[caller]:
            wrong[method, cell.path, caller] = answer.status
        assert b"version 1" not in answer.data
        assert answer.json().keys() == {"code", "message", "hint"}
        assert ("Bearer" in answer.headers.get("www-authenticate", "")) == (answer.status == 401)
    assert wrong == {}
    assert state(cast) == before


@pytest.mark.parametrize(("listener", "table"), LISTENERS)
def test_who_may_is_answered(cast: Any, listener: str, table: dict[Any, Cell]) -> None:
    wrong = {}
    for (method, _), cell in table.items():
        for caller in (caller for caller, status in cell.policy.items() if status == ALLOWED):
            answer = ask(cast, listener, method, caller, cell)
            if answer.status != cell.ok:
                wrong[method, cell.path, caller] = (answer.status, answer.data[:200])
    assert wrong == {}


def test_each_listener_serves_its_own_alone(cast: Any) -> None:
    for (method, _), cell in OF_PEOPLE.items():
        assert cast.error_of(cast.call(cell.path, method, token="secret-of-ann")) == (404, "not_found")
    for (method, _), cell in OF_DEVICES.items():
        assert cast.error_of(cast.administer(cell.path, method, token="secret-of-cam")) == (404, "not_found")


def test_failed_authentication_is_counted_by_reason(cast: Any) -> None:
    for token in (None, "guess", "secret-of-gone", "once-upon-a-time"):
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
    assert names == ["cam", "gone", "late", "new", "victim"]
    assert "spy" in [row["device_id"] for row in cast.administer("/v1/admin/devices").json()["devices"]]
    assert cast.administer("/v1/admin/groups/g/updates").json()["updates"][0]["version"] == 1
    assert cast.administer("/v1/admin/devices/cam/rotate", "POST").json()["rotate"]
    assert cast.call("/v1/groups/g").json()["rotate_key"] is True
    for method, path in (("GET", "groups/x"), ("POST", "devices/x/revoke"), ("POST", "devices/gone/rotate")):
        assert cast.error_of(cast.administer(f"/v1/admin/{path}", method)) == (404, "not_found")
