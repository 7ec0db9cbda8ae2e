"""The web process over real HTTP: a real server in a thread on a free port, a real database, urllib3 as the device."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import urllib3
from prometheus_client.parser import text_string_to_metric_families

from cema.cloud.app import WebServer, create_app, listen, url_of
from cema.cloud.keys import signing_key
from cema.cloud.store import open_store
from cema.cloud.store.base import BlobStore, NewUpdate, StepCommit, Store
from cema.config import ServeConfig, ServerConfig
from cema.wire import signing
from cema.wire.image import encode_image
from cema.wire.messages import MSGPACK_TYPE, Sample, SampleBatch, encode_msgpack

MAX_BODY_BYTES = 100_000
TOKEN = "secret-of-cam"
BUNDLE = b"bundle bytes " * 100_000
PICTURE = encode_image(np.zeros((4, 4, 3), np.uint8), "png")


@dataclass
class Service:
    config: ServeConfig
    store: Store
    blobs: BlobStore
    server: WebServer
    url: str
    http: urllib3.PoolManager = field(default_factory=lambda: urllib3.PoolManager(maxsize=32, retries=False))

    def call(
        self, path: str, method: str = "GET", *, token: str | None = TOKEN, body: Any = None, **headers: str
    ) -> urllib3.BaseHTTPResponse:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        return self.http.request(method, self.url + path, headers=sent, body=body, timeout=30)

    def upload(self, batch: SampleBatch, **options: Any) -> urllib3.BaseHTTPResponse:
        body = encode_msgpack(batch)
        return self.call("/v1/groups/g/samples", "POST", body=body, Content_Type=MSGPACK_TYPE, **options)

    def publish(self, content: bytes) -> int:
        """As a worker does, once it holds the lease."""
        row = self.store.group("g")
        version = row.latest_version + 1
        boot_id = version.to_bytes(16, "big")
        self.store.add_samples("g", batch(seen=64, fingerprint=row.fingerprint, boot_id=boot_id), 0)
        assert self.store.claim("w", 0, lease_ms=10**9, tick_images=64, publish_interval_ms=0) is not None
        signature = signing.sign(content, signing_key(self.config))
        update = NewUpdate(version, self.blobs.put(content), signature, len(content), "bn")
        self.store.commit_step(StepCommit("g", "w", row.lineage, row.ticks_done + 1, 0, update=update), 5)
        self.store.release("g", "w")
        return version


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
def service(tmp_path: Path) -> Iterator[Service]:
    settings = ServerConfig(
        port=0, data_dir=str(tmp_path), max_body_bytes=MAX_BODY_BYTES, max_batch_samples=4, poll_interval_s=0.01
    )
    config = ServeConfig(server=settings)
    store, blobs = open_store(config)
    store.put_group("g", "f1", blobs.put(BUNDLE), "on", 1)
    store.put_group("other", "f1", blobs.put(BUNDLE), "on", 1)
    store.enrol("cam", "g", hashlib.sha256(TOKEN.encode()).hexdigest(), 1)
    ready = threading.Event()
    server = WebServer(create_app(config, store, blobs, clock_ms=lambda: 1234), settings, on_ready=ready.set)
    listener = listen(settings)
    made = Service(config, store, blobs, server, url_of(settings, listener))
    with running(server, listener, ready):
        yield made
    made.http.clear()
    store.close()


def sample(number: int, **changes: Any) -> Sample:
    made = Sample(
        sample_id=number.to_bytes(16, "big"), seq=number, codec="png", image=PICTURE, label=0, probability=0.5,
        entropy=1.0, update_version=0, captured_at_ms=0,
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


def batch(*samples: Sample, seen: int = 0, **changes: Any) -> SampleBatch:
    made = SampleBatch(
        device_id="cam", boot_id=b"b" * 16, fingerprint="f1", samples_seen=seen, samples=list(samples)
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


def error_of(response: urllib3.BaseHTTPResponse) -> tuple[int, str]:
    """Status and code, after a check of the one shape."""
    body = response.json()
    assert list(body) == ["code", "message", "hint"], body
    assert response.headers["content-type"] == "application/json"
    assert body["message"]
    return response.status, body["code"]


# who may do what


@pytest.mark.parametrize("path", ["", "/bundle", "/updates", "/updates/1", "/updates/latest"])
def test_only_the_groups_own_devices_are_answered(service: Service, path: str) -> None:
    assert error_of(service.call(f"/v1/groups/g{path}", token=None)) == (401, "unauthenticated")
    assert error_of(service.call(f"/v1/groups/g{path}", token="guess")) == (401, "unauthenticated")
    assert error_of(service.call(f"/v1/groups/g{path}", token=None, Authorization="Basic x")) == (
        401,
        "unauthenticated",
    )
    assert error_of(service.call(f"/v1/groups/other{path}")) == (403, "forbidden")
    assert error_of(service.call(f"/v1/groups/unknown{path}")) == (403, "forbidden")
    assert service.call(f"/v1/groups/g{path}").status in (200, 204, 404)


def test_a_revoked_token_is_refused_at_once(service: Service) -> None:
    service.store.revoke("cam", 2)
    assert error_of(service.call("/v1/groups/g")) == (401, "unauthenticated")
    assert error_of(service.upload(batch(sample(1)))) == (401, "unauthenticated")


def test_a_device_cannot_upload_for_another(service: Service) -> None:
    assert error_of(service.upload(batch(sample(1), device_id="cam2"))) == (403, "forbidden")
    assert service.store.group("g").pending == 0


# what a device reads


def test_group_status_has_all_that_a_device_needs_to_start(service: Service) -> None:
    expected = {"group": "g", "fingerprint": "f1", "latest_version": 0, "adaptation": "on", "server_time_ms": 1234,
        "samples_seen": 70, "ticks_done": 0}  # fmt: skip
    service.upload(batch(seen=70))
    assert service.call("/v1/groups/g").json() == expected


def test_the_bundle_is_signed_and_only_sent_once(service: Service) -> None:
    response = service.call("/v1/groups/g/bundle")
    assert response.data == BUNDLE
    assert (response.headers["etag"], response.headers["cema-bundle-fingerprint"]) == ('"f1"', "f1")
    signing.verify(response.data, response.headers["cema-signature"], signing.public_key(signing_key(service.config)))
    again = service.call("/v1/groups/g/bundle", If_None_Match='"f1"')
    assert (again.status, again.data) == (304, b"")
    service.store.put_group("g", "f2", service.blobs.put(b"new"), "on", 2)
    assert service.call("/v1/groups/g/bundle", If_None_Match='"f1"').data == b"new"


def test_a_version_is_immutable_and_cacheable(service: Service) -> None:
    service.publish(b"content 1")
    response = service.call("/v1/groups/g/updates/1")
    etag = f'"{hashlib.sha256(b"content 1").hexdigest()}"'
    assert response.data == b"content 1"
    assert response.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert (response.headers["etag"], response.headers["cema-update-version"]) == (etag, "1")
    signing.verify(response.data, response.headers["cema-signature"], signing.public_key(signing_key(service.config)))
    assert service.call("/v1/groups/g/updates/1", If_None_Match=etag).status == 304
    assert error_of(service.call("/v1/groups/g/updates/2")) == (404, "not_found")


def test_versions_are_listed_newest_first(service: Service) -> None:
    service.publish(b"content 1")
    service.publish(b"content 2")
    listed = service.call("/v1/groups/g/updates").json()["updates"]
    assert [(u["version"], u["size_bytes"], u["method"]) for u in listed] == [(2, 9, "bn"), (1, 9, "bn")]
    assert [u["version"] for u in service.call("/v1/groups/g/updates?limit=1").json()["updates"]] == [2]


# the long poll


def test_the_latest_update_is_answered_at_once(service: Service) -> None:
    service.publish(b"content 1")
    service.publish(b"content 2")
    response = service.call("/v1/groups/g/updates/latest?after=1&wait=30&base=f1")
    assert (response.status, response.data, response.headers["cema-update-version"]) == (200, b"content 2", "2")
    assert response.headers["cache-control"] == "no-store"
    assert service.call("/v1/groups/g/updates/latest?after=2&base=f1").status == 204


def test_waiting_polls_wake_when_a_version_is_published(service: Service) -> None:
    with ThreadPoolExecutor(20) as pool:
        polls = [pool.submit(service.call, "/v1/groups/g/updates/latest?after=0&wait=30&base=f1") for _ in range(20)]
        wait_for_polls(service, 20)
        service.publish(b"content 1")
        answers = [poll.result(30) for poll in polls]
    assert {(answer.status, answer.data) for answer in answers} == {(200, b"content 1")}


def test_a_poll_without_news_is_answered_after_its_time(service: Service) -> None:
    assert service.call("/v1/groups/g/updates/latest?after=0&wait=0.05&base=f1").status == 204


def test_another_bundle_is_a_conflict(service: Service) -> None:
    assert error_of(service.call("/v1/groups/g/updates/latest?base=f0")) == (409, "base_mismatch")


def test_versions_of_an_earlier_bundle_are_not_sent_to_the_new_one(service: Service) -> None:
    service.publish(b"for f1")
    service.store.put_group("g", "f2", service.blobs.put(b"new"), "on", 2)
    assert service.call("/v1/groups/g/updates/latest?after=0&wait=0.05&base=f2").status == 204
    service.publish(b"for f2")
    assert service.call("/v1/groups/g/updates/latest?after=0&wait=5&base=f2").data == b"for f2"


def test_stopping_answers_waiting_polls_at_once(service: Service) -> None:
    with ThreadPoolExecutor(1) as pool:
        poll = pool.submit(service.call, "/v1/groups/g/updates/latest?after=0&wait=50")
        wait_for_polls(service, 1)
        service.server.should_exit = True
        assert poll.result(10).status == 204


def wait_for_polls(service: Service, count: int) -> None:
    for _ in range(10_000):
        if metrics(service)["cema_polls_waiting"] == count:
            return
    raise AssertionError(f"{count} polls never waited")


# uploads


def test_an_upload_is_stored_once_however_often_it_is_sent(service: Service) -> None:
    first = service.upload(batch(sample(1), sample(2), seen=70)).json()
    expected = {"accepted": 2, "duplicates": 0, "rejected": [], "latest_version": 0, "server_time_ms": 1234}
    assert first == expected
    assert service.upload(batch(sample(1), sample(2), seen=70)).json() == {**expected, "accepted": 0, "duplicates": 2}
    row = service.store.group("g")
    assert (row.pending, row.samples_seen) == (2, 70)
    assert [s.image for s in service.store.pending("g", 9)] == [PICTURE, PICTURE]


def test_what_is_no_image_is_refused_and_the_rest_is_kept(service: Service) -> None:
    huge = (99_999).to_bytes(4, "little") * 2
    bad = [
        sample(1, image=b"no picture"),
        sample(2, codec="jpeg"),
        sample(3, codec="raw", image=huge),
    ]
    receipt = service.upload(batch(*bad, sample(4))).json()
    assert receipt["accepted"] == 1
    codes = {int(r["sample_id"], 16): r["code"] for r in receipt["rejected"]}
    assert codes == {1: "image_invalid", 2: "image_invalid", 3: "too_large"}
    receipt = service.upload(batch(sample(5, codec="tiff"), sample(6, sample_id=b"short"))).json()
    assert [r["code"] for r in receipt["rejected"]] == ["image_invalid", "message_invalid"]


def test_samples_of_an_old_bundle_are_refused_one_by_one(service: Service) -> None:
    receipt = service.upload(batch(sample(1), sample(2), fingerprint="f0")).json()
    assert [r["code"] for r in receipt["rejected"]] == ["base_mismatch", "base_mismatch"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"boot_id": b"short"}, (400, "message_invalid")),
        ({"protocol": 2}, (400, "message_invalid")),
        ({"samples_seen": -1}, (400, "message_invalid")),
        ({"samples_seen": 1 << 60}, (400, "message_invalid")),
        ({"dropped": {"x" * 65: 1}}, (400, "message_invalid")),
        ({"dropped": {str(i): 1 for i in range(33)}}, (400, "message_invalid")),
        ({"samples": [sample(i) for i in range(5)]}, (413, "too_large")),
    ],
    ids=str,
)
def test_a_batch_that_breaks_the_protocol_is_refused_whole(
    service: Service, changes: dict[str, Any], expected: tuple[int, str]
) -> None:
    assert error_of(service.upload(batch(**{"samples": [sample(1)], **changes}))) == expected
    assert service.store.group("g").pending == 0


def test_a_body_that_is_no_msgpack_is_refused(service: Service) -> None:
    path = "/v1/groups/g/samples"
    assert error_of(service.call(path, "POST", body=b"{}", Content_Type=MSGPACK_TYPE)) == (400, "message_invalid")
    assert error_of(service.call(path, "POST", body=b"{}", Content_Type="text/json")) == (400, "message_invalid")


def raw_upload(service: Service, headers: str, body: Iterator[bytes]) -> tuple[bytes, int]:
    """Answer to a hand-written request, and how many bytes of the body had to be sent for it."""
    host, port = service.url.removeprefix("http://").split(":")
    head = f"POST /v1/groups/g/samples HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
    sent = 0
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(f"{head}Content-Type: {MSGPACK_TYPE}\r\n{headers}\r\n\r\n".encode())
        connection.setblocking(False)
        for part in body:
            try:
                connection.setblocking(True)
                connection.sendall(part)
                sent += len(part)
            except OSError:
                break
        connection.settimeout(30)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    return answer, sent


def test_an_announced_oversize_body_is_refused_before_it_is_sent(service: Service) -> None:
    answer, _ = raw_upload(service, "Content-Length: 999999999", iter(()))
    head, body = answer.split(b"\r\n\r\n")
    assert b" 413 " in head.splitlines()[0]
    assert json.loads(body)["code"] == "too_large"


def test_an_unannounced_oversize_body_is_refused_while_it_comes_in(service: Service) -> None:
    chunk = b"8000\r\n" + bytes(0x8000) + b"\r\n"
    # One chunk more than allowed, and no end of the body: only a server that counts while it reads can answer.
    answer, _ = raw_upload(service, "Transfer-Encoding: chunked", iter([chunk] * (MAX_BODY_BYTES // 0x8000 + 1)))
    head, body = answer.split(b"\r\n\r\n")
    assert b" 413 " in head.splitlines()[0]
    assert json.loads(body)["code"] == "too_large"


# errors, operators


def test_the_frameworks_own_errors_have_the_same_shape(service: Service) -> None:
    assert error_of(service.call("/nowhere")) == (404, "not_found")
    wrong_method = service.call("/v1/groups/g/samples")
    assert error_of(wrong_method) == (405, "message_invalid")
    assert wrong_method.headers["allow"] == "POST"
    for query in ("after=x", "after=-1", "wait=-1", "after=99999999999"):
        assert error_of(service.call(f"/v1/groups/g/updates/latest?{query}")) == (422, "message_invalid")
    assert error_of(service.call("/v1/groups/g/updates/0")) == (422, "message_invalid")


def test_a_lost_blob_is_an_error_of_the_same_shape(service: Service) -> None:
    service.publish(b"content")
    service.blobs.delete(hashlib.sha256(b"content").hexdigest())
    assert error_of(service.call("/v1/groups/g/updates/1")) == (404, "not_found")


def test_an_unexpected_exception_shows_nothing_of_the_inside(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(service.store, "group", fail)
    response = service.call("/v1/groups/g")
    assert error_of(response) == (500, "internal")
    assert b"secret" not in response.data


def test_health_needs_no_token_and_readiness_needs_the_store(service: Service, tmp_path: Path) -> None:
    assert service.call("/healthz", token=None).status == 200
    assert service.call("/readyz", token=None).status == 200


def metrics(service: Service) -> dict[str, float]:
    text = service.call("/metrics", token=None).data.decode()
    return {
        ",".join((s.name, *(f"{k}={v}" for k, v in sorted(s.labels.items())))): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def test_metrics_tell_what_happened_and_what_is_stored(service: Service) -> None:
    service.upload(batch(sample(1), sample(2, image=b"x"), seen=70, dropped={"outbox_full": 3}))
    service.upload(batch(sample(1), seen=70, dropped={"outbox_full": 3}))
    service.call("/nowhere")
    values = metrics(service)
    for name, expected in {
        "cema_uploads_total,group=g": 2,
        "cema_samples_accepted_total,group=g": 1,
        "cema_samples_duplicate_total,group=g": 1,
        "cema_samples_rejected_total,code=image_invalid,group=g": 1,
        "cema_http_errors_total,code=not_found": 1,
        "cema_samples_seen,group=g": 70,
        "cema_samples_pending,group=g": 1,
        "cema_latest_version,group=g": 0,
        "cema_ticks_dropped,group=g": 0,
        "cema_devices,group=g": 1,
        "cema_samples_dropped_by_devices,group=g,reason=outbox_full": 3,
        "cema_polls_waiting": 0,
    }.items():
        assert values[name] == expected, name
    assert values["cema_upload_bytes_total,group=g"] > 0


def test_the_api_is_described(service: Service) -> None:
    document = service.call("/openapi.json", token=None).json()
    assert service.call("/docs", token=None).status == 200
    paths = document["paths"]
    upload = paths["/v1/groups/{group}/samples"]["post"]
    assert upload["requestBody"]["content"][MSGPACK_TYPE]["schema"]["$ref"].endswith("/SampleBatch")
    assert {"200", "400", "401", "403", "413"} <= set(upload["responses"])
    references = [part.split('"')[0] for part in json.dumps(document).split('"$ref": "#/components/schemas/')[1:]]
    assert set(references) <= set(document["components"]["schemas"])


def test_a_signature_is_sixty_four_bytes_of_base64(service: Service) -> None:
    service.publish(b"content")
    header = service.call("/v1/groups/g/updates/latest").headers["cema-signature"]
    assert len(base64.b64decode(header, validate=True)) == 64
