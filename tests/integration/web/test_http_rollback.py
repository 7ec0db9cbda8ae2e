"""A rollback over real HTTP: who may ask for it, what devices get, and what they never take again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cema.config import UplinkConfig
from cema.edge import EdgeAgent
from cema.errors import UpdateContentError
from cema.wire.difference import apply_difference, update_base
from cema.wire.update import open_update

ROLLBACK = "/v1/admin/groups/g/rollback?to={}"
IMAGES = list(np.random.default_rng(5).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8))
QUICK = UplinkConfig(max_latency_s=0.05, heartbeat_s=0.2, backoff_min_s=0.01, backoff_max_s=0.05, poll_wait_s=5.0)


@pytest.fixture
def server_settings() -> dict[str, Any]:
    return {"max_batch_samples": 64}


def running(agent: EdgeAgent) -> int:
    return agent.predict(IMAGES[:1])[0].version


def answers(agent: EdgeAgent) -> list[float]:
    return [said.probability for said in agent.predict(IMAGES)]


def test_an_operator_publishes_an_old_version_as_a_new_and_signed_one(fleet: Any) -> None:
    answer = fleet.back(1)
    assert answer.status == 200
    told = answer.json()
    assert (told["group"], told["version"], told["rollback_of"], told["restores"]) == ("g", 4, 3, 1)
    made, old = fleet.fetched(4), fleet.fetched(1)
    assert (made.manifest.version, made.manifest.rollback_of, made.manifest.domain) == (4, 3, 7)
    assert made.manifest.created_at_ms == fleet.service.clock_ms[0]
    for name, value in old.parameters.items():
        np.testing.assert_array_equal(made.parameters[name], value)
    listed = fleet.service.administer("/v1/admin/groups/g/updates", token="secret-of-ron").json()["updates"]
    assert [(row["version"], row["rollback_of"], row["restores"]) for row in listed][:2] == [(4, 3, 1), (3, None, None)]


def test_zero_is_the_source_to_the_bit_and_for_every_world(fleet: Any) -> None:
    assert fleet.back(0).status == 200
    made = fleet.fetched(4)
    assert (made.manifest.rollback_of, made.manifest.encoding) == (3, "float32")
    assert not isinstance(made.manifest.domain, int)
    for name, value in fleet.bundle.source_parameters().items():
        np.testing.assert_array_equal(made.parameters[name], value)


@pytest.mark.parametrize(
    ("token", "status"),
    [(None, 401), ("guess", 401), ("secret-of-ron", 403), ("secret-of-cam", 403)],
    ids=["nobody", "guesser", "reader", "device"],
)
def test_nobody_but_an_operator_takes_a_version_back(fleet: Any, token: str | None, status: int) -> None:
    before = fleet.service.store.groups()
    assert fleet.service.error_of(fleet.back(1, token=token))[0] == status
    assert fleet.service.store.groups() == before


@pytest.mark.parametrize(
    ("to", "expected"),
    [(3, (409, "conflict")), (9, (404, "not_found")), (-1, (422, "message_invalid")), ("x", (422, "message_invalid"))],
)
def test_what_is_no_earlier_version_is_refused(fleet: Any, to: object, expected: tuple[int, str]) -> None:
    assert fleet.service.error_of(fleet.back(to)) == expected
    assert fleet.service.store.group("g").latest_version == 3


def test_an_unknown_group_is_refused(fleet: Any) -> None:
    answer = fleet.service.administer("/v1/admin/groups/x/rollback?to=1", "POST")
    assert fleet.service.error_of(answer) == (404, "not_found")


@pytest.mark.parametrize("have", [2, 3])
def test_a_rollback_travels_as_a_difference_to_what_the_device_has(fleet: Any, have: int) -> None:
    fleet.back(1)
    answer = fleet.service.call(f"/v1/groups/g/updates/latest?after={have}&from={have}")
    assert answer.headers["cema-update-base"] == str(have)
    base = update_base(fleet.sent[have], fleet.bundle.manifest)
    assert base is not None
    rebuilt = apply_difference(answer.data, base)
    assert len(answer.data) < len(rebuilt) / 2
    update = open_update(rebuilt, fleet.bundle.manifest, signature=answer.headers["cema-signature"], key=fleet.key)
    assert (update.manifest.version, update.manifest.rollback_of) == (4, 3)


def test_the_source_comes_whole_also_to_those_who_take_differences(fleet: Any) -> None:
    fleet.back(0)
    answer = fleet.service.call("/v1/groups/g/updates/latest?after=3&from=3")
    assert "cema-update-base" not in answer.headers
    assert open_update(answer.data, fleet.bundle.manifest).manifest.version == 4


def test_a_version_after_the_rollback_travels_as_a_difference_to_it(fleet: Any) -> None:
    fleet.back(1)
    rolled_back = fleet.service.blobs.get(fleet.service.store.update("g", 4).blob)
    data = fleet.publish(5)
    answer = fleet.service.call("/v1/groups/g/updates/latest?after=4&from=4")
    base = update_base(rolled_back, fleet.bundle.manifest)
    assert base is not None
    assert apply_difference(answer.data, base) == data


def test_a_real_device_goes_back_stays_there_and_takes_what_comes_next(fleet: Any) -> None:
    agent = fleet.device()
    fleet.eventually(lambda: running(agent) == 3)
    fleet.back(0)
    fleet.eventually(lambda: running(agent) == 4)
    assert answers(agent) == fleet.said_with(fleet.bundle.source_parameters())
    fleet.back(2)
    fleet.eventually(lambda: running(agent) == 5)
    assert answers(agent) == fleet.said_with(fleet.fetched(2).parameters)
    assert answers(agent) != fleet.said_with(fleet.bundle.source_parameters())
    agent.close()
    again = fleet.device()
    assert running(again) == 5, "after a restart, too"
    fleet.publish(6)
    fleet.eventually(lambda: running(again) == 6)
    assert again.status()["updates_refused"] == 0


def test_what_was_taken_back_and_an_old_rollback_stay_refused(fleet: Any) -> None:
    agent = fleet.device()
    fleet.back(1)
    fleet.publish(5)
    fleet.eventually(lambda: running(agent) == 5)
    store, blobs = fleet.service.store, fleet.service.blobs
    for version in (1, 2, 3, 4):  # 4 is the rollback, signed and genuine
        row = store.update("g", version)
        with pytest.raises(UpdateContentError, match="expected a version above 5"):
            agent._updater.apply(blobs.get(row.blob), row.signature)
    assert running(agent) == 5


def test_a_rollback_in_a_cloud_whose_files_are_damaged_is_the_clouds_failure(fleet: Any) -> None:
    stored = fleet.service.store.group("g").bundle_blob
    (fleet.service.blobs._root / stored[:2] / stored).write_bytes(b"damaged")
    assert fleet.service.error_of(fleet.back(1)) == (503, "content_damaged")
    assert fleet.service.store.group("g").latest_version == 3
