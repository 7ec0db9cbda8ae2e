"""A cloud that does what a test tells it to, a real HTTP server on a free port, and a device that hears it."""

from __future__ import annotations

import re
import ssl
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import numpy as np
import pytest

from cema.bench.pairs import load_pair, pair_names
from cema.bench.simulate import Pair
from cema.cloud.models import digits
from cema.config import DeviceConfig, OutboxConfig, RuntimeConfig, SelectionConfig, UplinkConfig
from cema.edge import EdgeAgent
from cema.types import NormParameters, Uint8Array
from cema.wire import signing
from cema.wire.bundle import Bundle, decode_bundle, encode_bundle
from cema.wire.messages import (
    BASE_HEADER,
    SIGNATURE_HEADER,
    STATEMENT_HEADER,
    ErrorBody,
    GroupStatus,
    SampleBatch,
    UpdateManifest,
    UploadReceipt,
)
from cema.wire.update import encode_update

KEY = signing.generate_key()
IMAGES = list(np.random.default_rng(5).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8))
QUICK = UplinkConfig(max_latency_s=0.05, heartbeat_s=0.2, backoff_min_s=0.01, backoff_max_s=0.05, poll_wait_s=5.0)
Answer = tuple[int, dict[str, str], bytes]


@pytest.fixture(scope="session")
def clean() -> Uint8Array:
    """The digits of the stream."""
    return digits.digit_images()[0][digits.split().stream]


@pytest.fixture(scope="session")
def pale(clean: Uint8Array) -> Uint8Array:
    """Next to no contrast: far from what the model was trained on."""
    return (clean * 0.2 + 100).astype(np.uint8)


@pytest.fixture(scope="session")
def pair() -> Pair:
    """The digits' models, as the benchmark runs them."""
    return load_pair(pair_names("digits", None), [str(digit) for digit in range(10)])


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients may hang up


class ScriptedCloud:
    """One group. Tests set the fields; ``changed`` guards them and is notified of every request and upload."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.fingerprint = ""
        self.adaptation = "on"
        self.bundle, self.statement = (b"", ""), ""
        self.update: tuple[int, bytes, str] | None = None
        self.difference: Callable[[int], tuple[bytes, int]] | None = None  # have -> (difference, its base)
        self.batches: list[SampleBatch] = []
        self.paths: list[str] = []
        self.inflates = False  # whether it takes deflated uploads, and says so, as clouds of today do
        self.codings: list[str | None] = []  # Content-Encoding of each upload, refused ones, too
        self.script: deque[Answer] = deque()  # answers to the next uploads, before anything else is looked at
        self.judge: Callable[[SampleBatch], Answer | None] = lambda batch: None
        self.released = threading.Event()
        self.released.set()  # cleared: every request hangs
        self.closing = False
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def samples(self) -> list[Any]:
        return [sample for batch in self.batches for sample in batch.samples]

    def use_tls(self, context: ssl.SSLContext) -> None:
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)

    def wait_for(self, condition: Callable[[], object], timeout_s: float = 20.0) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, timeout_s), "the cloud waited in vain"

    def publish(self, version: int, data: bytes, signature: str) -> None:
        with self.changed:
            self.update = (version, data, signature)
            self.changed.notify_all()

    def answer_get(self, path: str) -> Answer:
        url = urlsplit(path)  # a proxy is asked with the whole address
        if url.path == "/v1/groups/g":
            version = self.update[0] if self.update else 0
            return 200, {}, encode(GroupStatus(
                group="g", fingerprint=self.fingerprint, latest_version=version, adaptation=self.adaptation,
                server_time_ms=1_000_000,
            ))  # fmt: skip
        if url.path == "/v1/groups/g/bundle":
            return 200, {SIGNATURE_HEADER: self.bundle[1], STATEMENT_HEADER: self.statement}, self.bundle[0]
        if url.path == "/v1/groups/g/updates/latest":
            return self._latest({key: values[0] for key, values in parse_qs(url.query).items()})
        return error(404, "not_found")

    def answer_post(self, body: bytes, coding: str | None) -> Answer:
        with self.changed:
            self.codings.append(coding)
            if self.script:
                return self.script.popleft()
            if coding is not None and not self.inflates:
                return error(400, "message_invalid")  # an old cloud, which does not look at the header
            batch = msgspec.msgpack.decode(body if coding is None else zlib.decompress(body), type=SampleBatch)
            verdict = self.judge(batch)
            if verdict is None:
                self.batches.append(batch)
                self.changed.notify_all()
        return verdict or (200, {"Accept-Encoding": "gzip;q=0, Deflate"} if self.inflates else {}, encode(UploadReceipt(
            accepted=len(batch.samples), duplicates=0, rejected=[], latest_version=0, server_time_ms=1_000_000,
        )))  # fmt: skip

    def _latest(self, query: dict[str, str]) -> Answer:
        if query["base"] != self.fingerprint:
            return error(409, "base_mismatch")

        def newer() -> bool:
            return self.closing or (self.update is not None and self.update[0] > int(query["after"]))

        with self.changed:
            self.changed.wait_for(newer, float(query["wait"]))
            if self.update is None or self.update[0] <= int(query["after"]):
                return 204, {}, b""
            if self.difference is not None and "from" in query:
                body, base = self.difference(int(query["from"]))
                return 200, {SIGNATURE_HEADER: self.update[2], BASE_HEADER: str(base)}, body
            return 200, {SIGNATURE_HEADER: self.update[2]}, self.update[1]

    def close(self) -> None:
        self.released.set()
        with self.changed:
            self.closing = True
            self.changed.notify_all()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def encode(message: object) -> bytes:
    return msgspec.json.encode(message)


def error(status: int, code: str, headers: dict[str, str] | None = None) -> Answer:
    return status, headers or {}, encode(ErrorBody(code=code, message=f"refused: {code}"))


def _handler(cloud: ScriptedCloud) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(lambda: cloud.answer_get(self.path))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(lambda: cloud.answer_post(body, self.headers["Content-Encoding"]))

        def _answer(self, make: Callable[[], Answer]) -> None:
            with cloud.changed:
                cloud.paths.append(re.sub(r"\?.*", "", f"{self.command} {self.path}"))
                cloud.changed.notify_all()
            cloud.released.wait()
            allowed = self.headers["Authorization"] == "Bearer secret"
            status, headers, content = make() if allowed else error(401, "unauthenticated")
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if status != 204:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


@pytest.fixture
def scripted_cloud() -> Iterator[ScriptedCloud]:
    cloud = ScriptedCloud()
    yield cloud
    cloud.close()


@pytest.fixture
def refuse() -> Callable[..., Answer]:
    """Make a refusal: refuse(status, code, headers)."""
    return error


class Device:
    """Makes agents that share one state folder, and updates that are signed for them."""

    key, images = KEY, IMAGES

    def __init__(self, cloud: ScriptedCloud, bundle: Bundle, state: Path) -> None:
        self.cloud, self.bundle = cloud, bundle
        self.config = DeviceConfig(
            url=cloud.url, group="g", device_id="d", token="secret", public_key=signing.public_key(KEY),
            state_dir=str(state), selection=SelectionConfig(enabled=False), uplink=QUICK,
            outbox=OutboxConfig(commit_interval_s=0.0), runtime=RuntimeConfig(threads=1),
        )  # fmt: skip
        self.agents: list[EdgeAgent] = []
        self.offer_bundle(bundle)

    def offer_bundle(self, bundle: Bundle) -> None:
        data = encode_bundle(bundle)
        self.cloud.fingerprint, self.cloud.bundle = bundle.manifest.fingerprint, (data, signing.sign(data, KEY))

    def start(self, bundle: Bundle | None = None, **changes: Any) -> EdgeAgent:
        agent = EdgeAgent(msgspec.structs.replace(self.config, **changes), bundle=bundle)
        self.agents.append(agent)
        return agent

    def parameters(self, version: int) -> NormParameters:
        return {name: value + np.float32(version) for name, value in self.bundle.source_parameters().items()}

    def publish(self, version: int, *, key: str = KEY, group: str = "g", rollback_of: int | None = None,
                parameters: NormParameters | None = None, encoding: str = "float32") -> None:  # fmt: skip
        manifest = UpdateManifest(
            group=group, version=version, fingerprint=self.cloud.fingerprint, method="test", created_at_ms=1,
            rollback_of=rollback_of, encoding=encoding,
        )  # fmt: skip
        data = encode_update(manifest, parameters or self.parameters(version))
        self.cloud.publish(version, data, signing.sign(data, key))

    @staticmethod
    def version_of(agent: EdgeAgent) -> int:
        return agent.predict(IMAGES[:1])[0].version

    @staticmethod
    def eventually(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
        """Wait for something that other threads do and that has no event of its own."""
        done = threading.Event()
        for _ in range(int(timeout_s / 0.01)):
            if condition():
                return
            done.wait(0.01)
        raise AssertionError("did not happen")

    def settle(self, agent: EdgeAgent) -> None:
        """Wait until all that was predicted is in the statistics, as far as it will be."""
        self.eventually(lambda: _at_rest(agent))


def _at_rest(agent: EdgeAgent) -> bool:
    follower = agent._follower
    if follower._waiting or follower._due or not follower._owner.acquire(blocking=False):
        return False
    follower._owner.release()
    return True


@pytest.fixture
def device(scripted_cloud: ScriptedCloud, tiny_bundle: Bundle, tmp_path: Path) -> Iterator[Device]:
    made = Device(scripted_cloud, tiny_bundle, tmp_path / "state")
    yield made
    for agent in made.agents:
        agent.close()


@pytest.fixture
def own(device: Any, digits_bundle: bytes) -> Any:
    """A device whose group has a bundle that can measure."""
    device.bundle = decode_bundle(digits_bundle)
    device.offer_bundle(device.bundle)
    return device
