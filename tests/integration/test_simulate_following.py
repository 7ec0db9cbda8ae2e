"""The simulator with devices that measure their own statistics: ``cema-offline`` and ``cema`` on digits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cema.bench.datasets import load_dataset
from cema.bench.measure import Tally, measure, whole
from cema.bench.simulate import GROUP, Pair, Simulator
from cema.bench.start import Conditions, start
from cema.bench.streams import Pictures, make_streams
from cema.cloud.store.samples import StoredSample
from cema.config import StatisticsConfig
from cema.types import Uint8Array
from cema.wire.update import open_update

BATCH, IMAGES = 64, 320
Run = Callable[..., tuple[Tally, Simulator]]


def simulator(method: str, pair: Pair, conditions: Conditions) -> Simulator:
    found = start(method, pair, conditions, lambda: pytest.fail("no clean pictures needed")).run
    assert isinstance(found, Simulator)
    return found


@pytest.fixture(scope="module")
def run(pair: Pair) -> Run:
    digits = load_dataset("digits", None, IMAGES)

    def once(
        method: str, corruptions: tuple[str, ...] = ("contrast",), *, batch_size: int = BATCH, **changes: Any
    ) -> tuple[Tally, Simulator]:
        played = simulator(method, pair, Conditions(threads=1, **changes))
        (stream,) = make_streams("continual", corruptions, 5, digits.labels, seed=0)
        streams = [stream] * len(played.devices)
        sources = [Pictures(digits, 0)] * len(played.devices)
        return whole(measure(played, streams, sources, batch_size)), played

    return once


def accuracy(tally: Tally) -> float:
    return float(np.concatenate(tally.correct).mean())


def uploaded(simulator: Simulator) -> list[StoredSample]:
    samples = [*simulator.store.replay(GROUP), *simulator.store.pending(GROUP, 9999)]
    return sorted(samples, key=lambda sample: sample.row_id)


@pytest.mark.parametrize("batch_size", [BATCH, 5])
@pytest.mark.parametrize("method", ["cema-offline", "cema", "cema-lite"])
def test_the_same_seed_gives_the_same_bytes(run: Run, method: str, batch_size: int) -> None:
    (first, one), (second, other) = (run(method, seed=3, batch_size=batch_size) for _ in range(2))
    assert first.digest.hexdigest() == second.digest.hexdigest()
    assert (first.uploads, first.bytes_up, first.bytes_down) == (second.uploads, second.bytes_up, second.bytes_down)
    assert [device.statistics.domain for device in one.devices] == [  # type: ignore[union-attr]
        device.statistics.domain for device in other.devices  # type: ignore[union-attr]
    ]  # fmt: skip


def test_offline_recovers_what_contrast_took_and_sends_nothing(run: Run) -> None:
    source, (offline, simulator) = accuracy(run("source")[0]), run("cema-offline")
    assert accuracy(offline) > source + 0.15
    assert (offline.uploads, offline.bytes_up, offline.bytes_down, offline.updates) == (0, 0, 0, 0)
    assert simulator.devices[0].session.version == 0
    assert simulator.store.updates(GROUP) == []


def test_cema_learns_from_a_few_samples_and_its_versions_are_used(run: Run) -> None:
    source, (tally, simulator) = accuracy(run("source")[0]), run("cema")
    assert accuracy(tally) > source + 0.15
    assert 0 < tally.uploads < IMAGES
    assert tally.updates > 0
    assert tally.bytes_down > 0
    assert simulator.devices[0].session.version == simulator.store.group(GROUP).latest_version > 0


def test_samples_carry_the_domain_of_their_device_as_it_was(run: Run) -> None:
    _, simulator = run("cema", ("contrast", "gaussian_noise"))
    (device,) = simulator.devices
    assert device.statistics is not None
    samples = uploaded(simulator)
    assert {sample.device_id for sample in samples} == {"edge-0"}
    domains = [sample.domain for sample in samples]
    assert min(domains) > 0
    worlds = list(dict.fromkeys(domains))
    assert len(worlds) > 1, "noise is another world than no contrast"
    assert worlds[-1] == device.statistics.domain
    assert domains == sorted(domains, key=worlds.index), "no world comes back"


def test_updates_of_one_device_name_its_world_and_are_used_in_it_alone(run: Run, pair: Pair) -> None:
    _, simulator = run("cema")
    (device,) = simulator.devices
    assert device.statistics is not None
    newest = simulator.store.updates(GROUP, 1)[0]
    update = open_update(simulator.blobs.get(newest.blob), pair.bundle.manifest)
    assert (update.manifest.stats_owner, update.manifest.domain) == ("edge", device.statistics.domain)
    source = pair.bundle.source_parameters()
    _, ((_, here),) = device.statistics.in_use(device.weights, device.domain)
    _, ((_, elsewhere),) = device.statistics.in_use(device.weights, -1)
    for name, value in here.items():
        if name.endswith(("weight", "bias")):
            np.testing.assert_array_equal(value, update.parameters[name])
    for name, value in elsewhere.items():
        if name.endswith(("weight", "bias")):
            np.testing.assert_array_equal(value, source[name])


def test_each_device_of_a_group_has_worlds_of_its_own(run: Run) -> None:
    _, simulator = run("cema", edges=2)
    of = {name: {s.domain for s in uploaded(simulator) if s.device_id == name} for name in ("edge-0", "edge-1")}
    assert all(of.values())
    assert not of["edge-0"] & of["edge-1"]


def test_what_does_not_follow_says_nothing_of_a_world(run: Run) -> None:
    _, simulator = run("cema-paper")
    assert {sample.domain for sample in uploaded(simulator)} == {0}
    assert simulator.devices[0].statistics is None


@pytest.mark.parametrize("batch_size", [5, 16])
def test_the_simulated_device_answers_as_a_real_one(
    pair: Pair, device: Any, clean: Uint8Array, pale: Uint8Array, batch_size: int
) -> None:
    """Over two changes of the world, one of which brings back what was known."""
    images = np.concatenate([clean[:160], pale[:160], clean[160:320]])
    (simulated,) = simulator("cema-offline", pair, Conditions(threads=1)).devices
    statistics = StatisticsConfig(follow="on", duty=1.0)
    agent = device.start(bundle=simulated.bundle, url="http://127.0.0.1:1", statistics=statistics)
    domains = []
    for start_at in range(0, len(images), batch_size):
        part = images[start_at : start_at + batch_size]
        expected_BK, _, _ = simulated.predict(part)
        found = agent.predict(list(part))
        device.settle(agent)
        np.testing.assert_allclose([each.probability for each in found], expected_BK.max(axis=1), atol=1e-5)
        assert simulated.statistics is not None
        domains.append((agent._follower.domain, simulated.statistics.domain))
    real, played = (set(each) for each in zip(*domains, strict=True))
    assert len(real) == len(played) == len(set(domains)) >= 2, "the world changes at the same pictures"
