"""Hostile configuration files through what a device and a cloud do with theirs at the start."""

from __future__ import annotations

from pathlib import Path

import pytest

from cema.cloud.app import listen
from cema.cloud.tls import tls_options
from cema.config_files import device_token, load_device, load_serve
from cema.edge.client import CloudClient
from cema.edge.verification import trusted_key
from cema.errors import CemaError
from hostile.case import Case, bounded, check_error, each
from hostile.settings import DEVICES, FIELDS, SERVES, device


def dial(path: Path) -> None:
    """All of a device's start that depends on its file alone."""
    config = load_device(path)
    token = device_token(config)
    if config.public_key is not None:
        trusted_key(config)
    CloudClient(config.url, config.group, token, config=config.uplink).close()


def serve(path: Path) -> None:
    """Likewise of a cloud's."""
    server = load_serve(path).server
    tls_options(server, for_devices=True)
    listen(server).close()


@pytest.fixture(autouse=True)
def no_token_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CEMA_TOKEN", raising=False)


@each(DEVICES)
def test_a_device_refuses_the_file(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "device.toml"
    path.write_bytes(case.build())
    with bounded(case), pytest.raises(CemaError) as caught:
        dial(path)
    check_error(case, caught.value.code, caught.value.message, caught.value.hint)
    assert not any(token in str(caught.value) for token in ("se\ncret", "se cret")), "secrets do not belong in logs"
    assert [each.name for each in tmp_path.iterdir()] == ["device.toml"]


@each(SERVES)
def test_a_cloud_refuses_the_file(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "cema.toml"
    path.write_bytes(case.build())
    with bounded(case), pytest.raises(CemaError) as caught:
        serve(path)
    check_error(case, caught.value.code, caught.value.message, caught.value.hint)
    assert [each.name for each in tmp_path.iterdir()] == ["cema.toml"]


def test_good_files_are_taken(tmp_path: Path) -> None:
    (tmp_path / "device.toml").write_text(device())
    dial(tmp_path / "device.toml")
    assert load_device(tmp_path / "device.toml").group == FIELDS["group"].strip("'")
    (tmp_path / "cema.toml").write_text("[server]\nport = 0\n")
    serve(tmp_path / "cema.toml")
