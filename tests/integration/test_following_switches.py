"""Who says whether a device follows its own stream: its configuration, and the cloud, even when out of reach."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cema.config import RuntimeConfig, StatisticsConfig
from cema.edge.session import EdgeSession
from cema.edge.slots import StateFolder
from cema.errors import BundleError, StorageError
from cema.types import Prediction, Uint8Array

NOWHERE = "http://127.0.0.1:1"
ON, AUTO = StatisticsConfig(follow="on"), StatisticsConfig()


@pytest.fixture
def owned_by(own: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let the cloud say whose statistics the group's method uses."""
    said, real = {"owner": "cloud"}, own.cloud.answer_get

    def answer_get(path: str) -> Any:
        status, headers, body = real(path)
        if path == "/v1/groups/g":
            body = json.dumps({**json.loads(body), "stats_owner": said["owner"]}).encode()
        return status, headers, body

    monkeypatch.setattr(own.cloud, "answer_get", answer_get)
    return lambda owner: said.update(owner=owner)


def by_source(device: Any, images: Uint8Array) -> np.ndarray:
    session = EdgeSession(device.bundle, device.bundle.source_parameters(), 0, threads=1)
    return session.predict(images).confidence_B


def assert_source(device: Any, predictions: list[Prediction], images: Uint8Array) -> None:
    assert {each.stats_revision for each in predictions} == {0}
    np.testing.assert_allclose([each.probability for each in predictions], by_source(device, images), rtol=1e-5)


def test_auto_follows_what_the_cloud_says_and_remembers_it_over_a_restart(
    own: Any, owned_by: Callable[[str], None], pale: Uint8Array
) -> None:
    owned_by("edge")
    agent = own.start(statistics=AUTO)
    own.eventually(lambda: agent._updater.following)
    assert {each.stats_revision for each in agent.predict(list(pale[:16]))} == {1}
    agent.close()
    offline = own.start(url=NOWHERE, statistics=AUTO)
    assert {each.stats_revision for each in offline.predict(list(pale[:16]))} == {1}
    offline.close()
    owned_by("cloud")
    again = own.start(statistics=AUTO)
    own.eventually(lambda: not again._updater.following)
    predictions = again.predict(list(pale[:16]))
    assert_source(own, predictions, pale[:16])


def test_when_the_group_changes_its_method_a_running_device_goes_back_to_the_clouds_statistics(
    own: Any, owned_by: Callable[[str], None], pale: Uint8Array
) -> None:
    owned_by("edge")
    agent = own.start(statistics=AUTO)
    own.eventually(lambda: agent._updater.following)
    agent.predict(list(pale[:16]))
    owned_by("cloud")
    own.publish(1, parameters=own.bundle.source_parameters())  # ends the long poll
    own.eventually(lambda: (agent.status()["version"], agent.status()["stats_revision"]) == (1, 0))
    assert not agent._updater.following
    predictions = agent.predict(list(pale[:16]))
    assert {each.version for each in predictions} == {1}
    assert_source(own, predictions, pale[:16])


def test_in_another_group_the_word_of_the_old_one_does_not_count(
    own: Any, owned_by: Callable[[str], None], pale: Uint8Array
) -> None:
    owned_by("edge")
    agent = own.start(statistics=AUTO)
    own.eventually(lambda: agent._updater.following)
    agent.close()
    moved = own.start(group="h", url=NOWHERE, statistics=AUTO)
    assert {each.stats_revision for each in moved.predict(list(pale[:16]))} == {0}


def test_the_clouds_switch_puts_statistics_aside_and_on_again_takes_them_up(own: Any, pale: Uint8Array) -> None:
    agent = own.start(statistics=ON)
    agent.predict(list(pale[:16]))
    own.cloud.adaptation = "off"
    own.publish(1)  # ends the long poll
    own.eventually(lambda: (agent.status()["adaptation"], agent.status()["stats_revision"]) == ("off", 0))
    predictions = agent.predict(list(pale[:16]))
    assert {(each.version, each.stats_revision, each.selected) for each in predictions} == {(0, 0, False)}
    assert_source(own, predictions, pale[:16])
    agent._updater.set_adaptation("on")
    assert agent.predict(list(pale[:1]))[0].stats_revision >= 1


def test_the_cloud_is_obeyed_while_nothing_can_be_written(
    own: Any, pale: Uint8Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, refused = own.start(bundle=own.bundle, url=NOWHERE, statistics=AUTO), []

    def full(folder: StateFolder, name: str, data: bytes) -> None:
        refused.append(name)
        raise StorageError("expected to write, got: no space left on device")

    monkeypatch.setattr(StateFolder, "_replace", full)
    agent._updater.set_stats_owner("edge")
    assert {each.stats_revision for each in agent.predict(list(pale[:16]))} == {1}
    agent._updater.set_adaptation("off")
    predictions = agent.predict(list(pale[:16]))
    assert {(each.stats_revision, each.selected) for each in predictions} == {(0, False)}
    assert len(refused) == 2
    monkeypatch.undo()
    agent._updater.set_adaptation("off")
    agent.close()
    again = own.start(bundle=own.bundle, url=NOWHERE, statistics=AUTO)
    assert again.status()["adaptation"] == "off", "remembered as soon as it can be"


def test_a_switch_that_could_not_be_obeyed_is_obeyed_at_the_clouds_next_word(
    own: Any, pale: Uint8Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = own.start(statistics=AUTO)
    own.publish(1)
    own.eventually(lambda: agent.status()["version"] == 1)
    agent.close()
    agent = own.start(url=NOWHERE, statistics=AUTO)

    def no_room(session: EdgeSession) -> None:
        raise BundleError("expected room for another session, got none")

    monkeypatch.setattr(EdgeSession, "smoke_test", no_room)
    with pytest.raises(BundleError):
        agent._updater.set_adaptation("off")
    assert {each.version for each in agent.predict(list(pale[:16]))} == {1}, "the last good one stays"
    monkeypatch.undo()
    agent._updater.set_adaptation("off")
    assert {each.version for each in agent.predict(list(pale[:16]))} == {0}


def test_switched_off_on_the_device_there_are_neither_statistics_nor_weights(own: Any, pale: Uint8Array) -> None:
    agent = own.start(statistics=ON)
    own.publish(1)
    own.eventually(lambda: agent.status()["version"] == 1)
    agent.close()
    off = own.start(statistics=ON, runtime=RuntimeConfig(adaptation="off", threads=1))
    predictions = off.predict(list(pale[:16]))
    assert {(each.version, each.stats_revision) for each in predictions} == {(0, 0)}
    assert_source(own, predictions, pale[:16])


def test_what_one_model_answered_says_nothing_of_anothers_classes_nor_of_those_before_a_pause(
    own: Any, pale: Uint8Array
) -> None:
    """A bundle with as many classes may have them in another order."""
    agent = own.start(bundle=own.bundle, url=NOWHERE, statistics=StatisticsConfig(follow="on", class_prior=True))
    follower, session = agent._follower, agent._updater.session
    answers = session.predict(pale[:16])
    certain_BK = np.eye(10, dtype=np.float32)[np.full(64, 3)]
    follower.note(session.fingerprint, certain_BK, [3] * 64)
    assert follower.narrow
    assert follower.correct(session.fingerprint, answers) is not answers
    assert follower.correct("another model", answers) is answers
    agent._updater.set_adaptation("off")
    follower.note(session.fingerprint, certain_BK[:1], [3])
    agent._updater.set_adaptation("on")
    assert follower.correct(session.fingerprint, answers) is answers
