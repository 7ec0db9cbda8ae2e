"""The operator's commands for versions, switches and samples: what they say and what they do."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from cema.cli.main import main
from cema.cloud.store.base import NewUpdate, StepCommit
from cema.errors import ConflictError, NotFoundError


@pytest.fixture
def cema(fleet: Any) -> Any:
    """cema(command, ..., as_json=True): a command of the operator's on the service's store."""
    config = fleet.folder / "cema.toml"
    config.write_text("[server]\nport = 0\ndata_dir = '.'\n")

    def run(*arguments: str, as_json: bool = True) -> Any:
        options = ["--json"] if as_json else []
        done = CliRunner().invoke(
            main, [*arguments, "-c", str(config), *options], catch_exceptions=False, standalone_mode=False
        )
        return json.loads(done.stdout) if as_json else done.stdout

    return run


def test_a_version_is_taken_back_by_command(fleet: Any, cema: Any) -> None:
    told = cema("update", "rollback", "--group", "g", "--to", "2")
    assert (told["group"], told["version"], told["rollback_of"], told["restores"]) == ("g", 4, 3, 2)
    assert fleet.fetched(4).manifest.rollback_of == 3
    text = cema("update", "rollback", "--group", "g", "--to", "0", as_json=False)
    assert text == "group g: version 5 takes back 4 and restores the source\n"
    listed = cema("update", "list", "--group", "g", as_json=False).splitlines()
    assert "rollback of 4 to the source" in listed[0]
    assert "rollback of 3 to 2" in listed[1]
    assert "0 samples" in listed[2]
    assert "restores        0" in cema("update", "show", "--group", "g", "5", as_json=False)
    with pytest.raises(ConflictError, match="earlier version"):
        cema("update", "rollback", "--group", "g", "--to", "5")


def test_a_group_is_paused_and_resumed_by_command(fleet: Any, cema: Any) -> None:
    assert cema("group", "pause", "g", as_json=False).startswith("group g: adaptation is off, paused since 20")
    assert fleet.service.call("/v1/groups/g").json()["adaptation"] == "off"
    assert "adaptation off  paused" in cema("group", "list", as_json=False)
    assert cema("group", "pause", "g")["paused"] is not None
    assert cema("group", "resume", "g", as_json=False) == "group g: adaptation is on\n"
    assert cema("group", "resume", "g")["paused"] is None
    assert fleet.service.call("/v1/groups/g").json()["adaptation"] == "on"
    with pytest.raises(NotFoundError, match="no group"):
        cema("group", "pause", "x")


def test_a_device_is_paused_and_resumed_by_command(fleet: Any, cema: Any) -> None:
    assert cema("device", "pause", "cam", as_json=False).startswith("device cam is paused since 20")
    assert fleet.service.call("/v1/groups/g").json()["adaptation"] == "off"
    assert cema("device", "list", as_json=False).endswith("paused\n")
    assert cema("device", "resume", "cam", as_json=False) == "device cam is not paused\n"
    assert cema("device", "resume", "cam")["paused"] is None
    assert fleet.service.call("/v1/groups/g").json()["adaptation"] == "on"
    with pytest.raises(NotFoundError, match="no device"):
        cema("device", "pause", "x")


def test_an_exported_version_says_where_it_is(fleet: Any, cema: Any) -> None:
    out = fleet.folder / "stick.cema"
    text = cema("update", "export", "--group", "g", "--out", str(out), as_json=False)
    assert text == f"version 3 of group g is in {out} ({out.stat().st_size} bytes): 'cema update import' it\n"


def test_a_devices_samples_are_deleted_by_command_and_its_versions_say_so(fleet: Any, cema: Any) -> None:
    service = fleet.service
    fingerprint = fleet.bundle.manifest.fingerprint
    service.upload(service.batch(service.sample(1), service.sample(2), fingerprint=fingerprint, seen=9999))
    row, update = service.store.group("g"), NewUpdate(4, service.blobs.put(b"4"), "s", 1, "m")
    assert service.store.claim("w", 0, lease_ms=10**9, tick_images=64, publish_interval_ms=0) is not None
    used = [sample.row_id for sample in service.store.pending("g", 1)]
    service.store.commit_step(StepCommit("g", "w", row.lineage, row.ticks_done + 1, 0, used, update=update), 5)
    assert cema("sample", "delete", "--device", "cam", "--group", "g") == {"device_id": "cam", "deleted": {"g": 2}}
    told = cema("sample", "delete", "--device", "cam", as_json=False)
    assert told == "samples of device cam deleted: there were none\n"
    listed = cema("update", "list", "--group", "g", as_json=False).splitlines()
    assert listed[0].endswith("learned from 1 deleted samples")
    assert not listed[1].endswith("samples")
    assert cema("update", "show", "--group", "g", "4")["deleted_samples"] == 1
    seen = service.administer("/v1/admin/groups/g/updates", token="secret-of-ron").json()["updates"]
    assert [each["deleted_samples"] for each in seen] == [1, 0, 0, 0]


def test_a_devices_samples_are_deleted_over_http(fleet: Any) -> None:
    service = fleet.service
    service.upload(service.batch(service.sample(1), fingerprint=fleet.bundle.manifest.fingerprint))
    path = "/v1/admin/devices/cam/delete-samples"
    assert service.error_of(service.administer(path, "POST", token="secret-of-ron")) == (403, "forbidden")
    assert service.store.group("g").pending == 1
    assert service.administer(f"{path}?group=other", "POST").json() == {"device_id": "cam", "deleted": {}}
    assert service.administer(path, "POST").json() == {"device_id": "cam", "deleted": {"g": 1}}
    assert service.store.group("g").pending == 0
    assert service.error_of(service.administer(f"{path}?group=x", "POST")) == (404, "not_found")
    assert service.error_of(service.administer("/v1/admin/devices/x/delete-samples", "POST")) == (404, "not_found")
