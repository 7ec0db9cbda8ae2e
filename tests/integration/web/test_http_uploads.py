"""Uploads over real HTTP: stored once, limited while they arrive, refused sample by sample."""

from __future__ import annotations

import json
import socket
from typing import Any

import numpy as np
import pytest

from cema.wire.image import encode_image
from cema.wire.messages import MSGPACK_TYPE

PICTURE = encode_image(np.zeros((4, 4, 3), np.uint8), "png")


def test_an_upload_is_stored_once_however_often_it_is_sent(service: Any) -> None:
    first = service.upload(service.batch(service.sample(1), service.sample(2), seen=70)).json()
    expected = {"accepted": 2, "duplicates": 0, "rejected": [], "latest_version": 0, "server_time_ms": 1234}
    assert first == expected
    assert service.upload(service.batch(service.sample(1), service.sample(2), seen=70)).json() == {
        **expected,
        "accepted": 0,
        "duplicates": 2,
    }
    row = service.store.group("g")
    assert (row.pending, row.samples_seen) == (2, 70)
    assert [s.image for s in service.store.pending("g", 9)] == [PICTURE, PICTURE]


def test_what_is_no_image_is_refused_and_the_rest_is_kept(service: Any) -> None:
    huge = (99_999).to_bytes(4, "little") * 2
    bad = [
        service.sample(1, image=b"no picture"),
        service.sample(2, codec="jpeg"),
        service.sample(3, codec="raw", image=huge),
    ]
    receipt = service.upload(service.batch(*bad, service.sample(4))).json()
    assert receipt["accepted"] == 1
    codes = {int(r["sample_id"], 16): r["code"] for r in receipt["rejected"]}
    assert codes == {1: "image_invalid", 2: "image_invalid", 3: "too_large"}
    receipt = service.upload(
        service.batch(service.sample(5, codec="tiff"), service.sample(6, sample_id=b"short"))
    ).json()
    assert [r["code"] for r in receipt["rejected"]] == ["image_invalid", "message_invalid"]


def test_samples_of_an_old_bundle_are_refused_one_by_one(service: Any) -> None:
    receipt = service.upload(service.batch(service.sample(1), service.sample(2), fingerprint="f0")).json()
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
        ({"count": 5}, (413, "too_large")),
    ],
    ids=str,
)
def test_a_batch_that_breaks_the_protocol_is_refused_whole(
    service: Any, changes: dict[str, Any], expected: tuple[int, str]
) -> None:
    changes = dict(changes)
    samples = [service.sample(number) for number in range(changes.pop("count", 1))]
    assert service.error_of(service.upload(service.batch(*samples, **changes))) == expected
    assert service.store.group("g").pending == 0


def test_a_body_that_is_no_msgpack_is_refused(service: Any) -> None:
    path = "/v1/groups/g/samples"
    assert service.error_of(service.call(path, "POST", body=b"{}", Content_Type=MSGPACK_TYPE)) == (
        400,
        "message_invalid",
    )
    assert service.error_of(service.call(path, "POST", body=b"{}", Content_Type="text/json")) == (
        400,
        "message_invalid",
    )


def raw_upload(service: Any, headers: str, body: bytes) -> tuple[int, str]:
    """Status and error code for a hand-written request whose body never ends."""
    host, port = service.url.removeprefix("http://").split(":")
    head = "POST /v1/groups/g/samples HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret-of-cam\r\n"
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(f"{head}Content-Type: {MSGPACK_TYPE}\r\n{headers}\r\n\r\n".encode() + body)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    status_line, content = answer.split(b"\r\n", 1)[0], answer.split(b"\r\n\r\n")[1]
    return int(status_line.split()[1]), json.loads(content)["code"]


def test_an_announced_oversize_body_is_refused_before_it_is_sent(service: Any) -> None:
    assert raw_upload(service, "Content-Length: 999999999", b"") == (413, "too_large")


def test_an_unannounced_oversize_body_is_refused_while_it_comes_in(service: Any) -> None:
    chunk = b"8000\r\n" + bytes(0x8000) + b"\r\n"
    chunks = chunk * (service.config.server.max_body_bytes // 0x8000 + 1)
    assert raw_upload(service, "Transfer-Encoding: chunked", chunks) == (413, "too_large")
