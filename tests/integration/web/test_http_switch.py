"""The kill switch over real HTTP, with real devices: source parameters, no uploads, remembered on both sides."""

from __future__ import annotations

from typing import Any

import pytest

from cema.cloud.registry import register_groups
from cema.config import GroupConfig, SelectionConfig
from cema.edge import EdgeAgent

GROUP, DEVICE = "/v1/admin/groups/g/{}", "/v1/admin/devices/cam/{}"
SWITCHES = pytest.mark.parametrize("switch", [GROUP, DEVICE], ids=["group", "device"])
EVERYTHING = SelectionConfig(enabled=False)


def press(fleet: Any, switch: str, what: str) -> dict[str, Any]:
    answer = fleet.service.administer(switch.format(what), "POST")
    assert answer.status == 200
    return dict(answer.json())


def version(fleet: Any, agent: EdgeAgent) -> int:
    return agent.predict(fleet.images[:1])[0].version


def uploaded(fleet: Any) -> int:
    return int(fleet.service.store.group("g").pending)


@SWITCHES
def test_what_is_switched_off_runs_the_source_and_uploads_nothing_until_it_is_switched_on(
    fleet: Any, switch: str
) -> None:
    agent = fleet.device(selection=EVERYTHING)
    fleet.eventually(lambda: version(fleet, agent) == 3)
    assert press(fleet, switch, "pause")["paused"] == "1970-01-01T00:00:01+00:00"
    fleet.eventually(lambda: agent.status()["adaptation"] == "off" and version(fleet, agent) == 0)
    assert agent.settle(20)
    before = uploaded(fleet)
    predictions = agent.predict(fleet.images)
    assert {(said.version, said.selected) for said in predictions} == {(0, False)}
    assert [said.probability for said in predictions] == fleet.said_with(fleet.bundle.source_parameters())
    assert press(fleet, switch, "resume")["paused"] is None
    fleet.eventually(lambda: version(fleet, agent) == 3)
    assert uploaded(fleet) >= before
    agent.predict(fleet.images)
    assert agent.settle(20)
    assert uploaded(fleet) >= before + len(fleet.images)


@SWITCHES
def test_the_switch_is_remembered_by_a_device_that_restarts_without_a_cloud(fleet: Any, switch: str) -> None:
    agent = fleet.device()
    fleet.eventually(lambda: version(fleet, agent) == 3)
    press(fleet, switch, "pause")
    fleet.eventually(lambda: agent.status()["adaptation"] == "off")
    agent.close()
    again = fleet.device(url="http://127.0.0.1:1")
    assert version(fleet, again) == 0
    assert again.status()["adaptation"] == "off"


def test_the_switch_is_remembered_by_a_cloud_that_restarts(fleet: Any) -> None:
    press(fleet, GROUP, "pause")
    bundle = fleet.folder / "g.bundle"
    bundle.write_bytes(fleet.service.blobs.get(fleet.service.store.group("g").bundle_blob))
    fleet.service.config.groups["g"] = GroupConfig(bundle=str(bundle), edge_model="digits-edge")
    register_groups(fleet.service.config, fleet.service.store, fleet.service.blobs, 5)
    assert fleet.service.call("/v1/groups/g").json()["adaptation"] == "off"
    press(fleet, GROUP, "resume")
    assert fleet.service.call("/v1/groups/g").json()["adaptation"] == "on"


def test_one_device_is_switched_off_and_the_others_go_on(fleet: Any) -> None:
    fleet.service.store.enrol("gate", "g", fleet.digest("secret-of-gate"), 1)
    press(fleet, DEVICE, "pause")
    said = {
        name: fleet.service.call("/v1/groups/g", token=f"secret-of-{name}").json()["adaptation"]
        for name in ("cam", "gate")
    }
    assert said == {"cam": "off", "gate": "on"}
    listed = fleet.service.administer("/v1/admin/devices", token="secret-of-ron").json()["devices"]
    assert {row["device_id"]: row["paused"] is not None for row in listed} == {"cam": True, "gate": False}


def test_readers_see_that_a_group_is_paused(fleet: Any) -> None:
    press(fleet, GROUP, "pause")
    shown = fleet.service.administer("/v1/admin/groups/g", token="secret-of-ron").json()
    assert (shown["adaptation"], shown["paused"]) == ("off", "1970-01-01T00:00:01+00:00")
    assert fleet.service.metrics()["cema_adaptation,group=g"] == 0


def test_a_device_that_is_off_takes_the_rollback_that_was_made_meanwhile(fleet: Any) -> None:
    agent = fleet.device()
    fleet.eventually(lambda: version(fleet, agent) == 3)
    press(fleet, GROUP, "pause")
    fleet.eventually(lambda: version(fleet, agent) == 0)
    fleet.back(1)
    press(fleet, GROUP, "resume")
    fleet.eventually(lambda: version(fleet, agent) == 4)


@pytest.mark.parametrize("path", ["/v1/admin/groups/x/{}", "/v1/admin/devices/x/{}"])
@pytest.mark.parametrize("what", ["pause", "resume"])
def test_what_is_not_there_cannot_be_switched(fleet: Any, path: str, what: str) -> None:
    answer = fleet.service.administer(path.format(what), "POST")
    assert fleet.service.error_of(answer) == (404, "not_found")
