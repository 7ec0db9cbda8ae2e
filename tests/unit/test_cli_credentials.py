"""The commands that make secrets: where they end up, who may read them, and what is never overwritten."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cema.cli.main import main
from cema.cloud.certificates import certificate_of, names_of
from cema.config_files import load_device
from cema.errors import CemaError, ConfigError, ConflictError, NotFoundError, PlainHttpError
from cema.wire.bundle import Bundle, encode_bundle
from cema.wire.tokens import ENROLMENT_PREFIX


@pytest.fixture
def folder(tmp_path: Path, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tiny.bundle").write_bytes(encode_bundle(tiny_bundle))
    (tmp_path / "cema.toml").write_text("[groups.g]\nbundle = 'tiny.bundle'\nedge_model = 'digits-edge'\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def cema(*arguments: str) -> Any:
    done = CliRunner().invoke(main, [*arguments, "--json"], catch_exceptions=False, standalone_mode=False)
    assert done.exit_code == 0
    return json.loads(done.stdout)


def text_of(*arguments: str) -> str:
    return CliRunner().invoke(main, arguments, catch_exceptions=False, standalone_mode=False).stdout


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


def enrol(name: str, *options: str) -> Any:
    return cema("device", "enrol", "-c", "cema.toml", "--group", "g", "--name", name, *options)


def test_an_authority_and_a_servers_certificate_are_made_once(folder: Path) -> None:
    told = cema("tls", "init", "--name", "cloud.example", "--name", "192.0.2.1")
    assert told["names"][:2] == ["cloud.example", "192.0.2.1"]
    assert {path.name: mode_of(path) for path in (folder / "tls").iterdir()} == {
        "ca.pem": 0o644, "ca.key": 0o600, "server.pem": 0o644, "server.key": 0o600,
    }  # fmt: skip
    before = {path.name: path.read_bytes() for path in (folder / "tls").iterdir()}
    with pytest.raises(ConfigError, match="File exists"):
        cema("tls", "init", "--name", "cloud.example")
    assert {path.name: path.read_bytes() for path in (folder / "tls").iterdir()} == before


def test_a_renewed_certificate_has_the_names_and_the_key_of_before(folder: Path) -> None:
    cema("tls", "init", "--name", "cloud.example", "--days", "1")
    first, key = ((folder / "tls" / name).read_bytes() for name in ("server.pem", "server.key"))
    assert cema("tls", "renew")["names"] == names_of(first)
    second = (folder / "tls" / "server.pem").read_bytes()
    assert certificate_of(second).not_valid_after_utc > certificate_of(first).not_valid_after_utc
    assert certificate_of(second).public_key() == certificate_of(first).public_key()
    assert (folder / "tls" / "server.key").read_bytes() == key
    assert "other.example" in cema("tls", "renew", "--name", "other.example")["names"]


def test_a_client_gets_a_certificate_and_nobody_elses_file(folder: Path) -> None:
    cema("tls", "init", "--name", "cloud.example")
    files = cema("tls", "client", "gate-3")["uplink"]
    assert mode_of(Path(files["client_key"])) == 0o600
    for name, message in (("gate-3", "exists"), ("../gate", "slashes"), ("x" * 80, "64 characters")):
        with pytest.raises(ConfigError, match=message):
            cema("tls", "client", name)


@pytest.mark.parametrize("command", [("renew",), ("client", "gate-3")])
def test_without_an_authority_there_are_no_certificates(folder: Path, command: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="tls"):
        cema("tls", *command)


@pytest.mark.parametrize("name", ["\u00e4.example", ""])
def test_a_name_that_is_none_leaves_nothing_behind(folder: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="expected"):
        cema("tls", "init", "--name", name)
    assert list((folder / "tls").iterdir()) == []


def test_a_device_learns_the_private_authority_when_it_is_enrolled(folder: Path) -> None:
    cema("tls", "init", "--name", "cloud.example")
    (folder / "cema.toml").write_text((folder / "cema.toml").read_text() + "[server]\ntls_ca = 'tls/ca.pem'\n")
    enrol("cam", "--url", "https://cloud.example:8470")
    config = load_device(folder / "device.toml")
    assert config.uplink.ca_pem == (folder / "tls/ca.pem").read_text()
    assert mode_of(folder / "device.toml") == 0o600


def test_a_one_time_token_says_so_and_a_key_is_as_before(folder: Path) -> None:
    enrol("once", "--one-time", "--valid-hours", "2", "--out", "once.toml")
    enrol("key", "--out", "key.toml")
    once, key = (tomllib.loads((folder / name).read_text()) for name in ("once.toml", "key.toml"))
    assert once["token"].startswith(ENROLMENT_PREFIX)
    assert not key["token"].startswith("cema-")
    assert set(key) == {"url", "group", "device_id", "token", "public_key", "state_dir"}
    first, second = cema("device", "list", "-c", "cema.toml")["devices"]
    assert (first["device_id"], first["enrolment_until"]) == ("key", None)
    assert second["enrolment_until"] > second["created"]
    assert "has to exchange its one-time token until" in text_of("device", "list", "-c", "cema.toml")


def test_a_device_that_could_not_speak_to_its_cloud_is_not_enrolled(folder: Path) -> None:
    with pytest.raises(PlainHttpError, match="https"):
        enrol("cam", "--url", "http://cloud.example")
    assert cema("device", "list", "-c", "cema.toml") == {"devices": []}
    assert not (folder / "device.toml").exists()
    enrol("cam", "--url", "http://cloud.example", "--allow-plain-http")
    assert load_device(folder / "device.toml").uplink.allow_plain_http


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_an_address_that_nobody_can_dial_is_asked_for(folder: Path, host: str) -> None:
    (folder / "cema.toml").write_text((folder / "cema.toml").read_text() + f"[server]\nhost = '{host}'\n")
    with pytest.raises(ConfigError, match="any"):
        enrol("cam")


def test_users_are_added_listed_and_revoked(folder: Path) -> None:
    shown = text_of("user", "add", "-c", "cema.toml", "ann", "--role", "operator").strip()
    assert shown.startswith("cema-user-")
    assert (
        cema("user", "add", "-c", "cema.toml", "ron", "--role", "reader", "--out", "ron.token")["file"] == "ron.token"
    )
    assert mode_of(folder / "ron.token") == 0o600
    listed = cema("user", "list", "-c", "cema.toml")["users"]
    assert [(row["user"], row["role"], row["revoked"]) for row in listed] == [
        ("ann", "operator", None),
        ("ron", "reader", None),
    ]
    assert cema("user", "revoke", "-c", "cema.toml", "ron")["revoked"] is not None
    assert "ron  reader  revoked" in text_of("user", "list", "-c", "cema.toml")
    refused: list[tuple[type[CemaError], tuple[str, ...]]] = [
        (ConflictError, ("user", "add", "-c", "cema.toml", "ann", "--role", "reader", "--out", "second.token")),
        (ConfigError, ("user", "add", "-c", "cema.toml", "new", "--role", "reader", "--out", "ron.token")),
        (ConfigError, ("user", "add", "-c", "cema.toml", "two\nlines", "--role", "reader")),
        (NotFoundError, ("user", "revoke", "-c", "cema.toml", "nobody")),
        (NotFoundError, ("device", "rotate", "-c", "cema.toml", "nobody")),
    ]
    for kind, arguments in refused:
        with pytest.raises(kind):
            cema(*arguments)
    assert not (folder / "second.token").exists()
    assert "new" not in text_of("user", "list", "-c", "cema.toml")
