"""TLS over real connections: whom a device believes, whom the cloud believes, and that nothing goes unencrypted."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import urllib3

from cema.cloud.app import listen, listen_admin
from cema.cloud.certificates import Pair, issue, make_authority
from cema.cloud.tls import tls_options
from cema.config import AdminConfig, ServeConfig, ServerConfig, UplinkConfig, is_loopback
from cema.edge.client import CloudClient
from cema.errors import ConfigError, PlainHttpError, TransportError

NOW = datetime.now(UTC)
AUTHORITY = make_authority("authority of the tests", NOW)


def written(folder: Path, name: str, pair: Pair) -> tuple[str, str]:
    for suffix, content in zip(("pem", "key"), pair, strict=True):
        (folder / f"{name}.{suffix}").write_bytes(content)
    return str(folder / f"{name}.pem"), str(folder / f"{name}.key")


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture
def server(folder: Path) -> Pair:
    """Its certificate; tests override it."""
    return issue(AUTHORITY, ["127.0.0.1"], NOW)


@pytest.fixture
def server_settings(folder: Path, server: Pair) -> dict[str, Any]:
    certificate, key = written(folder, "server", server)
    return {"tls_certificate": certificate, "tls_key": key}


@pytest.fixture
def clients() -> Iterator[list[CloudClient]]:
    made: list[CloudClient] = []
    yield made
    for client in made:
        client.close()


@pytest.fixture
def dial(service: Any, clients: list[CloudClient]) -> Any:
    def connect(**uplink: Any) -> CloudClient:
        clients.append(CloudClient(service.url, "g", "secret-of-cam", config=UplinkConfig(**uplink)))
        return clients[-1]

    return connect


def pem(authority: Pair) -> str:
    return authority.certificate.decode()


def test_a_device_believes_its_authority_alone(service: Any, dial: Any, folder: Path) -> None:
    assert service.url.startswith("https://")
    assert service.admin_url.startswith("https://")
    (folder / "ca.pem").write_bytes(AUTHORITY.certificate)
    assert dial(ca_pem=pem(AUTHORITY)).status().group == "g"
    assert dial(ca_file=str(folder / "ca.pem")).status().group == "g"
    namesake = make_authority("authority of the tests", NOW)
    for trust in ({}, {"ca_pem": pem(namesake)}):
        with pytest.raises(TransportError, match="certificate verify failed"):
            dial(**trust).status()


@pytest.mark.parametrize("server", [
    issue(AUTHORITY, ["cloud.example", "10.0.0.1"], NOW),
    issue(AUTHORITY, ["127.0.0.1"], NOW - timedelta(days=100), days=99),
    issue(AUTHORITY, ["127.0.0.1"], NOW + timedelta(days=2)),
    issue(AUTHORITY, ["127.0.0.1"], NOW, client=True),
], ids=["another name", "expired", "not valid yet", "a client's"])  # fmt: skip
def test_a_certificate_that_is_not_the_clouds_is_refused(dial: Any) -> None:
    with pytest.raises(TransportError, match="certificate"):
        dial(ca_pem=pem(AUTHORITY)).status()


def test_the_next_certificate_needs_nothing_from_the_devices() -> None:
    first = issue(AUTHORITY, ["127.0.0.1"], NOW)
    second = issue(AUTHORITY, ["127.0.0.1"], NOW, key=first.key)
    assert second.certificate != first.certificate
    assert second.key == first.key


def test_the_strictest_verification_accepts_our_certificates(service: Any) -> None:
    context = ssl.create_default_context(cadata=pem(AUTHORITY))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    with urllib3.PoolManager(ssl_context=context, retries=False) as http:
        for url in (service.url, service.admin_url):
            assert http.request("GET", f"{url}/healthz", timeout=30).status == 200


def test_plain_http_to_a_tls_port_gets_nothing(service: Any) -> None:
    client = CloudClient(service.url.replace("https", "http"), "g", "secret-of-cam", config=UplinkConfig())
    with pytest.raises(TransportError):
        client.status()
    client.close()


# mutual TLS


class TestMutual:
    @pytest.fixture
    def server_settings(self, folder: Path, server: Pair) -> dict[str, Any]:
        certificate, key = written(folder, "server", server)
        ca, _ = written(folder, "ca", AUTHORITY)
        return {"tls_certificate": certificate, "tls_key": key, "tls_client_ca": ca}

    def test_only_devices_with_a_certificate_reach_the_cloud(self, dial: Any, folder: Path) -> None:
        certificate, key = written(folder, "cam", issue(AUTHORITY, ["cam"], NOW, client=True))
        ours = {"ca_pem": pem(AUTHORITY), "client_certificate": certificate, "client_key": key}
        assert dial(**ours).status().group == "g"
        stranger = make_authority("stranger", NOW)
        theirs, their_key = written(folder, "them", issue(stranger, ["cam"], NOW, client=True))
        for shown in ({}, {"client_certificate": theirs, "client_key": their_key}):
            with pytest.raises(TransportError):
                dial(ca_pem=pem(AUTHORITY), **shown).status()

    def test_people_need_no_certificate(self, service: Any) -> None:
        context = ssl.create_default_context(cadata=pem(AUTHORITY))
        headers = {"Authorization": "Bearer secret-of-ann"}
        with urllib3.PoolManager(ssl_context=context, retries=False) as http:
            answer = http.request("GET", f"{service.admin_url}/v1/admin/groups", headers=headers, timeout=30)
        assert answer.status == 200


# nothing goes unencrypted unless somebody says so


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "cloud.example", "localhost.example", ""])
def test_the_cloud_does_not_listen_unencrypted_beyond_this_machine(host: str) -> None:
    with pytest.raises(PlainHttpError, match="certificate") as caught:
        listen(ServerConfig(host=host, port=0))
    assert "tls_proxy" in caught.value.hint
    devices = listen(ServerConfig(port=0))
    with devices, pytest.raises(PlainHttpError):
        listen_admin(ServeConfig(server=ServerConfig(port=0), admin=AdminConfig(host=host)), devices)


def test_a_proxy_in_front_may_speak_tls_instead() -> None:
    with listen(ServerConfig(host="0.0.0.0", port=0, behind_tls_proxy=True)) as listener:
        assert listener.getsockname()[0] == "0.0.0.0"


@pytest.mark.parametrize(
    "url", ["http://cloud.example", "http://192.0.2.1:8470", "http://127.0.0.1.example", "http://[2001:db8::1]"]
)
def test_a_device_does_not_speak_unencrypted_beyond_this_machine(url: str) -> None:
    with pytest.raises(PlainHttpError, match="expected https") as caught:
        CloudClient(url, "g", "secret", config=UplinkConfig())
    assert "allow_plain_http" in caught.value.hint
    CloudClient(url, "g", "secret", config=UplinkConfig(allow_plain_http=True)).close()


def test_only_addresses_of_this_machine_are_loopback() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost", "LOCALHOST")))
    assert not any(
        map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "localhost.", "mylocalhost", "", "127.0.0.1.example"))
    )


def test_what_is_for_this_machine_does_not_go_through_a_proxy(
    scripted_cloud: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.invalid:3128")
    monkeypatch.delenv("no_proxy", raising=False)
    client = CloudClient(scripted_cloud.url, "g", "secret", config=UplinkConfig())
    assert client.status().group == "g"
    client.close()


# files that cannot be used


def test_an_unusable_certificate_of_the_cloud_is_a_config_error(folder: Path) -> None:
    certificate, key = written(folder, "server", issue(AUTHORITY, ["127.0.0.1"], NOW))
    _, other_key = written(folder, "other", issue(AUTHORITY, ["127.0.0.1"], NOW))
    (folder / "noise.pem").write_bytes(b"noise")
    for bad in (
        {"tls_certificate": certificate},
        {"tls_key": key},
        {"tls_certificate": certificate, "tls_key": other_key},
        {"tls_certificate": str(folder / "absent.pem"), "tls_key": key},
        {"tls_certificate": certificate, "tls_key": key, "tls_client_ca": str(folder / "noise.pem")},
    ):
        with pytest.raises(ConfigError):
            tls_options(ServerConfig(**bad), for_devices=True)  # type: ignore[arg-type]


def test_an_unusable_certificate_of_a_device_is_a_config_error(folder: Path) -> None:
    (folder / "noise.pem").write_bytes(b"noise")
    noise = str(folder / "noise.pem")
    for bad in ({"ca_pem": "noise"}, {"ca_file": noise}, {"ca_file": "/absent"}, {"client_certificate": noise}):
        with pytest.raises(ConfigError, match="certificates"):
            CloudClient("https://cloud.example", "g", "secret", config=UplinkConfig(**bad))  # type: ignore[arg-type]
