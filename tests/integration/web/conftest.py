"""The web process for tests: a real server in a thread on a free port, a real database, urllib3 as the device."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import urllib3
from prometheus_client.parser import text_string_to_metric_families

from cema.cloud.app import AdminServer, WebServer, create_admin_app, create_app, listen, listen_admin, url_of
from cema.cloud.keys import signing_key
from cema.cloud.store import open_store
from cema.cloud.store.base import BlobStore, NewUpdate, StepCommit, Store
from cema.config import AdminConfig, DeviceConfig, RuntimeConfig, ServeConfig, ServerConfig, UplinkConfig
from cema.edge import EdgeAgent
from cema.edge.session import EdgeSession
from cema.types import NormParameters
from cema.wire import signing
from cema.wire.bundle import Bundle, encode_bundle
from cema.wire.image import encode_image
from cema.wire.messages import MSGPACK_TYPE, Sample, SampleBatch, UpdateManifest, encode_msgpack
from cema.wire.tokens import token_digest
from cema.wire.update import Update, encode_update, open_update

PICTURE = encode_image(np.zeros((4, 4, 3), np.uint8), "png")
REFUSED = pytest.StashKey[dict[str, int]]()
"""Requests that were refused as stated, by test: the end of a run shows their number."""


@dataclass
class Service:
    config: ServeConfig
    store: Store
    blobs: BlobStore
    server: WebServer
    url: str
    admin_url: str
    clock_ms: list[int]
    http: urllib3.PoolManager = field(default_factory=lambda: urllib3.PoolManager(maxsize=32, retries=False))

    def call(
        self, path: str, method: str = "GET", *, token: str | None = "secret-of-cam", body: Any = None, **headers: str
    ) -> urllib3.BaseHTTPResponse:
        return self._ask(self.url, path, method, token, body, headers)

    def administer(
        self, path: str, method: str = "GET", *, token: str | None = "secret-of-ann", body: Any = None, **headers: str
    ) -> urllib3.BaseHTTPResponse:
        return self._ask(self.admin_url, path, method, token, body, headers)

    def _ask(
        self, url: str, path: str, method: str, token: str | None, body: Any, headers: dict[str, str]
    ) -> urllib3.BaseHTTPResponse:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        return self.http.request(method, url + path, headers=sent, body=body, timeout=30)

    def upload(self, batch: SampleBatch, **options: Any) -> urllib3.BaseHTTPResponse:
        body = encode_msgpack(batch)
        return self.call("/v1/groups/g/samples", "POST", body=body, Content_Type=MSGPACK_TYPE, **options)

    def publish(self, content: bytes) -> int:
        """As a worker does, once it holds the lease."""
        row = self.store.group("g")
        version = row.latest_version + 1
        boot_id = version.to_bytes(16, "big")
        self.store.add_samples("g", self.batch(seen=64, fingerprint=row.fingerprint, boot_id=boot_id), 0)
        assert self.store.claim("w", 0, lease_ms=10**9, tick_images=64, publish_interval_ms=0) is not None
        signature = signing.sign(content, signing_key(self.config))
        update = NewUpdate(version, self.blobs.put(content), signature, len(content), "bn")
        self.store.commit_step(StepCommit("g", "w", row.lineage, row.ticks_done + 1, 0, update=update), 5)
        self.store.release("g", "w")
        return version

    def metrics(self) -> dict[str, float]:
        """Values by ``name,label=value,...``."""
        text = self.administer("/metrics", token="secret-of-ron").data.decode()
        return {
            ",".join((s.name, *(f"{k}={v}" for k, v in sorted(s.labels.items())))): s.value
            for family in text_string_to_metric_families(text)
            for s in family.samples
        }

    @staticmethod
    def sample(number: int, **changes: Any) -> Sample:
        made = Sample(
            sample_id=number.to_bytes(16, "big"), seq=number, codec="png", image=PICTURE, label=0, probability=0.5,
            entropy=1.0, update_version=0, captured_at_ms=0,
        )  # fmt: skip
        return msgspec.structs.replace(made, **changes)

    @staticmethod
    def batch(*samples: Sample, seen: int = 0, **changes: Any) -> SampleBatch:
        boot_id = b"b" * 16
        made = SampleBatch(device_id="cam", boot_id=boot_id, fingerprint="f1", samples_seen=seen, samples=list(samples))
        return msgspec.structs.replace(made, **changes)

    @staticmethod
    def error_of(response: urllib3.BaseHTTPResponse) -> tuple[int, str]:
        """Status and code, after a check of the one shape."""
        body = response.json()
        assert list(body) == ["code", "message", "hint"], body
        assert response.headers["content-type"] == "application/json"
        assert body["message"]
        return response.status, body["code"]


@contextmanager
def running(server: WebServer, listener: socket.socket, ready: threading.Event) -> Iterator[None]:
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        assert ready.wait(30)
        yield
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture
def server_settings() -> dict[str, Any]:
    """Of the server's configuration; tests override it."""
    return {}


@pytest.fixture
def admin_settings() -> dict[str, Any]:
    """As ``server_settings``, for the listener of operators and readers."""
    return {}


@pytest.fixture
def service(tmp_path: Path, server_settings: dict[str, Any], admin_settings: dict[str, Any]) -> Iterator[Service]:
    """Groups g and other, device cam of g, operator ann, reader ron."""
    settings = ServerConfig(
        port=0, data_dir=str(tmp_path), max_body_bytes=100_000, max_batch_samples=4, poll_interval_s=0.01
    )
    server = msgspec.structs.replace(settings, **server_settings)
    config = ServeConfig(server=server, admin=AdminConfig(**admin_settings))
    store, blobs = open_store(config)
    store.put_group("g", "f1", blobs.put(b"bundle bytes " * 100_000), "on", 1)
    store.put_group("other", "f1", blobs.put(b"bundle bytes " * 100_000), "on", 1)
    store.enrol("cam", "g", token_digest("secret-of-cam"), 1)
    store.add_user("ann", "operator", token_digest("secret-of-ann"), 1)
    store.add_user("ron", "reader", token_digest("secret-of-ron"), 1)
    with served(config, store, blobs) as made:
        yield made
    store.close()


@contextmanager
def served(config: ServeConfig, store: Store, blobs: BlobStore) -> Iterator[Service]:
    ready, clock_ms = threading.Event(), [1234]
    app, listener = create_app(config, store, blobs, clock_ms=lambda: clock_ms[0]), listen(config.server)
    admin_listener = listen_admin(config, listener)
    admin = AdminServer(create_admin_app(app), config.server, admin_listener)
    server = WebServer(app, config.server, admin=admin, on_ready=ready.set)
    admin_url = url_of(config.server, admin_listener, config.admin.host)
    made = Service(config, store, blobs, server, url_of(config.server, listener), admin_url, clock_ms)
    with running(server, listener, ready):
        yield made
    made.http.clear()


ROLLBACK = "/v1/admin/groups/g/rollback?to={}"
IMAGES = list(np.random.default_rng(5).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8))
QUICK = UplinkConfig(max_latency_s=0.05, heartbeat_s=0.2, backoff_min_s=0.01, backoff_max_s=0.05, poll_wait_s=0.5)


class Fleet:
    """Group g with a bundle that runs, three signed versions, and real devices."""

    images, digest = IMAGES, staticmethod(token_digest)

    def __init__(self, service: Any, bundle: Bundle, folder: Path) -> None:
        self.service, self.bundle, self.folder = service, bundle, folder
        self.agents: list[EdgeAgent] = []
        service.store.put_group("g", bundle.manifest.fingerprint, service.blobs.put(encode_bundle(bundle)), "on", 1)
        self.sent = {version: self.publish(version) for version in (1, 2, 3)}

    def parameters(self, version: int) -> NormParameters:
        return {n: v * np.float32(1 + version / 10) for n, v in self.bundle.source_parameters().items()}

    def publish(self, version: int) -> bytes:
        manifest = UpdateManifest(
            group="g", version=version, fingerprint=self.bundle.manifest.fingerprint, method="m", created_at_ms=1,
            encoding="float16", domain=7 if version == 1 else msgspec.UNSET,
        )  # fmt: skip
        data = encode_update(manifest, self.parameters(version))
        assert self.service.publish(data) == version
        return data

    def back(self, to: object, **who: Any) -> Any:
        return self.service.administer(ROLLBACK.format(to), "POST", **who)

    @property
    def key(self) -> str:
        return signing.public_key(signing_key(self.service.config))

    @staticmethod
    def eventually(condition: Callable[[], object]) -> None:
        """Within twenty seconds."""
        pause = threading.Event()
        for _ in range(2000):
            if condition():
                return
            pause.wait(0.01)
        raise AssertionError("did not happen")

    def fetched(self, version: int) -> Update:
        answer = self.service.call(f"/v1/groups/g/updates/{version}")
        return open_update(answer.data, self.bundle.manifest, signature=answer.headers["cema-signature"], key=self.key)

    def configured(self, **changes: Any) -> DeviceConfig:
        config = DeviceConfig(
            url=self.service.url, group="g", device_id="cam", token="secret-of-cam", public_key=self.key,
            state_dir=str(self.folder / "state"), uplink=QUICK, runtime=RuntimeConfig(threads=1),
        )  # fmt: skip
        return msgspec.structs.replace(config, **changes)

    def device(self, **changes: Any) -> EdgeAgent:
        """The device cam, always with the same state folder."""
        agent = EdgeAgent(self.configured(**changes))
        self.agents.append(agent)
        return agent

    def said_with(self, parameters: NormParameters) -> list[float]:
        """The probabilities that a device with these parameters gives to ``images``."""
        return EdgeSession(self.bundle, parameters, 0, threads=1).predict(np.stack(IMAGES)).confidence_B.tolist()


@pytest.fixture
def fleet(service: Any, tiny_bundle: Bundle, tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(service, tiny_bundle, tmp_path)
    yield made
    for agent in made.agents:
        agent.close()


@pytest.fixture
def cast(service: Service) -> Service:
    """The service with everybody who may ask it anything, and a version of group g to fetch."""
    store = service.store
    devices = {"g": ("mate", "victim", "gone"), "other": ("spy", "victim-of-other", "gone-spy")}
    for name, group in ((name, group) for group, names in devices.items() for name in names):
        store.enrol(name, group, token_digest(f"secret-of-{name}"), 1)
    store.enrol("swap", "g", token_digest("first-secret-of-swap"), 1)
    store.propose_key(token_digest("first-secret-of-swap"), token_digest("secret-of-swap"))
    assert store.device_by_token(token_digest("secret-of-swap")) is not None  # in use: the first one is worthless
    for name, group, expiry_ms in (("new", "g", 1235), ("new-spy", "other", 1235), ("late", "g", 1234)):
        store.enrol(name, group, token_digest(f"once-for-{name}"), 1, token_expires_ms=expiry_ms)
    store.add_user("max", "operator", token_digest("secret-of-max"), 1)
    store.add_user("rea", "reader", token_digest("secret-of-rea"), 1)
    for name in ("gone", "gone-spy"):
        store.revoke(name, 2)
    for name in ("max", "rea"):
        store.revoke_user(name, 2)
    service.publish(b"bytes of version 1")
    return service


@pytest.fixture
def count_refused(request: pytest.FixtureRequest) -> Callable[[int], None]:
    """Report so many refused requests at the end of the run."""
    counts = request.config.stash.setdefault(REFUSED, {})

    def count(number: int) -> None:
        counts[request.node.nodeid] = number

    return count


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if counts := config.stash.get(REFUSED, {}):
        terminalreporter.write_line(f"authorisation matrix: {sum(counts.values())} requests refused, each as stated")
