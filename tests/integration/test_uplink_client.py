"""The client against a real HTTP server: every refusal has its error, every body its limit."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from cema.config import UplinkConfig
from cema.edge import client as client_module
from cema.edge.client import CloudClient
from cema.errors import (
    AuthError,
    BaseMismatchError,
    CemaError,
    ConfigError,
    ForbiddenError,
    MessageError,
    NotFoundError,
    OverloadedError,
    SizeLimitError,
    TransportError,
)
from cema.wire.messages import SampleBatch

BATCH = SampleBatch(device_id="d", boot_id=b"b" * 16, fingerprint="f", samples_seen=3, samples=[])


@pytest.fixture
def client(scripted_cloud: Any) -> Iterator[CloudClient]:
    made = CloudClient(scripted_cloud.url, "g", "secret", config=UplinkConfig())
    yield made
    made.close()


def test_status_upload_and_bundle(scripted_cloud: Any, client: CloudClient) -> None:
    scripted_cloud.fingerprint, scripted_cloud.bundle, scripted_cloud.statement = "abc", (b"zip", "sig"), "said"
    assert client.status().fingerprint == "abc"
    assert client.upload(BATCH).accepted == 0
    assert scripted_cloud.batches == [BATCH]
    assert client.bundle() == (b"zip", "sig", "said")


def test_poll_gives_an_update_nothing_or_a_mismatch(scripted_cloud: Any, client: CloudClient) -> None:
    scripted_cloud.fingerprint = "abc"
    assert client.poll(0, "abc", 0.0) is None
    scripted_cloud.publish(3, b"update", "sig")
    assert client.poll(2, "abc", 5.0) == (b"update", "sig", None)
    scripted_cloud.difference = lambda have: (b"from %d" % have, have)
    assert client.poll(2, "abc", 5.0, have=2) == (b"from 2", "sig", 2)
    scripted_cloud.difference = lambda have: (b"", "two")
    with pytest.raises(TransportError, match="expected a version"):
        client.poll(2, "abc", 5.0, have=2)
    with pytest.raises(BaseMismatchError):
        client.poll(2, "other", 0.0)


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (400, "message_invalid", MessageError), (401, "unauthenticated", AuthError),
        (403, "forbidden", ForbiddenError),
        (404, "not_found", NotFoundError), (409, "base_mismatch", BaseMismatchError),
        (413, "too_large", SizeLimitError), (429, "overloaded", OverloadedError),
        (503, "storage_failed", OverloadedError),
        (500, "internal", TransportError),
        (302, "moved", TransportError),
    ],
)  # fmt: skip
def test_each_refusal_has_its_error(
    scripted_cloud: Any, client: CloudClient, refuse: Callable[..., Any], status: int, code: str,
    expected: type[CemaError],
) -> None:  # fmt: skip
    scripted_cloud.script.append(refuse(status, code, {"Location": "http://127.0.0.1:1/"}))
    with pytest.raises(expected, match=f"refused: {code}") as caught:
        client.upload(BATCH)
    assert type(caught.value) is expected


@pytest.mark.parametrize(
    ("header", "pause_s"), [("7", 7.0), ("999999999", client_module.MAX_RETRY_AFTER_S), ("soon", 0.0)]
)
def test_retry_after_is_read_and_bounded(
    scripted_cloud: Any, client: CloudClient, refuse: Callable[..., Any], header: str, pause_s: float
) -> None:
    scripted_cloud.script.append(refuse(429, "overloaded", {"Retry-After": header}))
    with pytest.raises(OverloadedError) as caught:
        client.upload(BATCH)
    pause = caught.value.values["retry_after_s"]
    assert isinstance(pause, float)
    assert pause == pause_s


def test_a_400_of_a_proxy_does_not_condemn_the_samples(scripted_cloud: Any, client: CloudClient) -> None:
    scripted_cloud.script.append((400, {}, b"<html>bad gateway</html>"))
    with pytest.raises(TransportError):
        client.upload(BATCH)


def test_an_answer_that_is_not_ours_or_too_long_is_a_transport_error(
    scripted_cloud: Any, client: CloudClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted_cloud.script.append((200, {}, b"<html>log in to this network</html>"))
    with pytest.raises(TransportError, match="expected the cloud's UploadReceipt"):
        client.upload(BATCH)
    monkeypatch.setattr(client_module, "MAX_BUNDLE_BYTES", 100)
    scripted_cloud.bundle = (b"x" * 101, "")
    with pytest.raises(TransportError, match="at most 100 bytes"):
        client.bundle()


def test_a_wrong_token_and_a_closed_port(scripted_cloud: Any) -> None:
    stranger = CloudClient(scripted_cloud.url, "g", "wrong", config=UplinkConfig())
    with pytest.raises(AuthError, match="enrol"):
        stranger.status()
    stranger.close()
    nobody = CloudClient("http://127.0.0.1:1", "g", "secret", config=UplinkConfig())
    with pytest.raises(TransportError, match="expected an answer"):
        nobody.status()
    nobody.close()


def test_an_address_that_is_none_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="https://host"):
        CloudClient("cloud.example:8470", "g", "secret", config=UplinkConfig())


def test_https_needs_the_private_ca_and_works_with_it(scripted_cloud: Any, tmp_path: Path) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    scripted_cloud.use_tls(context)
    url = scripted_cloud.url.replace("http://", "https://")
    stranger = CloudClient(url, "g", "secret", config=UplinkConfig())
    with pytest.raises(TransportError, match="ca_file"):
        stranger.status()
    stranger.close()
    trusting = CloudClient(url, "g", "secret", config=UplinkConfig(ca_file=str(tmp_path / "ca.pem")))
    assert trusting.status().group == "g"
    trusting.close()


def test_requests_go_through_the_proxy_of_config_or_environment(
    scripted_cloud: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    through = "http://cloud.invalid"  # only a proxy can know this name; the scripted cloud plays it
    configured = CloudClient(
        through, "g", "secret", config=UplinkConfig(proxy=scripted_cloud.url, allow_plain_http=True)
    )
    monkeypatch.setenv("http_proxy", scripted_cloud.url)
    inherited = CloudClient(through, "g", "secret", config=UplinkConfig(allow_plain_http=True))
    monkeypatch.setenv("no_proxy", "cloud.invalid")
    direct = CloudClient(through, "g", "secret", config=UplinkConfig(allow_plain_http=True))
    for client in (configured, inherited):
        assert client.status().group == "g"
        client.close()
    with pytest.raises(TransportError):
        direct.status()
    direct.close()


def test_close_ends_a_request_that_hangs(scripted_cloud: Any, client: CloudClient) -> None:
    scripted_cloud.released.clear()
    caught: list[BaseException] = []

    def ask() -> None:
        try:
            client.status()
        except TransportError as error:
            caught.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    scripted_cloud.wait_for(lambda: scripted_cloud.paths)
    client.close()
    thread.join(10)
    assert not thread.is_alive()
    assert len(caught) == 1
