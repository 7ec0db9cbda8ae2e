"""The whole device against a scripted cloud: predict, upload, update, refuse, restart."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from cema.config import DeviceConfig, OutboxConfig, RuntimeConfig, SelectionConfig, UplinkConfig
from cema.edge import EdgeAgent
from cema.edge.outbox import Outbox
from cema.edge.session import EdgeSession
from cema.errors import ConfigError, ConflictError, DependencyError, ImageError, SignatureError, TransportError
from cema.types import NormParameters
from cema.wire import signing
from cema.wire.bundle import Bundle, encode_bundle
from cema.wire.difference import encode_difference, source_base, update_base
from cema.wire.image import decode_image, encode_image
from cema.wire.messages import UpdateManifest
from cema.wire.preprocess import preprocess
from cema.wire.update import encode_update

KEY = signing.generate_key()
IMAGES = list(np.random.default_rng(5).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8))
QUICK = UplinkConfig(max_latency_s=0.05, heartbeat_s=0.2, backoff_min_s=0.01, backoff_max_s=0.05, poll_wait_s=5.0)


class Device:
    """Makes agents that share one state folder, and updates that are signed for them."""

    def __init__(self, cloud: Any, bundle: Bundle, state: Path) -> None:
        self.cloud, self.bundle = cloud, bundle
        self.config = DeviceConfig(
            url=cloud.url, group="g", device_id="d", token="secret", public_key=signing.public_key(KEY),
            state_dir=str(state), selection=SelectionConfig(enabled=False), uplink=QUICK,
            outbox=OutboxConfig(commit_interval_s=0.0), runtime=RuntimeConfig(threads=1),
        )  # fmt: skip
        self.agents: list[EdgeAgent] = []
        self.offer_bundle(bundle)

    def offer_bundle(self, bundle: Bundle) -> None:
        data = encode_bundle(bundle)
        self.cloud.fingerprint, self.cloud.bundle = bundle.manifest.fingerprint, (data, signing.sign(data, KEY))

    def start(self, bundle: Bundle | None = None, **changes: Any) -> EdgeAgent:
        agent = EdgeAgent(msgspec.structs.replace(self.config, **changes), bundle=bundle)
        self.agents.append(agent)
        return agent

    def parameters(self, version: int) -> NormParameters:
        return {name: value + np.float32(version) for name, value in self.bundle.source_parameters().items()}

    def publish(self, version: int, *, key: str = KEY, group: str = "g", rollback_of: int | None = None,
                parameters: NormParameters | None = None, encoding: str = "float32") -> None:  # fmt: skip
        manifest = UpdateManifest(
            group=group, version=version, fingerprint=self.cloud.fingerprint, method="test", created_at_ms=1,
            rollback_of=rollback_of, encoding=encoding,
        )  # fmt: skip
        data = encode_update(manifest, parameters or self.parameters(version))
        self.cloud.publish(version, data, signing.sign(data, key))


@pytest.fixture
def device(scripted_cloud: Any, tiny_bundle: Bundle, tmp_path: Path) -> Iterator[Device]:
    made = Device(scripted_cloud, tiny_bundle, tmp_path / "state")
    yield made
    for agent in made.agents:
        agent.close()


def eventually(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    """Wait for something that other threads do and that has no event of its own."""
    done = threading.Event()
    for _ in range(int(timeout_s / 0.01)):
        if condition():
            return
        done.wait(0.01)
    raise AssertionError("did not happen")


def version_of(agent: EdgeAgent) -> int:
    return agent.predict(IMAGES[:1])[0].version


def test_predict_says_what_the_model_says(device: Device) -> None:
    agent = device.start()
    predictions = agent.predict(IMAGES)
    session = EdgeSession(device.bundle, device.bundle.source_parameters(), 0)
    logits_BK = session.run(preprocess(IMAGES, device.bundle.manifest.preprocess)).astype(np.float64)
    expected_BK = np.exp(logits_BK) / np.exp(logits_BK).sum(axis=1, keepdims=True)
    assert [p.label for p in predictions] == expected_BK.argmax(axis=1).tolist()
    np.testing.assert_allclose([p.probability for p in predictions], expected_BK.max(axis=1), rtol=1e-4)
    np.testing.assert_allclose(
        [p.entropy for p in predictions], -(expected_BK * np.log(expected_BK)).sum(axis=1), rtol=1e-3, atol=1e-5
    )
    assert agent.predict([]) == []


def test_selected_pixels_arrive_unchanged_once_and_in_order(device: Device) -> None:
    agent = device.start()
    agent.predict(IMAGES)
    assert agent.settle(20)
    assert [s.seq for s in device.cloud.samples] == list(range(6))
    assert len({s.sample_id for s in device.cloud.samples}) == 6
    for sample, image in zip(device.cloud.samples, IMAGES, strict=True):
        np.testing.assert_array_equal(decode_image(sample.image, sample.codec), image)
    assert device.cloud.batches[-1].samples_seen == 6
    assert agent.status()["uploaded"] == 6
    assert agent.status()["outbox_samples"] == 0


def test_a_cameras_own_bytes_pass_through_and_large_pictures_are_fitted(device: Device) -> None:
    agent = device.start()
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    small, large = encode_image(noise[:40, :50], "jpeg"), encode_image(noise, "png")
    agent.predict([small, large])
    assert agent.settle(20)
    first, second = device.cloud.samples
    assert (first.codec, first.image) == ("jpeg", small)
    assert decode_image(second.image, second.codec).shape == (8, 8, 3)


def test_a_bad_image_is_named_and_changes_nothing(device: Device) -> None:
    agent = device.start()
    for bad in (b"not a picture", np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32)):
        with pytest.raises(ImageError, match="image 1: ") as caught:
            agent.predict([IMAGES[0], bad])  # type: ignore[list-item]
        assert caught.value.values["index"] == 1
    assert agent.status()["samples_seen"] == 0


def test_heartbeats_report_samples_seen_without_samples(device: Device) -> None:
    agent = device.start(selection=SelectionConfig(e_max=0.0))
    agent.predict(IMAGES)
    device.cloud.wait_for(lambda: any(b.samples_seen == 6 for b in device.cloud.batches))
    assert device.cloud.samples == []


def test_predict_touches_neither_disk_nor_network_while_the_cloud_hangs(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = device.start()
    device.cloud.released.clear()
    used_by: set[int] = set()
    real = Outbox._run

    def watched(outbox: Outbox, work: Any) -> Any:
        used_by.add(threading.get_ident())
        return real(outbox, work)

    monkeypatch.setattr(Outbox, "_run", watched)
    touched: list[str] = []
    watching = [True]

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if watching[0] and threading.get_ident() == me and event.split(".")[0] in ("open", "os", "socket", "sqlite3"):
            touched.append(event)

    me = threading.get_ident()
    sys.addaudithook(hook)
    for _ in range(20):
        assert len(agent.predict(IMAGES)) == 6
    watching[0] = False
    eventually(lambda: len(agent._outbox) == 120)  # the disk works on while the network hangs
    assert touched == []
    assert me not in used_by
    assert used_by


def test_the_memory_queue_is_bounded_and_its_overflow_counted(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cema.edge.writer.Writer._commit", lambda writer, taken: None)
    agent = device.start(outbox=OutboxConfig(memory_samples=4, commit_interval_s=60.0))
    agent.predict(IMAGES)
    assert agent.status()["dropped"] == {"overflow": 2}


def test_an_update_is_used_and_equals_a_model_built_with_it(device: Device) -> None:
    agent = device.start()
    assert version_of(agent) == 0
    device.publish(1)
    eventually(lambda: version_of(agent) == 1)
    adapted = EdgeSession(device.bundle, device.parameters(1), 1)
    logits_BK = adapted.run(preprocess(IMAGES, device.bundle.manifest.preprocess))
    assert [p.label for p in agent.predict(IMAGES)] == logits_BK.argmax(axis=1).tolist()
    assert agent.status()["updates_applied"] == 1


def test_differences_are_followed_from_the_source_on_and_across_a_restart(device: Device) -> None:
    asked: list[int] = []
    known = {0: source_base(device.bundle)}

    def difference(have: int) -> tuple[bytes, int]:
        asked.append(have)
        encoded = encode_difference(device.cloud.update[1], known[have])
        assert encoded is not None
        return encoded, have

    device.cloud.difference = difference
    agent = device.start()
    for version in (1, 2, 5):
        device.publish(version, encoding="float16")
        eventually(lambda version=version: version_of(agent) == version)
        known[version] = update_base(device.cloud.update[1], device.bundle.manifest)
    agent.close()
    again = device.start()
    device.publish(6, encoding="float16")
    eventually(lambda: version_of(again) == 6)
    assert list(dict.fromkeys(asked)) == [0, 1, 2, 5]  # the poll that closing cut off is answered, too
    assert again.status()["updates_refused"] == 0


@pytest.mark.parametrize("answer", [(b"garbage", 0), (b"", 3)], ids=["not a difference", "to a version it lacks"])
def test_after_a_difference_that_leads_nowhere_the_whole_update_is_fetched(
    answer: tuple[bytes, int], device: Device
) -> None:
    device.cloud.difference = lambda have: answer
    agent = device.start()
    device.publish(1, encoding="float16")
    eventually(lambda: version_of(agent) == 1)
    assert agent.status()["updates_refused"] == 1
    assert "update_invalid" in str(agent.status()["last_error"])


def test_a_difference_cannot_smuggle_in_what_is_not_signed(device: Device) -> None:
    agent = device.start()
    device.publish(1, encoding="float16")
    eventually(lambda: version_of(agent) == 1)
    good = device.cloud.update[1]
    foreign = good.replace(b'\\"version\\":1', b'\\"version\\":9')
    assert foreign != good
    base = update_base(good, device.bundle.manifest)
    assert base is not None
    encoded = encode_difference(foreign, base)
    assert encoded is not None
    with pytest.raises(SignatureError):
        agent._updater.apply(encoded, device.cloud.update[2], 1)
    assert version_of(agent) == 1


def test_bad_updates_are_refused_counted_and_survived(device: Device) -> None:
    agent = device.start()
    device.publish(1)
    eventually(lambda: version_of(agent) == 1)
    huge = {**device.parameters(1), "bn.weight": np.full(4, 3e38, np.float32)}
    bad: list[tuple[str, dict[str, Any]]] = [
        ("signature_invalid", {"version": 2, "key": signing.generate_key()}),
        ("update_content_invalid", {"version": 3, "group": "other"}),
        ("update_content_invalid", {"version": 4, "parameters": huge}),
    ]
    counted: list[int] = []
    for text, changes in bad:
        counted.append(agent.counters.updates_refused)
        device.publish(**changes)
        eventually(lambda: agent.counters.updates_refused > counted[-1])
        assert text in str(agent.status()["last_error"])
        assert version_of(agent) == 1
    device.publish(5)
    eventually(lambda: version_of(agent) == 5)


def test_an_old_version_is_refused_unless_it_is_a_rollback(device: Device) -> None:
    agent = device.start()
    device.publish(5)
    eventually(lambda: version_of(agent) == 5)
    updater = agent._updater
    device.publish(4)
    with pytest.raises(Exception, match="expected a version above 5"):
        updater.apply(*device.cloud.update[1:])
    device.publish(4, rollback_of=5)
    updater.apply(*device.cloud.update[1:])
    assert version_of(agent) == 4


def test_an_offline_restart_uses_the_last_good_version_and_keeps_the_samples(device: Device) -> None:
    agent = device.start()
    device.publish(3)
    eventually(lambda: version_of(agent) == 3)
    assert agent.settle(20)
    seen = len(device.cloud.samples)
    agent.close()
    offline = device.start(url="http://127.0.0.1:1")
    assert [p.version for p in offline.predict(IMAGES)] == [3] * 6
    offline.close()
    assert offline.status()["outbox_samples"] == 6
    again = device.start()
    assert again.settle(20)
    assert len(device.cloud.samples) == seen + 6


def test_a_new_bundle_replaces_model_and_waiting_samples(
    device: Device, make_tiny_bundle: Callable[[int], Bundle]
) -> None:
    agent = device.start()
    device.publish(1)
    eventually(lambda: version_of(agent) == 1)
    device.bundle = make_tiny_bundle(9)
    device.offer_bundle(device.bundle)
    device.publish(2)
    eventually(lambda: agent.status()["fingerprint"] == device.bundle.manifest.fingerprint and version_of(agent) == 2)
    agent.close()
    assert device.start(url="http://127.0.0.1:1").status()["version"] == 2


def test_the_clouds_switch_means_source_parameters_and_no_uploads_also_offline(device: Device) -> None:
    agent = device.start()
    device.publish(1)
    eventually(lambda: version_of(agent) == 1)
    device.cloud.adaptation = "off"
    device.publish(2)  # ends the long poll
    eventually(lambda: version_of(agent) == 0)
    assert agent.settle(20)
    before = len(device.cloud.batches)
    assert not any(p.selected for p in agent.predict(IMAGES))
    agent.close()
    assert len(device.cloud.batches) == before
    assert version_of(device.start(url="http://127.0.0.1:1")) == 0


def test_switched_off_locally_nothing_is_asked_or_sent(device: Device) -> None:
    agent = device.start(bundle=device.bundle, runtime=RuntimeConfig(adaptation="off"))
    assert not any(p.selected for p in agent.predict(IMAGES))
    agent.close()
    assert device.cloud.paths == []


def test_a_device_that_cannot_verify_does_not_start(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="expected public_key"):
        device.start(public_key=None)
    with pytest.raises(ConfigError, match="Ed25519"):
        device.start(public_key="bm90IGEga2V5")
    monkeypatch.setitem(sys.modules, "nacl.signing", None)
    with pytest.raises(DependencyError, match="PyNaCl"):
        device.start()


def test_a_first_start_without_cloud_fails_and_frees_the_folder(device: Device) -> None:
    with pytest.raises(TransportError):
        device.start(url="http://127.0.0.1:1")
    assert version_of(device.start()) == 0


def test_a_closed_agent_does_not_predict(device: Device) -> None:
    agent = device.start()
    agent.close()
    agent.close()
    with pytest.raises(ConflictError, match="closed"):
        agent.predict(IMAGES)
