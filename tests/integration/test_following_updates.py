"""A device that follows its own stream, and its cloud: whose weights are used in which world, and whose statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from torch import nn

from cema.cloud.calibration import PICTURES
from cema.cloud.export import build_bundle
from cema.cloud.int8 import quantised
from cema.cloud.models import digits
from cema.config import StatisticsConfig
from cema.edge import EdgeAgent
from cema.edge.session import EdgeSession
from cema.errors import UpdateContentError
from cema.types import NormParameters, Prediction, Uint8Array
from cema.wire import signing
from cema.wire.bundle import Bundle, fingerprint
from cema.wire.messages import Preprocess, UpdateManifest
from cema.wire.update import encode_update

NOWHERE = "http://127.0.0.1:1"
ON, AUTO, OFF = (StatisticsConfig(follow=word) for word in ("on", "auto", "off"))
LAST_NORM = "bn4"


def blank(bundle: Bundle) -> NormParameters:
    """Weights by which every picture gets the same answer, whatever the statistics are."""
    return {
        name: np.zeros_like(value) if name == f"{LAST_NORM}.weight" else value
        for name, value in bundle.source_parameters().items()
    }


def is_blank(predictions: list[Prediction]) -> bool:
    return len({(each.label, round(each.probability, 4)) for each in predictions}) == 1


def offer(device: Any, version: int, domain: int | None, *, owner: str = "edge", **changes: Any) -> tuple[bytes, str]:
    """Publish blank weights, good in ``domain`` (None: in all); returns bytes and signature."""
    manifest = UpdateManifest(
        group="g", version=version, fingerprint=device.bundle.manifest.fingerprint, method="cema", created_at_ms=1,
        stats_owner=owner, domain=msgspec.UNSET if domain is None else domain,
    )  # fmt: skip
    data = encode_update(manifest, changes.get("parameters") or blank(device.bundle))
    device.cloud.publish(version, data, signing.sign(data, device.key))
    return data, signing.sign(data, device.key)


def by_source(device: Any, images: Uint8Array) -> np.ndarray:
    session = EdgeSession(device.bundle, device.bundle.source_parameters(), 0, threads=1)
    return session.predict(images).confidence_B


def confidence(predictions: list[Prediction]) -> np.ndarray:
    return np.array([each.probability for each in predictions])


def domain_of(device: Any, agent: EdgeAgent) -> int:
    """As the cloud learns it: from the newest sample."""
    assert agent.settle(20)
    domain = device.cloud.samples[-1].domain
    assert isinstance(domain, int)
    return domain


def test_samples_say_in_which_world_and_by_which_statistics_they_were_seen(
    own: Any, clean: Uint8Array, pale: Uint8Array
) -> None:
    agent = own.start(statistics=ON)
    first = agent.predict(list(clean[:16]))
    assert {sample.stats_revision for sample in first} == {1}
    before = domain_of(own, agent)
    assert 0 < before < 1 << 53
    assert {(sample.domain, sample.stats_revision) for sample in own.cloud.samples} == {(before, 1)}
    seen = len(own.cloud.samples)
    again = agent.predict(list(pale[:16]))
    after = domain_of(own, agent)
    assert after != before
    assert {(s.domain, s.stats_revision) for s in own.cloud.samples[seen:]} == {(after, again[0].stats_revision)}


def test_nothing_is_sent_before_the_device_knows_in_what_world_it_is(own: Any, pale: Uint8Array) -> None:
    agent = own.start(statistics=ON)
    for picture in pale[:3]:
        agent.predict([picture])
    own.eventually(lambda: agent.status()["stats_revision"] == 1)
    agent.predict([pale[3]])
    assert agent.settle(20)
    assert {sample.known_domain for sample in own.cloud.samples} == {domain_of(own, agent)}


def test_samples_of_a_device_that_does_not_follow_say_nothing_of_a_world(own: Any, pale: Uint8Array) -> None:
    agent = own.start(statistics=OFF)
    agent.predict(list(pale[:16]))
    assert agent.settle(20)
    assert {(sample.known_domain, sample.stats_revision) for sample in own.cloud.samples} == {(0, 0)}


@pytest.mark.parametrize("named", [True, False])
def test_weights_that_are_good_in_this_world_are_used_with_its_own_statistics(
    own: Any, pale: Uint8Array, named: bool
) -> None:
    agent = own.start(statistics=ON)
    agent.predict(list(pale[:16]))
    offer(own, 1, domain_of(own, agent) if named else None)
    own.eventually(lambda: agent.status()["version"] == 1)
    predictions = agent.predict(list(pale[16:32]))
    assert is_blank(predictions)
    assert {each.version for each in predictions} == {1}
    assert predictions[0].stats_revision >= 1


def test_weights_of_another_world_wait_while_the_version_rises(own: Any, pale: Uint8Array) -> None:
    agent = own.start(statistics=ON)
    agent.predict(list(pale[:16]))
    offer(own, 1, domain_of(own, agent) + 1)
    own.eventually(lambda: agent.status()["version"] == 1)
    assert agent.status()["updates_applied"] == 1
    predictions = agent.predict(list(pale[16:32]))
    assert not is_blank(predictions)
    assert {each.version for each in predictions} == {1}
    assert predictions[0].stats_revision >= 1
    assert np.abs(confidence(predictions) - by_source(own, pale[16:32])).max() > 0.1


@pytest.mark.parametrize("named", [True, False])
def test_in_another_world_weights_are_put_aside_if_they_are_of_one(
    own: Any, clean: Uint8Array, pale: Uint8Array, named: bool
) -> None:
    agent = own.start(statistics=ON)
    agent.predict(list(pale[:16]))
    offer(own, 1, domain_of(own, agent) if named else None)
    own.eventually(lambda: agent.status()["version"] == 1)
    assert is_blank(agent.predict(list(pale[:16])))
    predictions = agent.predict(list(clean[:16]))
    assert is_blank(predictions) != named, "already the first pictures"
    assert {each.version for each in predictions} == {1}


def test_the_clouds_own_statistics_take_no_effect_on_a_device_that_follows(own: Any, pale: Uint8Array) -> None:
    agent = own.start(statistics=ON)
    agent.predict(list(pale[:16]))
    source = own.bundle.source_parameters()
    wild = {name: value + np.float32(5) if "running" in name else value for name, value in source.items()}
    offer(own, 1, None, owner="cloud", parameters=wild)
    own.eventually(lambda: agent.status()["version"] == 1)
    statistics = {name: value for name, value in agent._updater.session._kept[0].items() if "running" in name}
    assert statistics
    assert all(np.abs(value - wild[name]).max() > 1 for name, value in statistics.items())


def int8(bundle: Bundle) -> Bundle:
    return quantised(bundle, digits.digit_images()[0][digits.split().train][:PICTURES])[0]


def without_graph(bundle: Bundle) -> Bundle:
    manifest = msgspec.structs.replace(bundle.manifest, statistics=msgspec.UNSET)
    bare = fingerprint(bundle.model, bundle.norm, manifest.preprocess, manifest.classes, manifest.norm)
    return Bundle(msgspec.structs.replace(manifest, fingerprint=bare), bundle.model, bundle.norm)


@pytest.mark.parametrize("make", [int8, without_graph])
def test_a_bundle_that_cannot_measure_refuses_what_needs_it_and_keeps_the_last_good_one(
    own: Any, make: Callable[[Bundle], Bundle], clean: Uint8Array
) -> None:
    own.bundle = make(own.bundle)
    own.offer_bundle(own.bundle)
    agent = own.start(statistics=ON)
    offer(own, 1, None, owner="cloud")
    own.eventually(lambda: agent.status()["version"] == 1)
    data, signature = offer(own, 2, None)
    own.eventually(lambda: agent.status()["updates_refused"] == 1)
    assert "update_content_invalid" in str(agent.status()["last_error"])
    with pytest.raises(UpdateContentError, match="cannot measure"):
        agent._updater.apply(data, signature)
    predictions = agent.predict(list(clean[:16]))
    assert is_blank(predictions)
    assert {(each.version, each.stats_revision) for each in predictions} == {(1, 0)}
    offer(own, 3, None, owner="cloud", parameters=own.bundle.source_parameters())
    own.eventually(lambda: agent.status()["version"] == 3)


def test_a_model_without_batch_norm_takes_what_cema_has_learned(own: Any) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    own.bundle = build_bundle(net.eval(), name="n", preprocess=Preprocess(size=(8, 8)), classes=["a", "b", "c"])
    own.offer_bundle(own.bundle)
    agent = own.start(statistics=AUTO)
    agent._updater.apply(*offer(own, 1, None, parameters=own.bundle.source_parameters()))
    assert agent.status()["version"] == 1


@pytest.mark.parametrize("domain", [None, 0], ids=["of all worlds", "of a device that watches none"])
def test_a_device_that_does_not_follow_takes_weights_and_the_sources_statistics(
    own: Any, pale: Uint8Array, domain: int | None
) -> None:
    agent = own.start(statistics=OFF)
    offer(own, 1, domain)
    own.eventually(lambda: agent.status()["version"] == 1)
    predictions = agent.predict(list(pale[:16]))
    assert is_blank(predictions)
    assert {each.stats_revision for each in predictions} == {0}


@pytest.mark.parametrize("then", [ON, OFF], ids=["restarted", "no longer following"])
def test_weights_of_one_world_are_not_used_while_the_world_is_unknown(
    own: Any, clean: Uint8Array, then: StatisticsConfig
) -> None:
    agent = own.start(statistics=ON)
    agent.predict(list(clean[:16]))
    offer(own, 1, domain_of(own, agent))
    own.eventually(lambda: agent.status()["version"] == 1)
    agent.close()
    again = own.start(url=NOWHERE, statistics=then)
    assert not is_blank(again.predict(list(clean[:6])))
