"""Connections of clients that do not take what they asked for."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from cema.cloud import connection
from cema.cloud.connection import PatientProtocol

CHUNK = b"x" * 65_536
CHUNKS = 400
"""More than the system takes off the process's hands: 25 MiB."""
LIMIT_S = 20.0
REQUEST = b"GET / HTTP/1.1\r\nHost: cloud\r\n\r\n"


class Answering:
    """A web process that answers everything with CHUNKS chunks. ended: set when a client is gone before the end."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        protocol = PatientProtocol.within(0.1, max_connections=10)
        config = uvicorn.Config(self.app, http=protocol, log_config=None, lifespan="off", interface="asgi3")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]})

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        gone = asyncio.create_task(receive())
        headers = [(b"content-length", str(CHUNKS * len(CHUNK)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for number in range(CHUNKS):
            await send({"type": "http.response.body", "body": CHUNK, "more_body": number < CHUNKS - 1})
            if gone.done() and number < CHUNKS - 1:
                self.ended.set()
                return
        gone.cancel()

    def asked(self) -> socket.socket:
        client = socket.create_connection(self.listener.getsockname(), timeout=LIMIT_S)
        client.sendall(REQUEST)
        return client


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Iterator[Answering]:
    monkeypatch.setattr(connection, "MIN_BYTES_PER_S", 1e9)
    answering = Answering()
    answering.thread.start()
    yield answering
    answering.server.should_exit = True
    answering.thread.join(LIMIT_S)
    answering.listener.close()


def test_a_client_that_takes_nothing_of_its_answer_is_not_waited_for(answering: Answering) -> None:
    with answering.asked() as client:
        assert answering.ended.wait(LIMIT_S)
        received = 0
        with contextlib.suppress(ConnectionError):  # what the system had taken may still come
            while piece := client.recv(1 << 20):
                received += len(piece)
        assert received < CHUNKS * len(CHUNK)


def test_a_client_that_goes_on_taking_gets_all_of_it(answering: Answering) -> None:
    with answering.asked() as client:
        received = 0
        while received < CHUNKS * len(CHUNK):
            received += len(client.recv(10_000))
    assert not answering.ended.is_set()
