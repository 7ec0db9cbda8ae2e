"""What follower, poller and ``predict`` do at the same instant, one order of events at a time: threads are held where
they would have to be caught by chance, and let go again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from torch import nn

from cema.cloud.export import build_bundle
from cema.cloud.models import digits
from cema.config import StatisticsConfig
from cema.edge import EdgeAgent
from cema.edge.counters import EdgeCounters
from cema.edge.follower import PATIENCE_S, TOGETHER, Follower, Seen
from cema.edge.mixed import MixedStatistics
from cema.edge.routing import Session
from cema.edge.session import EdgeSession
from cema.edge.updater import Updater
from cema.types import Prediction, Uint8Array
from cema.wire import signing
from cema.wire.bundle import Bundle, decode_bundle, encode_bundle
from cema.wire.messages import Preprocess

NOWHERE = "http://127.0.0.1:1"
LIMIT_S = 20.0


@pytest.fixture(scope="module")
def pictures() -> Uint8Array:
    return digits.digit_images()[0][digits.split().stream]


@pytest.fixture(scope="module")
def other_bundle() -> Bundle:
    """Another model that can measure: other names, another size."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    return build_bundle(net.eval(), name="other", preprocess=Preprocess(size=(16, 16)), classes=["a", "b", "c"])


@pytest.fixture
def start(device: Any, digits_bundle: bytes) -> Callable[..., EdgeAgent]:
    device.bundle = decode_bundle(digits_bundle)

    def started(**changes: Any) -> EdgeAgent:
        statistics = StatisticsConfig(follow="on", duty=1.0, **changes)
        agent: EdgeAgent = device.start(bundle=device.bundle, url=NOWHERE, statistics=statistics)
        return agent

    return started


def signed(device: Any, bundle: Bundle) -> tuple[bytes, str]:
    data = encode_bundle(bundle)
    return data, signing.sign(data, device.key)


def test_a_switch_that_comes_while_statistics_are_renewed_is_obeyed(
    device: Any, start: Callable[..., EdgeAgent], pictures: Uint8Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, held, go = start(), threading.Event(), threading.Event()
    real = EdgeSession.smoke_test

    def hold(session: EdgeSession) -> None:
        real(session)
        if threading.current_thread().name == "cema-follower":
            held.set()
            assert go.wait(LIMIT_S)

    monkeypatch.setattr(EdgeSession, "smoke_test", hold)
    agent.predict(list(pictures[:1]))
    assert held.wait(LIMIT_S)
    switch = threading.Thread(target=agent._updater.set_adaptation, args=("off",))
    switch.start()
    switch.join(0.5)  # it may as well wait until the session is there
    go.set()
    switch.join(LIMIT_S)
    with agent._follower._owner:  # the follower has done
        assert agent.status()["adaptation"] == "off"
        assert {each.stats_revision for each in agent.predict(list(pictures[:2]))} == {0}


def test_predict_survives_a_bundle_that_is_replaced_while_it_predicts(
    device: Any, start: Callable[..., EdgeAgent], pictures: Uint8Array, other_bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    agent, replacement = start(), [signed(device, other_bundle)]
    agent.predict(list(pictures[:16]))
    real = EdgeSession.predict

    def interrupted(session: EdgeSession, images: Uint8Array) -> Any:
        if replacement:
            agent._updater.replace_bundle(*replacement.pop())
        return real(session, images)

    monkeypatch.setattr(EdgeSession, "predict", interrupted)
    assert len(agent.predict(list(pictures[:16]))) == 16
    assert len(agent.predict(list(pictures[:16]))) == 16


def test_predict_survives_a_bundle_that_is_replaced_before_it_answers_again(
    device: Any, start: Callable[..., EdgeAgent], pictures: Uint8Array, other_bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    agent, real = start(), Follower.look

    def interrupted(follower: Follower, seen: Seen) -> bool:
        again = real(follower, seen)
        if again:
            agent._updater.replace_bundle(*signed(device, other_bundle))
        return again

    monkeypatch.setattr(Follower, "look", interrupted)
    assert len(agent.predict(list(pictures[:16]))) == 16


def test_pictures_that_have_arrived_are_taken_in_before_those_that_came_meanwhile(
    start: Callable[..., EdgeAgent], pictures: Uint8Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread predicts while the look of a batch is being taken, and finds the statistics busy."""
    agent = start()
    agent.predict(list(pictures[:16]))
    follower, fingerprint, real = agent._follower, agent._updater.fingerprint, MixedStatistics.arrive
    later = Seen(fingerprint, pictures[32:64], [0] * 32)

    def interrupted(own: MixedStatistics, images_BHWC: Uint8Array) -> bool:
        monkeypatch.setattr(MixedStatistics, "arrive", real)
        follower._leave_to_thread(later)
        return real(own, images_BHWC)

    with follower._owner:  # the background thread has to wait
        monkeypatch.setattr(MixedStatistics, "arrive", interrupted)
        monkeypatch.setattr(MixedStatistics, "asks", lambda own, count: "later")
        assert not follower._look_at_once(Seen(fingerprint, pictures[16:32], [1] * 16))
        assert [(len(seen.labels), seen.arrived) for seen in follower._waiting] == [(16, True), (32, False)]


def test_what_waits_for_a_thread_that_measures_has_bounded_pixels(
    start: Callable[..., EdgeAgent], pictures: Uint8Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, most = start(), 3 * pictures[:16].nbytes
    monkeypatch.setattr("cema.edge.follower.WAITING_BYTES", most)
    agent.predict(list(pictures[:16]))
    with agent._follower._owner:
        answered = [agent.predict(list(pictures[first : first + 16])) for first in range(0, 128, 16)]
        assert [len(each) for each in answered] == [16] * 8
        assert sum(seen.images_BHWC.nbytes for seen in agent._follower._waiting) <= most
        assert len(agent._follower._waiting) >= 2


def test_what_goes_wrong_while_pictures_are_followed_costs_no_answer(
    device: Any, start: Callable[..., EdgeAgent], pictures: Uint8Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, real = start(), MixedStatistics.arrive
    noted: list[Exception] = []  # not the last error: threads that find no cloud have theirs
    monkeypatch.setattr(EdgeCounters, "failed", lambda counters, error: noted.append(error))

    def broken(own: MixedStatistics, images_BHWC: Uint8Array) -> bool:
        raise ValueError("need at least one array to concatenate")

    monkeypatch.setattr(MixedStatistics, "arrive", broken)
    assert len(agent.predict(list(pictures[:16]))) == 16
    assert any(isinstance(error, ValueError) for error in noted)
    monkeypatch.setattr(MixedStatistics, "arrive", real)
    agent.predict(list(pictures[:16]))
    device.eventually(lambda: agent.status()["stats_revision"])


def test_a_new_bundle_is_followed_afresh(
    device: Any, start: Callable[..., EdgeAgent], pictures: Uint8Array, other_bundle: Bundle
) -> None:
    agent = start()
    agent.predict(list(pictures[:16]))
    domain = agent._follower.domain
    agent._updater.replace_bundle(*signed(device, other_bundle))
    agent._updater.renew()  # as for an update that comes before the first picture
    assert agent.status()["stats_revision"] == 0
    predictions = agent.predict(list(pictures[:16]))
    assert {each.stats_revision for each in predictions} == {1}
    assert agent._follower.domain != domain
    assert agent.classes == ["a", "b", "c"]


def test_a_bundle_that_went_and_came_back_between_two_pictures_is_followed_again(
    device: Any, start: Callable[..., EdgeAgent], pictures: Uint8Array, other_bundle: Bundle
) -> None:
    agent = start()
    agent.predict(list(pictures[:16]))
    before = agent._follower.domain
    agent._updater.replace_bundle(*signed(device, other_bundle))
    agent._updater.replace_bundle(*signed(device, device.bundle))
    assert agent.status()["stats_revision"] == 0, "the plain model"
    assert agent._follower.domain == 0, "samples say nothing of a world that this model has not seen"
    predictions = agent.predict(list(pictures[:16]))
    assert {each.stats_revision for each in predictions} == {1}
    assert agent._follower.domain != before


def test_statistics_of_a_bundle_that_has_just_been_replaced_are_not_put_on_the_new_one(
    device: Any, start: Callable[..., EdgeAgent], pictures: Uint8Array, other_bundle: Bundle
) -> None:
    agent = start()
    agent.predict(list(pictures[:16]))
    own, old = agent._follower._own, agent._updater.fingerprint
    assert own is not None
    agent._updater.replace_bundle(*signed(device, other_bundle))
    assert not agent._updater.follow(own, old)
    agent._updater.renew()
    assert len(agent.predict(list(pictures[16:32]))) == 16


def test_pictures_of_the_bundle_before_are_left_out(
    device: Any, start: Callable[..., EdgeAgent], pictures: Uint8Array, other_bundle: Bundle
) -> None:
    agent = start()
    old = agent.status()["fingerprint"]
    agent._updater.replace_bundle(*signed(device, other_bundle))
    agent.predict(list(pictures[:16]))
    before = agent.status()["stats_revision"]
    assert not agent._follower.look(Seen(str(old), np.zeros((16, 32, 32, 3), np.uint8), [0] * 16))
    assert agent.status()["stats_revision"] == before
    assert agent.status()["last_error"] is None or "cloud_unreachable" in str(agent.status()["last_error"])


def test_single_pictures_of_two_threads_at_once_are_measured_within_the_followers_patience(
    device: Any, start: Callable[..., EdgeAgent], pictures: Uint8Array
) -> None:
    agent = start()
    follower = agent._follower
    threads = [threading.Thread(target=agent.predict, args=([picture],)) for picture in pictures[:2]]
    with follower._changed:  # held where they would wake it
        for thread in threads:
            thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    device.eventually(lambda: agent.status()["stats_revision"] == 1, 6 * PATIENCE_S)


def test_statistics_are_renewed_while_a_fast_stream_goes_on(
    device: Any, start: Callable[..., EdgeAgent], pictures: Uint8Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, revisions, ended = start(), list[int](), threading.Event()
    follower, real = agent._follower, Follower._take_in

    def seen(number: int) -> Seen:
        return Seen(device.bundle.manifest.fingerprint, pictures[number : number + 1], [number % 10])

    def hand_over(round_: int) -> None:
        for number in range(TOGETHER):
            follower.look(seen(TOGETHER * round_ + number))
        follower.wake()

    def taken_in(one: Follower, given: Seen) -> Any:
        due = real(one, given)
        revisions.append(agent._updater.session.revision)
        if len(revisions) < 60:  # others are there before these have been taken in
            hand_over(len(revisions))
        else:
            ended.set()
        return due

    monkeypatch.setattr(Follower, "_take_in", taken_in)
    hand_over(0)
    assert ended.wait(LIMIT_S)
    assert len(set(revisions)) > 3, "the first measurement, and some in 480 pictures"


def test_four_threads_get_right_answers_while_statistics_are_renewed(
    device: Any, start: Callable[..., EdgeAgent], clean: Uint8Array, pale: Uint8Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions: list[Session] = []
    real = Updater._choose

    def noted(updater: Updater) -> Session:
        sessions.append(real(updater))
        return sessions[-1]

    monkeypatch.setattr(Updater, "_choose", noted)
    agent, rounds = start(class_prior=False), 30
    # all start a round at once; the follower has taken in the last one, but may be measuring still
    together = threading.Barrier(4, lambda: device.eventually(lambda: not agent._follower._waiting), timeout=60)

    def run(number: int) -> list[tuple[Uint8Array, list[Prediction]]]:
        rng, answered = np.random.default_rng(number), []
        for turn in range(rounds):
            world = pale if turn % 10 < 5 else clean
            images = world[rng.choice(len(world), (1, 3, 8, 16)[number])]
            together.wait()
            answered.append((images, agent.predict(list(images))))
        return answered

    with ThreadPoolExecutor(4) as pool:
        answers = [each for done in pool.map(run, range(4)) for each in done]
    assert agent.status()["samples_seen"] == rounds * (1 + 3 + 8 + 16)
    assert len({each.stats_revision for _, predictions in answers for each in predictions}) > 5
    for images, predictions in answers:
        (revision,) = {each.stats_revision for each in predictions}
        expected = [session.predict(images) for session in sessions if session.revision == revision]
        assert any(
            np.allclose([said.probability for said in predictions], each.confidence_B, rtol=1e-4)
            and [said.label for said in predictions] == each.label_B.tolist()
            for each in expected
        ), f"no session of revision {revision} says so"
