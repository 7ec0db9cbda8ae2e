"""The web process over real HTTP: who is answered, what devices read, the long poll, errors, what operators see."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cema.cloud.app import listen, listen_admin
from cema.cloud.keys import signing_key
from cema.config import ServeConfig, ServerConfig
from cema.wire import signing
from cema.wire.messages import MSGPACK_TYPE
from cema.wire.statement import BundleStatement, open_statement

# who may do what


@pytest.mark.parametrize("path", ["", "/bundle", "/updates", "/updates/1", "/updates/latest"])
def test_only_the_groups_own_devices_are_answered(service: Any, path: str) -> None:
    assert service.error_of(service.call(f"/v1/groups/g{path}", token=None)) == (401, "unauthenticated")
    assert service.error_of(service.call(f"/v1/groups/g{path}", token="guess")) == (401, "unauthenticated")
    assert service.error_of(service.call(f"/v1/groups/g{path}", token=None, Authorization="Basic x")) == (
        401,
        "unauthenticated",
    )
    assert service.error_of(service.call(f"/v1/groups/other{path}")) == (403, "forbidden")
    assert service.error_of(service.call(f"/v1/groups/unknown{path}")) == (403, "forbidden")
    assert service.call(f"/v1/groups/g{path}").status in (200, 204, 404)


def test_a_revoked_token_is_refused_at_once(service: Any) -> None:
    service.store.revoke("cam", 2)
    assert service.error_of(service.call("/v1/groups/g")) == (401, "unauthenticated")
    assert service.error_of(service.upload(service.batch(service.sample(1)))) == (401, "unauthenticated")


def test_a_device_cannot_upload_for_another(service: Any) -> None:
    assert service.error_of(service.upload(service.batch(service.sample(1), device_id="cam2"))) == (403, "forbidden")
    assert service.store.group("g").pending == 0


# what a device reads


def test_group_status_has_all_that_a_device_needs_to_start(service: Any) -> None:
    expected = {"group": "g", "fingerprint": "f1", "latest_version": 0, "adaptation": "on", "server_time_ms": 1234,
        "samples_seen": 70, "ticks_done": 0, "stats_owner": "cloud"}  # fmt: skip
    service.upload(service.batch(seen=70))
    assert service.call("/v1/groups/g").json() == expected


def test_the_bundle_is_signed_and_only_sent_once(service: Any) -> None:
    response = service.call("/v1/groups/g/bundle")
    assert response.data == b"bundle bytes " * 100_000
    assert (response.headers["etag"], response.headers["cema-bundle-fingerprint"]) == ('"f1"', "f1")
    signing.verify(response.data, response.headers["cema-signature"], signing.public_key(signing_key(service.config)))
    again = service.call("/v1/groups/g/bundle", If_None_Match='"f1"')
    assert (again.status, again.data) == (304, b"")
    service.store.put_group("g", "f2", service.blobs.put(b"new"), "on", 2)
    assert service.call("/v1/groups/g/bundle", If_None_Match='"f1"').data == b"new"


def test_a_statement_says_whose_bundle_it_is_and_its_place_also_of_bytes_that_come_back(service: Any) -> None:
    key, row = signing.public_key(signing_key(service.config)), service.store.group("g")
    blobs = [row.bundle_blob, service.blobs.put(b"new"), row.bundle_blob]
    for place, blob in enumerate(blobs, row.lineage):
        service.store.put_group("g", "f1" if blob == row.bundle_blob else "f2", blob, "on", 2)
        if blob == row.bundle_blob:  # nobody asks for the one in between: nothing kept from before may answer
            text = service.call("/v1/groups/g/bundle").headers["cema-bundle-statement"]
            assert open_statement(text, key) == BundleStatement(group="g", sha256=blob, sequence=place)


def test_a_version_is_immutable_and_cacheable(service: Any) -> None:
    service.publish(b"content 1")
    response = service.call("/v1/groups/g/updates/1")
    etag = f'"{hashlib.sha256(b"content 1").hexdigest()}"'
    assert response.data == b"content 1"
    assert response.headers["cache-control"] == "public, max-age=31536000, s-maxage=0, immutable"
    assert (response.headers["etag"], response.headers["cema-update-version"]) == (etag, "1")
    signing.verify(response.data, response.headers["cema-signature"], signing.public_key(signing_key(service.config)))
    assert service.call("/v1/groups/g/updates/1", If_None_Match=etag).status == 304
    assert service.error_of(service.call("/v1/groups/g/updates/2")) == (404, "not_found")


def test_versions_are_listed_newest_first(service: Any) -> None:
    service.publish(b"content 1")
    service.publish(b"content 2")
    listed = service.call("/v1/groups/g/updates").json()["updates"]
    assert [(u["version"], u["size_bytes"], u["method"]) for u in listed] == [(2, 9, "bn"), (1, 9, "bn")]
    assert [u["version"] for u in service.call("/v1/groups/g/updates?limit=1").json()["updates"]] == [2]


# the long poll


def test_the_latest_update_is_answered_at_once(service: Any) -> None:
    service.publish(b"content 1")
    service.publish(b"content 2")
    response = service.call("/v1/groups/g/updates/latest?after=1&wait=30&base=f1")
    assert (response.status, response.data, response.headers["cema-update-version"]) == (200, b"content 2", "2")
    assert response.headers["cache-control"] == "no-store"
    assert service.call("/v1/groups/g/updates/latest?after=2&base=f1").status == 204


def test_waiting_polls_wake_when_a_version_is_published(service: Any) -> None:
    with ThreadPoolExecutor(20) as pool:
        polls = [pool.submit(service.call, "/v1/groups/g/updates/latest?after=0&wait=30&base=f1") for _ in range(20)]
        wait_for_polls(service, 20)
        service.publish(b"content 1")
        answers = [poll.result(30) for poll in polls]
    assert {(answer.status, answer.data) for answer in answers} == {(200, b"content 1")}


def test_a_poll_without_news_is_answered_after_its_time(service: Any) -> None:
    assert service.call("/v1/groups/g/updates/latest?after=0&wait=0.05&base=f1").status == 204


def test_another_bundle_is_a_conflict(service: Any) -> None:
    assert service.error_of(service.call("/v1/groups/g/updates/latest?base=f0")) == (409, "base_mismatch")


def test_versions_of_an_earlier_bundle_are_not_sent_to_the_new_one(service: Any) -> None:
    service.publish(b"for f1")
    service.store.put_group("g", "f2", service.blobs.put(b"new"), "on", 2)
    assert service.call("/v1/groups/g/updates/latest?after=0&wait=0.05&base=f2").status == 204
    service.publish(b"for f2")
    assert service.call("/v1/groups/g/updates/latest?after=0&wait=5&base=f2").data == b"for f2"


def test_stopping_answers_waiting_polls_at_once(service: Any) -> None:
    with ThreadPoolExecutor(1) as pool:
        poll = pool.submit(service.call, "/v1/groups/g/updates/latest?after=0&wait=50")
        wait_for_polls(service, 1)
        service.server.should_exit = True
        assert poll.result(10).status == 204


def wait_for_polls(service: Any, count: int) -> None:
    for _ in range(10_000):
        if service.metrics()["cema_polls_waiting"] == count:
            return
    raise AssertionError(f"{count} polls never waited")


# errors, operators


def test_the_frameworks_own_errors_have_the_same_shape(service: Any) -> None:
    assert service.error_of(service.call("/nowhere")) == (404, "not_found")
    wrong_method = service.call("/v1/groups/g/samples")
    assert service.error_of(wrong_method) == (405, "message_invalid")
    assert wrong_method.headers["allow"] == "POST"
    for query in ("after=x", "after=-1", "wait=-1", "after=99999999999"):
        assert service.error_of(service.call(f"/v1/groups/g/updates/latest?{query}")) == (422, "message_invalid")
    assert service.error_of(service.call("/v1/groups/g/updates/0")) == (422, "message_invalid")


def test_a_lost_blob_is_an_error_of_the_same_shape(service: Any) -> None:
    service.publish(b"content")
    service.blobs.delete(hashlib.sha256(b"content").hexdigest())
    assert service.error_of(service.call("/v1/groups/g/updates/1")) == (404, "not_found")


def test_an_unexpected_exception_shows_nothing_of_the_inside(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(service.store, "state", fail)
    response = service.call("/v1/groups/g")
    assert service.error_of(response) == (500, "internal")
    assert b"secret" not in response.data


def test_health_needs_no_token_and_readiness_needs_the_store(service: Any, tmp_path: Path) -> None:
    assert service.call("/healthz", token=None).status == 200
    assert service.call("/readyz", token=None).status == 200


def test_metrics_tell_what_happened_and_what_is_stored(service: Any) -> None:
    service.upload(service.batch(service.sample(1), service.sample(2, image=b"x"), seen=70, dropped={"outbox_full": 3}))
    service.upload(service.batch(service.sample(1), seen=70, dropped={"outbox_full": 3}))
    service.call("/nowhere")
    values = service.metrics()
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


def test_the_api_is_described(service: Any) -> None:
    document = service.call("/openapi.json", token=None).json()
    assert service.call("/docs", token=None).status == 200
    paths = document["paths"]
    upload = paths["/v1/groups/{group}/samples"]["post"]
    assert upload["requestBody"]["content"][MSGPACK_TYPE]["schema"]["$ref"].endswith("/SampleBatch")
    assert {"200", "400", "401", "403", "413"} <= set(upload["responses"])
    references = [part.split('"')[0] for part in json.dumps(document).split('"$ref": "#/components/schemas/')[1:]]
    assert set(references) <= set(document["components"]["schemas"])


def test_a_signature_is_sixty_four_bytes_of_base64(service: Any) -> None:
    service.publish(b"content")
    header = service.call("/v1/groups/g/updates/latest").headers["cema-signature"]
    assert len(base64.b64decode(header, validate=True)) == 64


def test_the_body_of_an_answer_does_not_wait_for_the_clients_acknowledgement() -> None:
    """40 ms for each request on a kept connection otherwise: Nagle's algorithm against delayed acknowledgements."""
    config = ServeConfig(server=ServerConfig(port=0))
    devices = listen(config.server)
    with devices, listen_admin(config, devices) as people:
        for listener in (devices, people):
            with socket.create_connection(listener.getsockname()), listener.accept()[0] as connection:
                assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
