"""As many connections as there are descriptors for: the next ones are closed, the store and the operators go on."""

from __future__ import annotations

import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import pytest

from cema.cloud.descriptors import CONNECTIONS_PER_DEVICE, RESERVED, devices_within

ROOM = 3
REQUEST = b"GET /v1/groups/g HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret-of-cam\r\n\r\n"


@pytest.fixture
def server_settings() -> Iterator[dict[str, Any]]:
    """A web process that may hold three connections of devices."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (RESERVED + ROOM, hard))
    yield {}
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def ask(connection: socket.socket) -> bytes:
    """The whole answer; empty if the cloud has closed the connection."""
    answer = b""
    try:
        connection.sendall(REQUEST)
        while not answer.endswith(b"}") and (part := connection.recv(1000)):
            answer += part
    except ConnectionError:
        return b""
    return answer


def connect(service: Any) -> socket.socket:
    address = urlsplit(service.url)
    return socket.create_connection((address.hostname, address.port), timeout=30)


def test_a_connection_too_many_is_closed_and_the_others_go_on(service: Any) -> None:
    with ExitStack() as stack:
        held = [stack.enter_context(connect(service)) for _ in range(ROOM)]
        assert all(ask(connection).startswith(b"HTTP/1.1 200") for connection in held)
        assert ask(stack.enter_context(connect(service))) == b""
        assert ask(held[0]).startswith(b"HTTP/1.1 200")
        assert service.administer("/v1/admin/groups").status == 200
        assert service.metrics()["process_max_fds"] == RESERVED + ROOM
    while not ask(again := connect(service)).startswith(b"HTTP/1.1 200"):  # once the cloud has seen that they are gone
        again.close()
    again.close()


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    script = (
        "import resource as r; from cema.cloud.descriptors import raise_limit as up, max_connections as most\n"
        "r.setrlimit(r.RLIMIT_NOFILE, (300, 1000)); up(); print(r.getrlimit(r.RLIMIT_NOFILE), most())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"(1000, 1000) {1000 - RESERVED}"


def test_a_device_takes_two_connections() -> None:
    assert devices_within(RESERVED + CONNECTIONS_PER_DEVICE * 30_000 + 1) == 30_000
    assert devices_within(10) == 0
