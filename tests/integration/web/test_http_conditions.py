"""What the web process says and takes about conditions: whose statistics a group uses, worlds of samples."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from torch import nn

from cema.cloud.adapt import create_adapter
from cema.cloud.methods import EDGE_OWNED, METHODS
from cema.config import GroupConfig
from cema.wire.messages import GroupStatus


def stats_owner(service: Any) -> str:
    return msgspec.json.decode(service.call("/v1/groups/g").data, type=GroupStatus).stats_owner


@pytest.mark.parametrize(
    ("method", "owner"),
    [("cema", "edge"), ("cema-lite", "edge"), ("cema-paper", "cloud"), ("bn", "cloud"), ("source", "cloud")],
)
def test_a_group_says_whose_statistics_its_method_uses(service: Any, method: str, owner: str) -> None:
    assert stats_owner(service) == "cloud", "the store has the group, the configuration does not"
    service.config.groups["g"] = GroupConfig(bundle="b", edge_model="m", method=method)
    assert stats_owner(service) == owner
    assert service.call("/v1/groups/g").json()["stats_owner"] == owner, "said even if it is the default"


def test_the_list_of_methods_whose_devices_measure_is_what_their_adapters_say() -> None:
    made = {name: create_adapter(name, nn.BatchNorm2d(1), nn.BatchNorm2d(1), {}) for name in METHODS}
    assert {name for name, adapter in made.items() if adapter.stats_owner == "edge"} == EDGE_OWNED


def test_a_sample_of_an_impossible_world_is_refused_and_the_rest_is_kept(service: Any) -> None:
    worlds = [-1, (1 << 53) + 1, 1 << 53]
    samples = [service.sample(number, domain=domain) for number, domain in enumerate(worlds)]
    receipt = service.upload(service.batch(*samples, service.sample(3))).json()
    assert receipt["accepted"] == 2
    assert [(int(r["sample_id"], 16), r["code"]) for r in receipt["rejected"]] == [
        (0, "message_invalid"), (1, "message_invalid"),
    ]  # fmt: skip
    assert all("domain" in r["message"] for r in receipt["rejected"])
    kept = service.store.pending("g", 9)
    assert [(each.device_id, each.domain) for each in kept] == [("cam", 1 << 53), ("cam", 0)]
    again = service.upload(service.batch(*samples[:2])).json()
    assert (again["accepted"], again["duplicates"], len(again["rejected"])) == (0, 0, 2)


@pytest.mark.parametrize("domain", [(1 << 64) - 1, -(1 << 63)])
def test_worlds_beyond_what_a_database_holds_are_refused_as_well(service: Any, domain: int) -> None:
    receipt = service.upload(service.batch(service.sample(1, domain=domain), service.sample(2, domain=5))).json()
    assert (receipt["accepted"], [r["code"] for r in receipt["rejected"]]) == (1, ["message_invalid"])


@pytest.mark.parametrize("domain", ["7", 7.5, None])
def test_a_world_that_is_no_number_breaks_the_protocol(service: Any, domain: Any) -> None:
    assert service.error_of(service.upload(service.batch(service.sample(1, domain=domain)))) == (400, "message_invalid")
    assert service.store.group("g").pending == 0
