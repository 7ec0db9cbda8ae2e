"""One connection of the web process, before it is a request and after: how long a client may keep it waiting.

uvicorn reads HTTP and runs the application; what it leaves open is closed here. A client that sends its head one byte
a minute, or never the rest of a body that nobody reads any more, or that does not take what it asked for, costs a
connection for a bounded time only. What is not HTTP is answered in the one shape of every error.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import ClassVar, Self

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from cema.errors import BodyTimeoutError, CemaError, MessageError
from cema.wire.messages import ErrorBody, encode_json

MAX_HEAD_BYTES = 32 * 1024
"""Of a request's first line and headers together; a device's take 400 bytes, proxies add a few hundred."""
MIN_BYTES_PER_S = 500
"""Slowest transfer of a body, beyond the time that is given for silence; a fifth of what the slowest cellular links
carry."""
_PIECE_BYTES = 4 * 1024
"""A head is parsed in such pieces, so that its limit holds however much of it comes at once."""


class PatientProtocol(H11Protocol):
    """HTTP/1.1 with deadlines. receive_timeout_s: for a head, for the rest of a body after its answer, and for a client
    that takes no byte of an answer.

    max_connections: of one listener; those beyond are closed before they have said anything.
    """

    receive_timeout_s: ClassVar[float] = 30.0
    max_connections: ClassVar[int] = 1 << 30
    _deadline: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None

    @classmethod
    def within(cls, timeout_s: float, max_connections: int) -> type[Self]:
        """The protocol with that deadline and bound."""
        return type(cls.__name__, (cls,), {"receive_timeout_s": timeout_s, "max_connections": max_connections})

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            transport.abort()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._rest()
        self._read()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        step = _PIECE_BYTES if self.conn.their_state is h11.IDLE else len(data)
        for start in range(0, len(data), step):
            if self.transport.is_closing():
                return
            super().data_received(data[start : start + step])
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()
        self._await_reader()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        self._read()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        self._refuse(
            HTTPStatus.BAD_REQUEST,
            MessageError(
                "expected an HTTP/1.1 request, got something else",
                hint=f"check what sends it; first line and headers take at most {MAX_HEAD_BYTES} bytes",
            ),
        )

    def _watch(self) -> None:
        """A deadline while a head or the rest of an answered body is to come; idle connections have uvicorn's own."""
        if self.transport.is_closing() or not self._owes_bytes():
            self._rest()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self.receive_timeout_s, self._expire)

    def _owes_bytes(self) -> bool:
        if self.cycle is None:
            return True
        if not self.cycle.response_complete:
            return False  # its body has a deadline of its own: api/samples.py
        return self.conn.their_state is h11.SEND_BODY or bool(self.conn.trailing_data[0])

    def _rest(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _await_reader(self) -> None:
        """A deadline for what the system has not been able to send yet."""
        self._read()
        if unread := self.transport.get_write_buffer_size():
            patience_s = self.receive_timeout_s + unread / MIN_BYTES_PER_S
            self._reading = self.loop.call_later(patience_s, self._give_up)

    def _read(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _give_up(self) -> None:
        """Closing would wait for the reader."""
        self._reading = None
        if self.transport.get_write_buffer_size():
            self.transport.abort()

    def _expire(self) -> None:
        self._deadline = None
        if not self.conn.trailing_data[0]:
            self.transport.close()
            return
        self._refuse(
            HTTPStatus.REQUEST_TIMEOUT,
            BodyTimeoutError(
                f"expected the head of a request within {self.receive_timeout_s:g} s",
                hint="try again; server.receive_timeout_s is the limit",
            ),
        )

    def _refuse(self, status: HTTPStatus, error: CemaError) -> None:
        """Answer, if there was no answer yet, and close."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = encode_json(ErrorBody(code=error.code, message=error.message, hint=error.hint))
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ]
            response = h11.Response(status_code=status, headers=headers, reason=status.phrase.encode())
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
