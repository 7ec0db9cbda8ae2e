"""The network between one edge and the cloud: a proxy in two parts.

    edge == TLS ==> wire (cuts, delays, doubles, corrupts bytes) == TLS ==> tap (reads along, keeps record) --> cloud

The wire does to encrypted bytes what networks do. The tap is a reverse proxy that speaks TLS, as many clouds have one
in front; it knows what the cloud has received and answered, and can ask again in a device's name.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from chaos.evidence import Recorder
from chaos.exchange import described

HOST = "127.0.0.1"
CHUNK_BYTES = 16 * 1024
MAX_HEAD_BYTES = 64 * 1024
CLOUD_LIMIT_S = 40.0
"""For an answer of the cloud: longer than any poll."""
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_REQUEST = re.compile(rb"^([A-Z]+) (\S+) ")
_BROKEN = (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError, ssl.SSLError)


class Link:
    """One edge's way. All coroutines belong to one event loop; the switches may be set from any thread.

    cloud_port: where the cloud listens, 0 while it does not. others: names of groups that this edge is not in.
    """

    def __init__(self, edge: str, record: Recorder, cloud_port: Callable[[], int], others: list[str]) -> None:
        self.edge, self._record, self._cloud_port, self._others = edge, record, cloud_port, others
        self.port = self._tap_port = 0
        self._open: set[asyncio.StreamWriter] = set()
        self._down, self._delay_s = False, 0.0
        self._corrupt: list[random.Random] = []
        self._double = 0
        self._repeat: list[str | None] = []
        self._servers: list[asyncio.Server] = []

    async def start(self, tls: ssl.SSLContext) -> None:
        self._loop = asyncio.get_running_loop()
        tap = await asyncio.start_server(self._guarded(self._tap), HOST, 0, ssl=tls, limit=MAX_HEAD_BYTES)
        wire = await asyncio.start_server(self._guarded(self._wire), HOST, 0)
        self._tap_port, self.port = tap.sockets[0].getsockname()[1], wire.sockets[0].getsockname()[1]
        self._servers = [tap, wire]

    async def stop(self) -> None:
        """Listen no more, and let go of what is under way."""
        for server in self._servers:
            server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # what can be done to it

    def cut(self) -> None:
        """End all connections in mid-byte; no new ones until ``mend``."""
        self._down = True
        for writer in list(self._open):
            self._loop.call_soon_threadsafe(writer.transport.abort)

    def mend(self) -> None:
        self._down, self._delay_s = False, 0.0

    def delay(self, seconds: float) -> None:
        """Every chunk waits so long, until ``mend``."""
        self._delay_s = seconds

    def corrupt_next(self, draw: int) -> None:
        """One bit of the next chunk, in whatever direction it comes."""
        self._corrupt.append(random.Random(draw))

    def double_next(self) -> None:
        """The next chunk comes twice."""
        self._double += 1

    def repeat_next(self, *, elsewhere: bool) -> None:
        """The next upload reaches the cloud twice; elsewhere: the second time under another group's address."""
        self._repeat.append(self._others[0] if elsewhere else None)

    # the wire

    async def _wire(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._down:
            writer.transport.abort()
            return
        there, back = await asyncio.open_connection(HOST, self._tap_port)
        with self._known(writer), self._known(back):
            await asyncio.gather(self._carry(reader, back), self._carry(there, writer))

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while chunk := await reader.read(CHUNK_BYTES):
                if self._delay_s:
                    await asyncio.sleep(self._delay_s)
                writer.write(self._spoilt(chunk))
                await writer.drain()
        finally:
            writer.transport.abort() if self._down else writer.close()

    def _spoilt(self, chunk: bytes) -> bytes:
        if self._corrupt:
            rng, changed = self._corrupt.pop(), bytearray(chunk)
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
            self._record("corrupted", name=self.edge, size=len(chunk))
            chunk = bytes(changed)
        if self._double:
            self._double -= 1
            self._record("doubled", name=self.edge, size=len(chunk))
            return chunk * 2
        return chunk

    @contextmanager
    def _known(self, writer: asyncio.StreamWriter) -> Iterator[None]:
        self._open.add(writer)
        try:
            yield
        finally:
            self._open.discard(writer)

    # the tap

    async def _tap(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(HOST, self._cloud_port(), limit=MAX_HEAD_BYTES)
        try:
            while True:
                request = await _message(reader)
                answer = await self._asked(request, there, back, "asked")
                if self._repeat and b"/samples " in request[0][:200]:
                    await self._ask_again(request, self._repeat.pop())
                writer.write(b"".join(answer))
                await writer.drain()
        finally:
            back.close()

    async def _asked(
        self, request: tuple[bytes, bytes], there: asyncio.StreamReader, back: asyncio.StreamWriter, event: str
    ) -> tuple[bytes, bytes]:
        back.write(b"".join(request))
        await back.drain()
        answer = await asyncio.wait_for(_message(there), CLOUD_LIMIT_S)
        self._record(event, name=self.edge, **described(request, answer))
        return answer

    async def _ask_again(self, request: tuple[bytes, bytes], group: str | None) -> None:
        head, body = request
        if group is not None:
            head = re.sub(rb"/v1/groups/[^/]+/", f"/v1/groups/{group}/".encode(), head, count=1)
        there, back = await asyncio.open_connection(HOST, self._cloud_port(), limit=MAX_HEAD_BYTES)
        try:
            await self._asked((head, body), there, back, "repeated" if group is None else "misrouted")
        finally:
            back.close()

    def _guarded(
        self, serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
    ) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
        async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await serve(reader, writer)
            except _BROKEN:
                pass  # a connection that ends is what this is for
            finally:
                with contextlib.suppress(*_BROKEN):
                    writer.close()

        return guarded


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Head and body of a request or an answer with Content-Length, or without body."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = _LENGTH.search(head)
    return head, await reader.readexactly(int(length[1])) if length else b""
