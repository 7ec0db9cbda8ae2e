"""The proxy between an edge and the cloud: what it passes on, what it spoils, and what it remembers."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trustme
import urllib3

from chaos.evidence import Recorder
from chaos.link import Link

RECEIPT = {"accepted": 1, "duplicates": 0, "rejected": [], "latest_version": 0, "server_time_ms": 0}
UPLOAD = msgspec.msgpack.encode({"device_id": "edge-0", "samples": [{"sample_id": b"\x01" * 16}]})
PATH = "/v1/groups/digits/samples"
LIMIT_S = 10.0


class Cloud(BaseHTTPRequestHandler):
    """Takes everything; ``seen`` has what came, group by group."""

    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append((self.path, body))
        answer = json.dumps(RECEIPT).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


class Way:
    """A link with something at both ends. ``upload`` is what a device does."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.record = folder, Recorder(folder)
        self.cloud = ThreadingHTTPServer(("127.0.0.1", 0), type("Taking", (Cloud,), {"seen": []}))
        self.seen: list[tuple[str, bytes]] = self.cloud.RequestHandlerClass.seen  # type: ignore[attr-defined]
        self.loop = asyncio.new_event_loop()
        self.threads = [
            threading.Thread(target=self.cloud.serve_forever, kwargs={"poll_interval": 0.01}),
            threading.Thread(target=self.loop.run_forever),
        ]
        for thread in self.threads:
            thread.start()
        self.link = Link("edge-0", self.record, lambda: self.cloud.server_address[1], ["others"])
        authority, server = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(server)
        client = ssl.create_default_context()
        authority.configure_trust(client)
        asyncio.run_coroutine_threadsafe(self.link.start(server), self.loop).result(LIMIT_S)
        self.pool = urllib3.PoolManager(ssl_context=client, retries=False, timeout=LIMIT_S)

    def upload(self) -> int:
        address = f"https://127.0.0.1:{self.link.port}{PATH}"
        return int(self.pool.request("POST", address, body=UPLOAD).status)

    def upload_until_it_fails(self) -> None:
        """A doubled answer is only met by the request after it."""
        for _ in range(3):
            self.upload()

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (self.folder / "harness.jsonl").read_text().splitlines()]
        return [line for line in lines if line["event"] == name]

    def close(self) -> None:
        self.pool.clear()
        self.link.cut()
        self.cloud.shutdown()
        asyncio.run_coroutine_threadsafe(self.link.stop(), self.loop).result(LIMIT_S)
        self.loop.call_soon_threadsafe(self.loop.stop)
        for thread in self.threads:
            thread.join()
        self.loop.close()
        self.cloud.server_close()
        self.record.close()


@pytest.fixture
def way(tmp_path: Path) -> Iterator[Way]:
    made = Way(tmp_path)
    yield made
    made.close()


def test_what_passes_is_unchanged_and_on_record(way: Way) -> None:
    assert way.upload() == 200
    assert way.seen == [(PATH, UPLOAD)]
    (said,) = way.events("asked")
    assert (said["group"], said["device"], said["ids"], said["status"]) == ("digits", "edge-0", ["01" * 16], 200)
    assert (said["accepted"], said["refused"]) == (1, [])


def test_a_repeated_upload_reaches_the_cloud_twice_and_the_device_once(way: Way) -> None:
    way.link.repeat_next(elsewhere=False)
    assert way.upload() == 200
    assert way.seen == [(PATH, UPLOAD)] * 2
    assert len(way.events("asked")) == len(way.events("repeated")) == 1


def test_a_misrouted_upload_is_asked_for_under_another_group(way: Way) -> None:
    way.link.repeat_next(elsewhere=True)
    assert way.upload() == 200
    assert [path for path, _ in way.seen] == [PATH, "/v1/groups/others/samples"]
    assert way.events("misrouted")[0]["group"] == "others"


@pytest.mark.parametrize("spoil", [lambda link: link.corrupt_next(3), Link.double_next, Link.cut])
def test_spoilt_bytes_never_reach_the_cloud(way: Way, spoil: Callable[[Link], None]) -> None:
    assert way.upload() == 200  # the connection is open by then
    spoil(way.link)
    with pytest.raises((urllib3.exceptions.HTTPError, OSError)):
        way.upload_until_it_fails()
    assert set(way.seen) == {(PATH, UPLOAD)}
    way.link.mend()
    way.pool.clear()
    assert way.upload() == 200


def test_a_delay_holds_and_ends(way: Way) -> None:
    way.link.delay(0.01)
    assert way.upload() == 200
    way.link.mend()
    assert way.upload() == 200
