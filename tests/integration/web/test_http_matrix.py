"""Who may do what: every route of both listeners x everybody x every group, over real HTTP, with status and code.

The routes are read from the applications: one without a row in the tables below fails the tests. ``cast`` in
``conftest.py`` introduces the people and devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import pytest

from cema.cloud.app import create_admin_app, create_app
from cema.config import AdminConfig, ServeConfig
from cema.wire.messages import MSGPACK_TYPE, KeyProposal, encode_msgpack
from cema.wire.tokens import token_digest

Route = tuple[str, str]
Outcome = tuple[int, str]
OK, NOTHING_NEW = (200, ""), (204, "")
UNKNOWN, FORBIDDEN, NO_KEY_YET = (401, "unauthenticated"), (403, "forbidden"), (403, "enrolment_invalid")
MISSING, WRONG_METHOD = (404, "not_found"), (405, "message_invalid")
INCOMPLETE = (422, "message_invalid")


class Caller(NamedTuple):
    """credential: the header Authorization. speaks_for: the device in the bodies that it sends."""

    credential: str | None
    speaks_for: str = "cam"


CALLERS = {
    "nobody": Caller(None),
    "nobody, with an empty token": Caller("Bearer "),
    "device's key in another scheme": Caller("Basic secret-of-cam"),
    "device's key without a scheme": Caller("secret-of-cam"),
    "guesser": Caller("Bearer guess"),
    "guesser beyond ASCII": Caller("Bearer \xe9\xff"),
    "thief of a hash": Caller(f"Bearer {token_digest('secret-of-cam')}"),
    "revoked device": Caller("Bearer secret-of-gone", "gone"),
    "revoked device of another group": Caller("Bearer secret-of-gone-spy", "gone-spy"),
    "device with a replaced key": Caller("Bearer first-secret-of-swap", "swap"),
    "expired one-time token": Caller("Bearer once-for-late", "late"),
    "revoked reader": Caller("Bearer secret-of-rea"),
    "revoked operator": Caller("Bearer secret-of-max"),
    "one-time token": Caller("Bearer once-for-new", "new"),
    "one-time token of another group": Caller("Bearer once-for-new-spy", "new-spy"),
    "device": Caller("Bearer secret-of-cam"),
    "device in another's name": Caller("Bearer secret-of-mate"),
    "device of another group": Caller("Bearer secret-of-spy", "spy"),
    "reader": Caller("Bearer secret-of-ron"),
    "operator": Caller("Bearer secret-of-ann"),
}
ONCE, ONCE_OTHER, DEVICE, MATE, SPY = list(CALLERS)[13:18]
REFUSED_EVERYWHERE = dict.fromkeys(list(CALLERS)[:13], UNKNOWN)
DEVICES = dict.fromkeys((ONCE, ONCE_OTHER, DEVICE, MATE, SPY), FORBIDDEN)
PEOPLE = dict.fromkeys(("reader", "operator"), FORBIDDEN)
NOT_THEIRS = REFUSED_EVERYWHERE | DEVICES | PEOPLE

Policy = dict[str, dict[str, Outcome]]
"""Answer by target (the group or device in the path) and caller."""


def changed(policy: Policy, **targets: dict[str, Outcome]) -> Policy:
    return {target: answers | targets.get(target, {}) for target, answers in policy.items()}


PUBLIC: Policy = {"": dict.fromkeys(CALLERS, OK)}
OWN_GROUP: Policy = {
    "g": NOT_THEIRS | {DEVICE: OK, MATE: OK, ONCE: NO_KEY_YET},
    "other": NOT_THEIRS | {SPY: OK, ONCE_OTHER: NO_KEY_YET},
    "nowhere": NOT_THEIRS,
}
OWN_NAME = changed(OWN_GROUP, g={MATE: FORBIDDEN})
ENROLLING = changed(OWN_NAME, g={ONCE: OK}, other={ONCE_OTHER: OK})
NO_DEVICE = NOT_THEIRS | {"expired one-time token": FORBIDDEN}
"""To people's routes a device is a device, whatever the state of its token."""
READERS = NO_DEVICE | {"reader": OK, "operator": OK}
LOOK: Policy = {"": READERS}
LOOK_AT: Policy = {
    "g": READERS,
    "other": READERS,
    "nowhere": READERS | {"reader": MISSING, "operator": MISSING},
}
CHANGE: Policy = {
    "victim": NO_DEVICE | {"operator": OK},
    "victim-of-other": NO_DEVICE | {"operator": OK},
    "nobody": NO_DEVICE | {"operator": MISSING},
}
CHANGE_GROUP: Policy = {
    "g": NO_DEVICE | {"operator": OK},
    "other": NO_DEVICE | {"operator": OK},
    "nowhere": NO_DEVICE | {"operator": MISSING},
}

PAGES = {
    (method, path): PUBLIC
    for path in ("/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc")
    for method in ("GET", "HEAD")
}
EVERYWHERE = PAGES | {("GET", "/healthz"): PUBLIC, ("GET", "/readyz"): PUBLIC}
OF_DEVICES: dict[Route, Policy] = {
    ("GET", "/v1/groups/{group}"): OWN_GROUP,
    ("POST", "/v1/groups/{group}/samples"): OWN_NAME,
    ("GET", "/v1/groups/{group}/updates/latest"): changed(OWN_GROUP, other={SPY: NOTHING_NEW}),
    ("GET", "/v1/groups/{group}/updates/{version}"): changed(OWN_GROUP, other={SPY: MISSING}),
    ("GET", "/v1/groups/{group}/updates"): OWN_GROUP,
    ("GET", "/v1/groups/{group}/bundle"): OWN_GROUP,
    ("POST", "/v1/groups/{group}/key"): ENROLLING,
}
OF_PEOPLE: dict[Route, Policy] = {
    ("GET", "/v1/admin/groups"): LOOK,
    ("GET", "/v1/admin/groups/{group}"): LOOK_AT,
    ("GET", "/v1/admin/groups/{group}/updates"): LOOK_AT,
    ("POST", "/v1/admin/groups/{group}/rollback"): {
        group: answers | {"operator": INCOMPLETE} for group, answers in CHANGE_GROUP.items()
    },
    ("POST", "/v1/admin/groups/{group}/pause"): CHANGE_GROUP,
    ("POST", "/v1/admin/groups/{group}/resume"): CHANGE_GROUP,
    ("GET", "/v1/admin/devices"): LOOK,
    ("POST", "/v1/admin/devices/{name}/pause"): CHANGE,
    ("POST", "/v1/admin/devices/{name}/resume"): CHANGE,
    ("POST", "/v1/admin/devices/{name}/delete-samples"): CHANGE,
    ("POST", "/v1/admin/devices/{name}/rotate"): CHANGE,
    ("POST", "/v1/admin/devices/{name}/revoke"): CHANGE,
    ("GET", "/metrics"): LOOK,
}
TABLES = {"devices": EVERYWHERE | OF_DEVICES, "people": EVERYWHERE | OF_PEOPLE}
TABLES["shared"] = TABLES["devices"] | TABLES["people"]
LISTENERS = [("devices", {}), ("people", {}), ("shared", {"listener": "shared"})]
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
WRONG = "?after=x&wait=x&from=x&limit=x"
both_ways = pytest.mark.parametrize(("listener", "admin_settings"), LISTENERS, ids=[name for name, _ in LISTENERS])


def routes_of(routes: list[Any]) -> Iterator[Route]:
    """Every (method, path) of an application, whatever it was put together from."""
    for route in routes:
        if hasattr(route, "original_router"):  # how newer versions of FastAPI keep what was included
            yield from routes_of(route.original_router.routes)
        else:
            yield from ((method, route.path) for method in route.methods)


def served_routes(service: Any, listener: str) -> list[Route]:
    app = service.server.config.app
    routes = set(routes_of((create_admin_app(app) if listener == "people" else app).routes))
    return sorted(routes, key=lambda route: (route[1].endswith("/revoke"), route))  # whom it revokes is gone


def cells(routes: list[Route], table: dict[Route, Policy]) -> Iterator[tuple[Route, str, str, Outcome]]:
    """(route, target, caller, expected) of every cell; a route without a row is a KeyError."""
    for route in routes:
        for target, answers in table[route].items():
            yield from ((route, target, caller, expected) for caller, expected in answers.items())


def ask(service: Any, listener: str, method: str, path: str, caller: str, *, fit: bool = True) -> Any:
    """One request. fit: with the body that the route wants, else with garbage."""
    credential, name = CALLERS[caller]
    headers = {"Content_Type": MSGPACK_TYPE if fit else "text/plain"}
    if credential is not None:
        headers["Authorization"] = credential
    body = None if fit else b"\xc1"
    if fit and path.endswith("/samples"):
        body = encode_msgpack(service.batch(service.sample(1), device_id=name))
    if fit and path.endswith("/key"):
        body = encode_msgpack(KeyProposal(device_id=name, key_sha256=token_digest(f"new key of {name}")))
    send = service.administer if listener == "people" else service.call
    return send(path, method, token=None, body=body, **headers)


def path_of(template: str, target: str, version: str = "1") -> str:
    return template.format(group=target, name=target, version=version)


def outcome(answer: Any) -> Outcome:
    """Status and code, after a look at what every refusal has to be."""
    if answer.status < 400:
        return answer.status, ""
    assert b"bytes of version 1" not in answer.data
    if not answer.data:  # to HEAD
        return answer.status, ""
    assert list(answer.json()) == ["code", "message", "hint"]
    assert ("Bearer" in answer.headers.get("www-authenticate", "")) == (answer.status == 401)
    return answer.status, answer.json()["code"]


def state(service: Any) -> tuple[Any, ...]:
    store, groups = service.store, ("g", "other")
    rows = [(store.pending(group, 9), store.replay(group), store.updates(group)) for group in groups]
    return store.groups(), store.devices(), store.users(), rows


def test_every_route_has_its_row_and_every_row_everybody(service: Any) -> None:
    app = service.server.config.app
    together = ServeConfig(server=service.config.server, admin=AdminConfig(listener="shared"))
    shared = create_app(together, service.store, service.blobs)
    for made, table in ((app, "devices"), (create_admin_app(app), "people"), (shared, "shared")):
        assert set(routes_of(made.routes)) == set(TABLES[table])
        assert {path for _, path in TABLES[table]} >= set(made.openapi()["paths"])
    for policy in TABLES["shared"].values():
        assert all(set(answers) == set(CALLERS) for answers in policy.values())


@both_ways
def test_who_may_not_is_refused_as_stated_and_changes_nothing(
    cast: Any, listener: str, count_refused: Callable[[int], None]
) -> None:
    """With what the route wants, and with wrong parameters and garbage: the credential is looked at first."""
    before, wrong, refused = state(cast), {}, 0
    for (method, template), target, caller, expected in cells(served_routes(cast, listener), TABLES[listener]):
        if expected not in (UNKNOWN, FORBIDDEN, NO_KEY_YET):
            continue
        answers = [outcome(ask(cast, listener, method, path_of(template, target), caller))]
        if not (caller == MATE and method == "POST"):  # forbidden for what is in the body
            path = path_of(template, target, "x") + WRONG
            answers.append(outcome(ask(cast, listener, method, path, caller, fit=False)))
        if set(answers) != {expected}:
            wrong[method, template, target, caller] = answers
        refused += len(answers)
    assert wrong == {}
    assert state(cast) == before
    count_refused(refused)


@both_ways
def test_who_may_is_answered(cast: Any, listener: str) -> None:
    wrong = {}
    for (method, template), target, caller, expected in cells(served_routes(cast, listener), TABLES[listener]):
        if expected in (UNKNOWN, FORBIDDEN, NO_KEY_YET):
            continue
        answer = outcome(ask(cast, listener, method, path_of(template, target), caller))
        if answer != expected:
            wrong[method, template, target, caller] = answer
    assert wrong == {}


def test_each_listener_serves_its_own_alone(cast: Any, count_refused: Callable[[int], None]) -> None:
    before, wrong, refused = state(cast), {}, 0
    for listener, table in (("devices", OF_PEOPLE), ("people", OF_DEVICES)):
        for (method, template), target, caller, _ in cells(list(table), table):
            answer = outcome(ask(cast, listener, method, path_of(template, target), caller))
            if answer != MISSING:
                wrong[listener, method, template, target, caller] = answer
            refused += 1
    assert wrong == {}
    assert state(cast) == before
    count_refused(refused)


@both_ways
def test_no_route_takes_another_method(cast: Any, listener: str, count_refused: Callable[[int], None]) -> None:
    """Not even from those who may use it with its own."""
    table, before, wrong, refused = TABLES[listener], state(cast), {}, 0
    targets = {template: target for (_, template), policy in table.items() for target in policy}
    for (template, target), method in product(targets.items(), METHODS):
        if (method, template) in table:
            continue
        for caller in ("nobody", DEVICE, "operator"):
            answer = outcome(ask(cast, listener, method, path_of(template, target), caller))
            if answer != (WRONG_METHOD if method != "HEAD" else (405, "")):
                wrong[method, template, caller] = answer
            refused += 1
    assert wrong == {}
    assert state(cast) == before
    count_refused(refused)
