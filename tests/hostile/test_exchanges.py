"""Hostile bytes over a raw socket to a running web process."""

from __future__ import annotations

import contextlib
import json
import socket
from http.client import HTTPResponse
from typing import Any

import pytest

from hostile.batches import batch, batch_of
from hostile.case import TAKEN, Case, bounded, check_error, each
from hostile.exchanges import CASES, HOST, TOKEN, UPLOAD
from hostile.test_batches import stored

TIMEOUT_S = 20.0


def connected(cloud: Any) -> socket.socket:
    host, port = cloud.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=TIMEOUT_S)


def exchanged(cloud: Any, data: bytes, *, half: bool = False) -> tuple[int, bytes]:
    """Status and body of the first final answer; (0, b"") if the connection ended without one."""
    with connected(cloud) as connection:
        try:
            connection.sendall(data)
            if half:
                connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # refused before everything was sent: the answer may have come all the same
        answer = HTTPResponse(connection)
        try:
            answer.begin()
            return answer.status, answer.read()
        except TimeoutError:
            raise AssertionError("neither answered nor closed") from None
        except (OSError, ValueError):
            return 0, b""


def until_closed(connection: socket.socket) -> bytes:
    """What still comes before the cloud ends the connection; a reset ends it too, since a byte may cross the end."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while more := connection.recv(65536):
            received += more
    return received


def closes(cloud: Any, data: bytes) -> bool:
    """Whether the cloud ends the connection of a client that sends this and then waits."""
    with connected(cloud) as connection:
        connection.sendall(data)
        try:
            until_closed(connection)
        except TimeoutError:
            return False
        return True


@each(CASES)
def test_the_cloud_refuses_the_bytes_and_goes_on(case: Case, request: pytest.FixtureRequest) -> None:
    cloud: Any = request.getfixturevalue("impatient_cloud" if case.options.get("slow") else "cloud")
    data, before = case.build(), stored(cloud)
    with bounded(case):
        status, body = exchanged(cloud, data, half=bool(case.options.get("half")))
    if case.options.get("silent"):
        assert (status, body) == (0, b"")
    elif case.code == TAKEN:
        assert status == 200
    else:
        assert status >= 400
        check_error(case, **json.loads(body))
    if case.options.get("slow"):
        assert closes(cloud, data)
    assert stored(cloud) == before
    assert cloud.call("/v1/groups/g").status == 200


def test_a_head_that_trickles_in_has_one_deadline_for_all_of_it(impatient_cloud: Any) -> None:
    with connected(impatient_cloud) as connection:
        connection.settimeout(0.05)
        answer = b""
        for byte in b"GET /v1/groups/g HTTP/1.1\r\n" + b"X: " + b"x" * 5000:
            try:
                connection.sendall(bytes([byte]))
                answer = connection.recv(4096)
            except TimeoutError:
                continue
            except ConnectionError:
                pass  # the byte crossed the end: the answer, sent before it, is still there to be read
            break
        connection.settimeout(TIMEOUT_S)
        answer += until_closed(connection)
    assert b'"body_timeout"' in answer
    assert impatient_cloud.call("/v1/groups/g").status == 200


def test_a_connection_that_idles_between_requests_is_kept(impatient_cloud: Any) -> None:
    patience_s = impatient_cloud.config.server.receive_timeout_s
    with connected(impatient_cloud) as connection:
        for _ in range(2):
            connection.sendall(b"GET /v1/groups/g HTTP/1.1\r\n" + HOST + TOKEN + b"\r\n")
            answer = HTTPResponse(connection)
            answer.begin()
            assert (answer.status, len(answer.read()) > 0) == (200, True)
            connection.settimeout(3 * patience_s)
            with pytest.raises(TimeoutError):
                connection.recv(1)
            connection.settimeout(TIMEOUT_S)


def test_a_request_that_is_replayed_changes_nothing(cloud: Any) -> None:
    body = batch_of(sample_id=b"replayed" * 2, seq=1)
    data = UPLOAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    receipts = [json.loads(exchanged(cloud, data)[1]) for _ in range(3)]
    assert [(each["accepted"], each["duplicates"]) for each in receipts] == [(1, 0), (0, 1), (0, 1)]


def test_an_interrupted_upload_leaves_no_trace_in_the_log(cloud: Any, caplog: pytest.LogCaptureFixture) -> None:
    body = batch()
    exchanged(cloud, UPLOAD + b"Content-Length: %d\r\n\r\n" % (len(body) + 1) + body, half=True)
    assert cloud.call("/v1/groups/g").status == 200
    assert "Exception in ASGI application" not in caplog.text
