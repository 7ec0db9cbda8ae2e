"""Deflated uploads over real HTTP: stored as if they had come as they are, bounded, refused by name."""

from __future__ import annotations

import zlib
from typing import Any

import pytest
import urllib3

from cema.wire.body import pack_batch
from cema.wire.messages import MSGPACK_TYPE, KeyProposal, SampleBatch, encode_msgpack
from cema.wire.tokens import token_digest

SAMPLES = "/v1/groups/g/samples"


def send(service: Any, body: bytes, coding: str | None, path: str = SAMPLES) -> urllib3.BaseHTTPResponse:
    headers = {} if coding is None else {"Content_Encoding": coding}
    answer: urllib3.BaseHTTPResponse = service.call(path, "POST", body=body, Content_Type=MSGPACK_TYPE, **headers)
    return answer


def batch(service: Any, count: int = 3) -> SampleBatch:
    made: SampleBatch = service.batch(*(service.sample(number) for number in range(count)), seen=64)
    return made


def test_a_deflated_batch_is_stored_and_known_again_in_either_form(service: Any) -> None:
    body = pack_batch(batch(service), deflate=True)
    assert send(service, body.data, body.encoding).json()["accepted"] == 3
    for data, coding in ((body.data, "Deflate"), (encode_msgpack(batch(service)), None)):
        assert send(service, data, coding).json()["duplicates"] == 3
    assert [sample.image for sample in service.store.pending("g", 9)] == [s.image for s in batch(service).samples]


@pytest.mark.parametrize("coding", [None, "identity", "deflate"])
def test_every_receipt_says_what_a_later_request_may_use(service: Any, coding: str | None) -> None:
    plain = encode_msgpack(batch(service))
    answer = send(service, zlib.compress(plain) if coding == "deflate" else plain, coding)
    assert (answer.status, answer.headers["Accept-Encoding"]) == (200, "deflate")


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate, gzip", "x" * 500])
def test_another_coding_is_refused_with_those_that_are_taken(service: Any, coding: str) -> None:
    answer = send(service, encode_msgpack(batch(service)), coding)
    assert service.error_of(answer) == (415, "encoding_unsupported")
    assert answer.headers["Accept-Encoding"] == "deflate"
    assert "with deflate" in answer.json()["message"]


def test_two_headers_are_two_codings(service: Any) -> None:
    headers = urllib3.HTTPHeaderDict([("Content-Encoding", "deflate"), ("Content-Encoding", "gzip")])
    headers.update({"Authorization": "Bearer secret-of-cam", "Content-Type": MSGPACK_TYPE})
    body = pack_batch(batch(service), deflate=True).data
    answer = service.http.request("POST", service.url + SAMPLES, body=body, headers=headers)
    assert service.error_of(answer) == (415, "encoding_unsupported")


def test_a_key_proposal_is_taken_as_it_is_only(service: Any) -> None:
    proposal = encode_msgpack(KeyProposal(device_id="cam", key_sha256=token_digest("new")))
    answer = send(service, zlib.compress(proposal), "deflate", "/v1/groups/g/key")
    assert service.error_of(answer) == (415, "encoding_unsupported")
    assert answer.headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("damage", ["plain", "cut", "more"])
def test_a_body_that_is_not_what_its_header_says_is_refused(service: Any, damage: str) -> None:
    plain = encode_msgpack(batch(service))
    packed = zlib.compress(plain)
    body = {"plain": plain, "cut": packed[:-3], "more": packed + b"x"}[damage]
    assert service.error_of(send(service, body, "deflate")) == (400, "message_invalid")
    assert service.store.group("g").pending == 0


def test_a_bomb_is_refused_and_the_service_goes_on(service: Any) -> None:
    limit_bytes = service.config.server.max_body_bytes
    bomb = zlib.compress(bytes(900 * limit_bytes), 9)
    assert len(bomb) < limit_bytes
    assert service.error_of(send(service, bomb, "deflate")) == (413, "too_large")
    assert service.upload(batch(service)).json()["accepted"] == 3


class TestAllowance:
    @pytest.fixture
    def server_settings(self) -> dict[str, Any]:
        return {"device_upload_bytes_per_s": 2_000.0}

    def test_bytes_count_as_inflated(self, service: Any) -> None:
        body = zlib.compress(encode_msgpack(service.batch(seen=1, dropped={"x" * 60 + str(i): 1 for i in range(32)})))
        statuses = [send(service, body, "deflate").status for _ in range(25)]
        assert len(body) * 25 < 2_000 * 10  # so many seconds' worth may come at once
        assert {200, 429} == set(statuses)

    def test_a_bomb_counts_as_the_largest_body(self, service: Any) -> None:
        bomb = zlib.compress(bytes(200_000), 9)
        assert [send(service, bomb, "deflate").status for _ in range(2)] == [413, 429]


def test_metrics_count_the_bytes_that_travelled(service: Any) -> None:
    body = pack_batch(batch(service), deflate=True).data
    send(service, body, "deflate")
    assert service.metrics()["cema_upload_bytes_total,group=g"] == len(body)
