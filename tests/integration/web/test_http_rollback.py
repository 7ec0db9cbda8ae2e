"""A rollback over real HTTP: who may ask for it, what devices get, and what they never take again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from cema.cloud.keys import signing_key
from cema.config import DeviceConfig, RuntimeConfig, UplinkConfig
from cema.edge import EdgeAgent
from cema.edge.session import EdgeSession
from cema.errors import UpdateContentError
from cema.types import NormParameters
from cema.wire import signing
from cema.wire.bundle import Bundle, encode_bundle
from cema.wire.difference import apply_difference, update_base
from cema.wire.messages import UpdateManifest
from cema.wire.update import Update, encode_update, open_update

ROLLBACK = "/v1/admin/groups/g/rollback?to={}"
IMAGES = list(np.random.default_rng(5).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8))
QUICK = UplinkConfig(max_latency_s=0.05, heartbeat_s=0.2, backoff_min_s=0.01, backoff_max_s=0.05, poll_wait_s=5.0)


class Fleet:
    """Group g with a bundle that runs, and three signed versions."""

    def __init__(self, service: Any, bundle: Bundle, folder: Path) -> None:
        self.service, self.bundle, self.folder = service, bundle, folder
        self.agents: list[EdgeAgent] = []
        service.store.put_group("g", bundle.manifest.fingerprint, service.blobs.put(encode_bundle(bundle)), "on", 1)
        self.sent = {version: self.publish(version) for version in (1, 2, 3)}

    def parameters(self, version: int) -> NormParameters:
        return {n: v * np.float32(1 + version / 10) for n, v in self.bundle.source_parameters().items()}

    def publish(self, version: int) -> bytes:
        manifest = UpdateManifest(
            group="g", version=version, fingerprint=self.bundle.manifest.fingerprint, method="m", created_at_ms=1,
            encoding="float16", domain=7 if version == 1 else msgspec.UNSET,
        )  # fmt: skip
        data = encode_update(manifest, self.parameters(version))
        assert self.service.publish(data) == version
        return data

    def back(self, to: object, **who: Any) -> Any:
        return self.service.administer(ROLLBACK.format(to), "POST", **who)

    @property
    def key(self) -> str:
        return signing.public_key(signing_key(self.service.config))

    def fetched(self, version: int) -> Update:
        answer = self.service.call(f"/v1/groups/g/updates/{version}")
        return open_update(answer.data, self.bundle.manifest, signature=answer.headers["cema-signature"], key=self.key)

    def device(self) -> EdgeAgent:
        agent = EdgeAgent(DeviceConfig(
            url=self.service.url, group="g", device_id="cam", token="secret-of-cam", public_key=self.key,
            state_dir=str(self.folder / "state"), uplink=QUICK, runtime=RuntimeConfig(threads=1),
        ))  # fmt: skip
        self.agents.append(agent)
        return agent


@pytest.fixture
def server_settings() -> dict[str, Any]:
    return {"max_batch_samples": 64}


@pytest.fixture
def fleet(service: Any, tiny_bundle: Bundle, tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(service, tiny_bundle, tmp_path)
    yield made
    for agent in made.agents:
        agent.close()


def eventually(condition: Callable[[], object]) -> None:
    done = threading.Event()
    for _ in range(2000):
        if condition():
            return
        done.wait(0.01)
    raise AssertionError("did not happen")


def running(agent: EdgeAgent) -> int:
    return agent.predict(IMAGES[:1])[0].version


def answers(agent: EdgeAgent) -> list[float]:
    return [said.probability for said in agent.predict(IMAGES)]


def said_with(fleet: Fleet, parameters: NormParameters) -> list[float]:
    """The answers of a device with these parameters."""
    return EdgeSession(fleet.bundle, parameters, 0, threads=1).predict(np.stack(IMAGES)).confidence_B.tolist()


def test_an_operator_publishes_an_old_version_as_a_new_and_signed_one(fleet: Fleet) -> None:
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


def test_zero_is_the_source_to_the_bit_and_for_every_world(fleet: Fleet) -> None:
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
def test_nobody_but_an_operator_takes_a_version_back(fleet: Fleet, token: str | None, status: int) -> None:
    before = fleet.service.store.groups()
    assert fleet.service.error_of(fleet.back(1, token=token))[0] == status
    assert fleet.service.store.groups() == before


@pytest.mark.parametrize(
    ("to", "expected"),
    [(3, (409, "conflict")), (9, (404, "not_found")), (-1, (422, "message_invalid")), ("x", (422, "message_invalid"))],
)
def test_what_is_no_earlier_version_is_refused(fleet: Fleet, to: object, expected: tuple[int, str]) -> None:
    assert fleet.service.error_of(fleet.back(to)) == expected
    assert fleet.service.store.group("g").latest_version == 3


def test_an_unknown_group_is_refused(fleet: Fleet) -> None:
    answer = fleet.service.administer("/v1/admin/groups/x/rollback?to=1", "POST")
    assert fleet.service.error_of(answer) == (404, "not_found")


@pytest.mark.parametrize("have", [2, 3])
def test_a_rollback_travels_as_a_difference_to_what_the_device_has(fleet: Fleet, have: int) -> None:
    fleet.back(1)
    answer = fleet.service.call(f"/v1/groups/g/updates/latest?after={have}&from={have}")
    assert answer.headers["cema-update-base"] == str(have)
    base = update_base(fleet.sent[have], fleet.bundle.manifest)
    assert base is not None
    rebuilt = apply_difference(answer.data, base)
    assert len(answer.data) < len(rebuilt) / 2
    update = open_update(rebuilt, fleet.bundle.manifest, signature=answer.headers["cema-signature"], key=fleet.key)
    assert (update.manifest.version, update.manifest.rollback_of) == (4, 3)


def test_the_source_comes_whole_also_to_those_who_take_differences(fleet: Fleet) -> None:
    fleet.back(0)
    answer = fleet.service.call("/v1/groups/g/updates/latest?after=3&from=3")
    assert "cema-update-base" not in answer.headers
    assert open_update(answer.data, fleet.bundle.manifest).manifest.version == 4


def test_a_version_after_the_rollback_travels_as_a_difference_to_it(fleet: Fleet) -> None:
    fleet.back(1)
    rolled_back = fleet.service.blobs.get(fleet.service.store.update("g", 4).blob)
    data = fleet.publish(5)
    answer = fleet.service.call("/v1/groups/g/updates/latest?after=4&from=4")
    base = update_base(rolled_back, fleet.bundle.manifest)
    assert base is not None
    assert apply_difference(answer.data, base) == data


def test_a_real_device_goes_back_stays_there_and_takes_what_comes_next(fleet: Fleet) -> None:
    agent = fleet.device()
    eventually(lambda: running(agent) == 3)
    fleet.back(0)
    eventually(lambda: running(agent) == 4)
    assert answers(agent) == said_with(fleet, fleet.bundle.source_parameters())
    fleet.back(2)
    eventually(lambda: running(agent) == 5)
    assert answers(agent) == said_with(fleet, fleet.fetched(2).parameters)
    assert answers(agent) != said_with(fleet, fleet.bundle.source_parameters())
    agent.close()
    again = fleet.device()
    assert running(again) == 5, "after a restart, too"
    fleet.publish(6)
    eventually(lambda: running(again) == 6)
    assert again.status()["updates_refused"] == 0


def test_what_was_taken_back_and_an_old_rollback_stay_refused(fleet: Fleet) -> None:
    agent = fleet.device()
    fleet.back(1)
    fleet.publish(5)
    eventually(lambda: running(agent) == 5)
    store, blobs = fleet.service.store, fleet.service.blobs
    for version in (1, 2, 3, 4):  # 4 is the rollback, signed and genuine
        row = store.update("g", version)
        with pytest.raises(UpdateContentError, match="expected a version above 5"):
            agent._updater.apply(blobs.get(row.blob), row.signature)
    assert running(agent) == 5
