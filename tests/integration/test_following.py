"""A device follows its own stream, with the cloud out of reach: when it measures, what it answers, how it ends."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from cema.cloud.models import digits
from cema.config import RuntimeConfig, StatisticsConfig
from cema.edge import EdgeAgent
from cema.edge.follower import TOGETHER
from cema.edge.measuring import MeasuringSession
from cema.edge.mixed import MixedStatistics
from cema.edge.session import EdgeSession
from cema.types import Prediction, Uint8Array
from cema.wire.bundle import decode_bundle, encode_bundle, fingerprint

NOWHERE = "http://127.0.0.1:1"


@pytest.fixture
def offline(device: Any, digits_bundle: bytes) -> Callable[..., EdgeAgent]:
    """Start an agent that follows, by itself, with changes to ``[statistics]`` or another part. Its answers are the
    model's, not weighed by the classes that show."""
    device.bundle = decode_bundle(digits_bundle)

    def start(bundle: Any = None, **changes: Any) -> EdgeAgent:
        parts = {key: changes.pop(key) for key in ("runtime", "selection") if key in changes}
        statistics = StatisticsConfig(**{"follow": "on", "class_prior": False, "duty": 1.0, **changes})
        agent: EdgeAgent = device.start(bundle=bundle or device.bundle, url=NOWHERE, statistics=statistics, **parts)
        return agent

    return start


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """In which thread each measurement was made."""
    found: list[str] = []
    real = MeasuringSession.measure

    def noted(session: MeasuringSession, *arguments: Any) -> Any:
        found.append(threading.current_thread().name)
        return real(session, *arguments)

    monkeypatch.setattr(MeasuringSession, "measure", noted)
    return found


def revisions(predictions: list[Prediction]) -> set[int]:
    return {each.stats_revision for each in predictions}


def probabilities(predictions: list[Prediction]) -> np.ndarray:
    return np.array([each.probability for each in predictions])


def by_source(device: Any, images: Uint8Array) -> np.ndarray:
    session = EdgeSession(device.bundle, device.bundle.source_parameters(), 0, threads=1)
    return session.predict(images).confidence_B


@pytest.mark.parametrize("count", [TOGETHER, 32])
def test_the_first_batch_is_answered_again_by_statistics_that_know_it(
    device: Any, offline: Callable[..., EdgeAgent], pale: Uint8Array, measured: list[str], count: int
) -> None:
    agent = offline()
    predictions = agent.predict(list(pale[:count]))
    assert revisions(predictions) == {1}
    assert {each.version for each in predictions} == {0}
    assert np.abs(probabilities(predictions) - by_source(device, pale[:count])).max() > 0.1
    assert set(measured) == {threading.current_thread().name}
    assert agent.status()["stats_revision"] == 1
    assert agent.status()["samples_seen"] == count


def test_its_own_statistics_make_far_pictures_readable(
    device: Any, offline: Callable[..., EdgeAgent], pale: Uint8Array
) -> None:
    labels = digits.digit_images()[1][digits.split().stream][:320]
    session = EdgeSession(device.bundle, device.bundle.source_parameters(), 0)
    agent = offline()
    found = [each.label for start in range(0, 320, 32) for each in agent.predict(list(pale[start : start + 32]))]
    blind = (session.predict(pale[:320]).label_B == labels).mean()
    assert (np.array(found) == labels).mean() > blind + 0.2


@pytest.mark.parametrize("batch", [1, TOGETHER - 1])
def test_small_batches_are_measured_in_the_background(
    device: Any, offline: Callable[..., EdgeAgent], pale: Uint8Array, measured: list[str], batch: int
) -> None:
    agent = offline()
    first = agent.predict(list(pale[:batch]))
    assert revisions(first) == {0}
    np.testing.assert_allclose(probabilities(first), by_source(device, pale[:batch]), rtol=1e-5)
    device.eventually(lambda: agent.status()["stats_revision"] == 1)
    assert revisions(agent.predict(list(pale[:batch]))) == {1}
    agent.predict(list(pale[20 : 20 + batch]))
    device.eventually(lambda: int(str(agent.status()["stats_revision"])) >= 2)
    assert set(measured) == {"cema-follower"}


def test_first_answers_are_left_alone_if_the_device_shall_not_answer_again(
    device: Any, offline: Callable[..., EdgeAgent], pale: Uint8Array, measured: list[str]
) -> None:
    agent = offline(answer_again=False)
    first = agent.predict(list(pale[:16]))
    assert revisions(first) == {0}
    np.testing.assert_allclose(probabilities(first), by_source(device, pale[:16]), rtol=1e-5)
    device.eventually(lambda: agent.status()["stats_revision"] == 1)
    again = agent.predict(list(pale[:16]))
    assert np.abs(probabilities(again) - probabilities(first)).max() > 0.1
    assert set(measured) == {"cema-follower"}


def test_the_first_batch_of_another_world_is_answered_again(
    device: Any, offline: Callable[..., EdgeAgent], clean: Uint8Array, pale: Uint8Array, measured: list[str]
) -> None:
    agent = offline()
    for start in range(0, 160, 16):
        agent.predict(list(clean[start : start + 16]))
    device.settle(agent)
    measured.clear()
    old = agent._updater.session
    fresh = agent.predict(list(pale[:16]))
    assert revisions(fresh) == {old.revision + 1}
    assert set(measured) == {threading.current_thread().name}
    assert np.abs(probabilities(fresh) - old.predict(pale[:16]).confidence_B).max() > 0.1


def test_a_world_that_comes_back_is_recognised_and_its_first_batch_answered_again(
    device: Any, offline: Callable[..., EdgeAgent], clean: Uint8Array, pale: Uint8Array
) -> None:
    agent, domains = offline(), []
    for world in (clean, pale, clean, pale):
        revision = agent._updater.session.revision
        first = agent.predict(list(world[:16]))
        assert revisions(first) == {revision + 1}
        for start in range(16, 160, 16):
            agent.predict(list(world[start : start + 16]))
        device.settle(agent)
        domains.append(agent._follower.domain)
    assert domains[:2] == domains[2:]
    assert domains[0] != domains[1]


def test_the_first_pictures_of_a_world_that_comes_back_are_remembered_with_labels_that_are_good_there(
    device: Any, offline: Callable[..., EdgeAgent], clean: Uint8Array, pale: Uint8Array
) -> None:
    agent, right = offline(), digits.digit_images()[1][digits.split().stream][160:192]
    for world in (pale, clean):
        for start in range(0, 160, 16):
            agent.predict(list(world[start : start + 16]))
        device.settle(agent)
    by_the_other = agent._updater.session.predict(pale[160:192]).label_B
    agent.predict(list(pale[160:192]))
    own = agent._follower._own
    assert own is not None
    remembered = np.array([label for label, _ in own._one.remembered()[-32:]])
    assert (remembered == right).mean() > 0.9 > (by_the_other == right).mean() + 0.2


@pytest.fixture
def resting(offline: Callable[..., EdgeAgent], clean: Uint8Array, monkeypatch: pytest.MonkeyPatch) -> EdgeAgent:
    """A device that knows its world, may measure a tenth of the time, and whose measurements take one second of a clock
    that stands still else (``agent.now_s``)."""
    agent: Any = offline(duty=0.1)
    agent.now_s, real = 0.0, MixedStatistics.refresh

    def slow(own: MixedStatistics, *weights: Any) -> None:
        real(own, *weights)
        agent.now_s += 1.0

    monkeypatch.setattr(MixedStatistics, "refresh", slow)
    monkeypatch.setattr(agent._follower, "_clock", lambda: agent.now_s)
    show(agent, clean, 10)
    assert agent._follower._not_before_s == pytest.approx(agent.now_s + 9.0)
    return agent  # type: ignore[no-any-return]


def show(agent: EdgeAgent, images: Uint8Array, batches: int, batch: int = 64) -> int:
    """Predict so many batches; returns the revision afterwards, when all has been taken in."""
    for _ in range(batches):
        agent.predict(list(images[:batch]))
        deadline_s = time.monotonic() + 20
        while agent._follower._waiting or not agent._follower._owner.acquire(blocking=False):
            assert time.monotonic() < deadline_s
            time.sleep(0.001)
        agent._follower._owner.release()
    return int(str(agent.status()["stats_revision"]))


def test_a_device_measures_no_larger_share_of_its_time_than_it_may(resting: Any, clean: Uint8Array) -> None:
    before = resting.status()["stats_revision"]
    assert show(resting, clean, 20) == before
    resting.now_s += 8.9
    assert show(resting, clean, 20) == before
    resting.now_s += 0.2
    assert show(resting, clean, 20) == before + 1


def test_a_look_that_moved_less_than_to_another_world_is_measured_too(resting: Any, clean: Uint8Array) -> None:
    before, domain = resting.status()["stats_revision"], resting._follower.domain
    darker = (clean * 0.9).astype(np.uint8)
    assert show(resting, darker, 3) > before
    assert resting._follower.domain == domain, "it is the same world"


def test_another_world_is_measured_whatever_was_spent_on_the_one_before(
    resting: Any, pale: Uint8Array, measured: list[str]
) -> None:
    before = resting.status()["stats_revision"]
    assert revisions(resting.predict(list(pale[:64]))) == {before + 1}


@pytest.mark.parametrize("why", ["switched off", "cloud not heard", "no adaptation", "bundle without statistics"])
def test_a_device_that_does_not_follow_never_measures(
    device: Any, offline: Callable[..., EdgeAgent], pale: Uint8Array, measured: list[str], tiny_bundle: Any, why: str
) -> None:
    agent = {
        "switched off": lambda: offline(follow="off"),
        "cloud not heard": lambda: offline(follow="auto"),
        "no adaptation": lambda: offline(runtime=RuntimeConfig(adaptation="off", threads=1)),
        "bundle without statistics": lambda: offline(bundle=tiny_bundle),
    }[why]()
    for count in (1, 7, 16, 64):
        predictions = agent.predict(list(pale[:count]))
        assert revisions(predictions) == {0}
    if why != "bundle without statistics":
        np.testing.assert_allclose(probabilities(predictions), by_source(device, pale[:64]), rtol=1e-5)
    agent.close()
    assert measured == []
    assert agent.status()["stats_revision"] == 0


def test_a_statistics_graph_that_does_not_run_here_costs_no_answer(
    device: Any, offline: Callable[..., EdgeAgent], clean: Uint8Array
) -> None:
    broken, manifest = b"of an ONNX Runtime to come", device.bundle.manifest
    content = device.bundle.model, device.bundle.norm, manifest.preprocess, manifest.classes, manifest.norm, broken
    changed = msgspec.structs.replace(manifest, fingerprint=fingerprint(*content))
    bundle = replace(device.bundle, manifest=changed, statistics=broken)
    agent = offline(bundle=decode_bundle(encode_bundle(bundle)))
    predictions = agent.predict(list(clean[:16]))
    np.testing.assert_allclose(probabilities(predictions), by_source(device, clean[:16]), rtol=1e-5)


def test_predict_touches_neither_disk_nor_network_while_it_measures(
    offline: Callable[..., EdgeAgent], pale: Uint8Array, measured: list[str]
) -> None:
    agent = offline()
    touched: list[str] = []
    watching, me = [True], threading.get_ident()

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if watching[0] and threading.get_ident() == me and event.split(".")[0] in ("open", "os", "socket", "sqlite3"):
            touched.append(event)

    sys.addaudithook(hook)
    assert revisions(agent.predict(list(pale[:16]))) == {1}
    watching[0] = False
    assert measured
    assert touched == []


def ours() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("cema-")]


@pytest.mark.parametrize("batches", [(), (16,), (1,), (16, 1, 1)])
def test_close_is_prompt_and_leaves_no_thread(
    offline: Callable[..., EdgeAgent], pale: Uint8Array, batches: tuple[int, ...]
) -> None:
    agent = offline()
    for count in batches:
        agent.predict(list(pale[:count]))
    assert "cema-follower" in ours()
    started_s = time.perf_counter()
    agent.close()
    assert time.perf_counter() - started_s < 3, "nothing waits for its time-out"
    assert ours() == []


def test_a_look_that_has_just_moved_may_be_another_world_and_is_not_measured_yet(
    resting: Any, clean: Uint8Array
) -> None:
    before, now_s, paused = show(resting, clean, 20), resting.now_s, []
    for _ in range(4):
        show(resting, (clean * 0.9).astype(np.uint8), 1, batch=8)
        paused.append(resting._follower._not_before_s > now_s)
    assert paused[:2] == [True, True], "sixteen pictures are not enough to be sure of the last sixteen"
    assert resting.status()["stats_revision"] == before + 1
