"""A running device whose pictures come in several looks in turns, with the cloud out of reach and with one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cema.bench.datasets import load_dataset
from cema.bench.measure import Tally, measure, whole
from cema.bench.simulate import Pair, Simulator
from cema.bench.start import Conditions, start
from cema.bench.streams import Pictures, make_streams
from cema.cloud.models import digits
from cema.config import StatisticsConfig
from cema.edge import EdgeAgent
from cema.edge.follower import Seen
from cema.edge.routing import RoutedSession
from cema.types import Prediction, Uint8Array
from cema.wire import signing
from cema.wire.bundle import Bundle, decode_bundle, encode_bundle

KNOWN = 320
"""Pictures after which looks that alternate are known."""


@pytest.fixture
def agent(device: Any, digits_bundle: bytes) -> EdgeAgent:
    """Follows its stream by itself; its answers are the model's, not weighed by the classes that show."""
    device.bundle = decode_bundle(digits_bundle)
    device.offer_bundle(device.bundle)
    statistics = StatisticsConfig(follow="on", class_prior=False, duty=1.0)
    started: EdgeAgent = device.start(bundle=device.bundle, statistics=statistics)
    return started


def in_turns(one: Uint8Array, other: Uint8Array, count: int) -> Uint8Array:
    kinds = np.random.default_rng(0).integers(2, size=count)
    return np.stack([one[:count], other[:count]])[kinds, np.arange(count)]


def show(agent: EdgeAgent, images: Uint8Array, batch: int, device: Any) -> list[Prediction]:
    """Predict, each batch after all before it have been taken in."""
    found = []
    for start_at in range(0, len(images), batch):
        found += agent.predict(list(images[start_at : start_at + batch]))
        device.settle(agent)
    return found


@pytest.mark.parametrize("batch", [8, 64])
def test_each_look_is_answered_by_its_own_statistics(
    agent: EdgeAgent, device: Any, clean: Uint8Array, pale: Uint8Array, batch: int
) -> None:
    images = in_turns(clean, pale, 2 * KNOWN)
    labels = digits.digit_images()[1][digits.split().stream][: 2 * KNOWN]
    found = show(agent, images, batch, device)
    assert agent.status()["looks"] == 2
    assert isinstance(agent._updater.session, RoutedSession)
    right = np.array([each.label for each in found]) == labels
    assert right[KNOWN:].mean() > right[: KNOWN // 2].mean() + 0.1, "no statistics fit both"
    assert right[KNOWN:].mean() > 0.85


def test_nothing_is_sent_while_looks_alternate_and_again_when_they_do_not(
    agent: EdgeAgent, device: Any, clean: Uint8Array, pale: Uint8Array
) -> None:
    assert agent.status()["looks"] == 1
    show(agent, in_turns(clean, pale, KNOWN), 32, device)
    assert agent.status()["looks"] == 2
    found = show(agent, in_turns(clean, pale, KNOWN), 32, device)
    assert not any(each.selected for each in found)
    show(agent, pale[:KNOWN], 32, device)
    assert agent.status()["looks"] == 1
    assert agent._follower.take_change(), "the selector begins anew: its bounds are of a stream that is gone"
    found = show(agent, pale[:KNOWN], 32, device)
    assert any(each.selected for each in found)


def test_an_update_is_used_in_every_look(agent: EdgeAgent, device: Any, clean: Uint8Array, pale: Uint8Array) -> None:
    show(agent, in_turns(clean, pale, KNOWN), 32, device)
    before = agent._updater.session
    device.publish(1)
    device.eventually(lambda: agent._updater.session.version == 1)
    after = agent._updater.session
    assert isinstance(before, RoutedSession)
    assert isinstance(after, RoutedSession)
    assert {part.version for part in after.sessions} == {1}
    for old, new in zip(before.sessions, after.sessions, strict=True):
        assert np.abs(old.logits(pale[:8]) - new.logits(pale[:8])).max() > 0.01


def test_pictures_do_not_arrive_while_others_wait_that_have(agent: EdgeAgent, pale: Uint8Array) -> None:
    """Two threads predict at once: the slower one saw an empty queue, and gets the statistics after the faster one."""
    agent.predict(list(pale[:16]))
    follower, fingerprint = agent._follower, agent._updater.fingerprint
    first, second = Seen(fingerprint, pale[16:24], [0] * 8, arrived=True), Seen(fingerprint, pale[24:40], [1] * 16)
    with follower._owner:  # the background thread has to wait
        follower._waiting.append(first)
        assert not follower._look_at_once(second)
        assert [seen.arrived for seen in follower._waiting][-2:] == [True, False]


def test_updates_may_come_while_the_number_of_looks_changes(
    agent: EdgeAgent, device: Any, clean: Uint8Array, pale: Uint8Array
) -> None:
    turning = in_turns(clean, pale, KNOWN)
    for version, images in enumerate((turning, pale[:KNOWN]) * 2, 1):
        device.publish(version)
        for start_at in range(0, len(images), 16):
            found = agent.predict(list(images[start_at : start_at + 16]))
            assert len(found) == 16
            session = agent._updater.session
            if isinstance(session, RoutedSession):
                assert len(session.sessions) == len(session.mixture)
                assert {part.version for part in session.sessions} == {session.version}
        device.eventually(lambda version=version: agent._updater.session.version == version)
    assert agent.status()["last_error"] is None


def test_a_bundle_that_went_and_came_back_begins_with_one_look(
    agent: EdgeAgent, device: Any, clean: Uint8Array, pale: Uint8Array, tiny_bundle: Bundle
) -> None:
    show(agent, in_turns(clean, pale, KNOWN), 32, device)
    assert agent.status()["looks"] == 2
    for bundle in (tiny_bundle, device.bundle):
        data = encode_bundle(bundle)
        agent._updater.replace_bundle(data, signing.sign(data, device.key))
    show(agent, pale[:32], 32, device)
    assert agent.status()["looks"] == 1
    assert not isinstance(agent._updater.session, RoutedSession)


def played(method: str, pair: Pair, **options: Any) -> tuple[Tally, Simulator]:
    images = load_dataset("digits", None, 640)
    conditions = Conditions(threads=1, options=options)
    simulator = start(method, pair, conditions, lambda: pytest.fail("no clean pictures needed")).run
    assert isinstance(simulator, Simulator)
    streams = make_streams("mixed", ("clean", "contrast"), 5, images.labels, seed=0)
    return whole(measure(simulator, streams, [Pictures(images, 0)], 64)), simulator


def test_the_benchmark_plays_the_same_device(pair: Pair) -> None:
    (alone, _), (one_look, _) = played("cema-offline", pair), played("cema-offline", pair, **{"mixture.most": 1})
    right, wrong = (np.concatenate(tally.correct)[KNOWN:].mean() for tally in (alone, one_look))
    assert right > wrong + 0.05
    tally, simulator = played("cema", pair)
    (device,) = simulator.devices
    assert isinstance(device.session, RoutedSession)
    assert tally.uploads < 0.1 * 640, "it stops sending when it has seen that looks alternate"
