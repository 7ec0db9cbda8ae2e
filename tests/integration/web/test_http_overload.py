"""More uploads than the cloud can take, over real HTTP: they are told when to come back, and nobody else is held up."""

from __future__ import annotations

import http.client
import socket
import sqlite3
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from cema.cloud.api.admission import DEVICE_UPLOADS, MAX_PAUSE_S
from cema.wire.messages import MSGPACK_TYPE, encode_msgpack
from cema.wire.tokens import token_digest

PLACES, BODY_BYTES, LOOKS = 3, 3_000_000, 10_000
SAMPLES = "/v1/groups/g/samples"


@pytest.fixture
def server_settings() -> dict[str, Any]:
    return {"max_queued_uploads": PLACES, "max_body_bytes": BODY_BYTES, "max_queued_bytes": BODY_BYTES}


@pytest.fixture
def cams(service: Any) -> list[str]:
    """Devices of the group, beside cam."""
    names = [f"cam-{number}" for number in range(2 * PLACES)]
    for name in names:
        service.store.enrol(name, "g", token_digest(f"secret-of-{name}"), 1)
    return names


@contextmanager
def busy_store(service: Any) -> Iterator[None]:
    """Somebody else writes: whoever wants to write waits."""
    database = Path(service.config.server.data_dir) / "cema.db"
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def upload(service: Any, name: str, number: int) -> Any:
    return service.upload(service.batch(service.sample(number), device_id=name), token=f"secret-of-{name}")


def until(service: Any, metric: str, value: float) -> None:
    for _ in range(LOOKS):
        if service.metrics()[metric] == value:
            return
    raise AssertionError(f"{metric} was never {value}, but {service.metrics()[metric]}")


@contextmanager
def all_places_taken(service: Any, cams: list[str]) -> Iterator[list[Future[Any]]]:
    with ThreadPoolExecutor(PLACES) as pool:
        with busy_store(service):
            waiting = [pool.submit(upload, service, name, n) for n, name in enumerate(cams[:PLACES])]
            until(service, "cema_uploads_in_flight", PLACES)
            while service.server.config.app.state.context.admission.queued < PLACES:
                service.metrics()
            yield waiting
        assert [each.result(30).status for each in waiting] == [200] * PLACES


@contextmanager
def dripping(service: Any, name: str, announced: int, sent: int) -> Iterator[socket.socket]:
    """A request whose body does not come to its end."""
    address = urlsplit(service.url)
    head = (
        f"POST {SAMPLES} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret-of-{name}\r\n"
        f"Content-Type: {MSGPACK_TYPE}\r\nContent-Length: {announced}\r\n\r\n"
    )
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(head.encode() + bytes(sent))
        yield connection


def test_uploads_beyond_the_places_are_told_when_to_come_back_and_those_before_are_taken(
    service: Any, cams: list[str]
) -> None:
    with all_places_taken(service, cams):
        for number, name in enumerate(cams[PLACES:]):
            answer = upload(service, name, 100 + number)
            assert service.error_of(answer) == (429, "overloaded")
            assert 1 <= int(answer.headers["retry-after"]) <= MAX_PAUSE_S
        assert service.metrics()["cema_uploads_refused_total,reason=places"] == len(cams) - PLACES
    assert service.store.group("g").pending == PLACES
    assert upload(service, cams[-1], 100).status == 200
    assert service.metrics()["cema_uploads_in_flight"] == 0


def test_everybody_else_is_answered_while_uploads_wait(service: Any, cams: list[str]) -> None:
    with all_places_taken(service, cams):
        assert service.call("/v1/groups/g").status == 200
        assert service.call("/v1/groups/g/updates/latest?after=0&wait=0").status == 204
        assert service.call("/healthz", token=None).status == 200
        assert service.call("/readyz", token=None).status == 200
        assert service.administer("/v1/admin/groups").status == 200
        assert service.metrics()["cema_uploads_in_flight"] == PLACES


def test_a_refused_body_is_read_to_its_end_and_the_connection_goes_on(service: Any, cams: list[str]) -> None:
    address = urlsplit(service.url)
    headers = {"Authorization": "Bearer secret-of-cam", "Content-Type": MSGPACK_TYPE}
    with closing(http.client.HTTPConnection(str(address.hostname), address.port, timeout=30)) as connection:
        with all_places_taken(service, cams):
            for _ in range(3):
                connection.request("POST", SAMPLES, body=bytes(BODY_BYTES), headers=headers)
                answer = connection.getresponse()
                assert (answer.status, answer.headers["connection"]) == (429, None)
                answer.read()
            before = connection.sock
        connection.request("POST", SAMPLES, body=encode_msgpack(service.batch(service.sample(7))), headers=headers)
        assert connection.getresponse().status == 200
        assert connection.sock is before


def test_bodies_hold_memory_within_the_bound_and_whoever_goes_gives_it_back(service: Any, cams: list[str]) -> None:
    half = BODY_BYTES // 2
    with dripping(service, cams[0], BODY_BYTES, half):
        until(service, "cema_upload_bytes_held", half)
        with dripping(service, cams[1], BODY_BYTES, half):
            until(service, "cema_upload_bytes_held", 2 * half)
            answer = upload(service, "cam", 1)
            assert service.error_of(answer) == (429, "overloaded")
            assert "server.max_queued_bytes" in answer.json()["message"]
        until(service, "cema_upload_bytes_held", half)
        assert upload(service, "cam", 1).status == 200
    until(service, "cema_upload_bytes_held", 0)
    assert service.metrics()["cema_uploads_in_flight"] == 0


def test_a_key_that_drips_bodies_takes_no_more_than_its_own_places(service: Any, cams: list[str]) -> None:
    with dripping(service, "cam", 1000, 10), dripping(service, "cam", 1000, 10):
        until(service, "cema_uploads_in_flight", DEVICE_UPLOADS)
        answer = service.upload(service.batch(service.sample(1)))
        assert service.error_of(answer) == (429, "overloaded")
        assert answer.headers["retry-after"] == "1"
        assert upload(service, cams[0], 2).status == 200
    until(service, "cema_uploads_in_flight", 0)
    assert service.upload(service.batch(service.sample(1))).status == 200


@pytest.mark.parametrize("server_settings", [{"receive_timeout_s": 0.2}])
def test_a_body_that_never_ends_gives_back_what_it_held(service: Any) -> None:
    with dripping(service, "cam", 1000, 10) as connection:
        assert b"408" in connection.recv(1000)
    assert service.metrics()["cema_uploads_in_flight"] == 0
    assert service.metrics()["cema_upload_bytes_held"] == 0


def test_a_store_that_fails_gives_back_what_was_held(service: Any) -> None:
    with closing(sqlite3.connect(Path(service.config.server.data_dir) / "cema.db")) as database:
        database.execute("ALTER TABLE payloads RENAME TO gone")
    assert service.upload(service.batch(service.sample(1))).status == 503
    assert service.metrics()["cema_uploads_in_flight"] == 0
    assert service.metrics()["cema_upload_bytes_held"] == 0
