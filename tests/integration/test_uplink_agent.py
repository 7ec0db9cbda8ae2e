"""The whole device against a scripted cloud: predict, upload, update, refuse, restart."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from cema.config import OutboxConfig, RuntimeConfig, SelectionConfig
from cema.edge.outbox import Outbox
from cema.edge.session import EdgeSession
from cema.errors import ConfigError, ConflictError, DependencyError, ImageError, TransportError, UpdateContentError
from cema.wire import signing
from cema.wire.bundle import Bundle
from cema.wire.image import decode_image, encode_image
from cema.wire.preprocess import preprocess


def test_predict_says_what_the_model_says(device: Any) -> None:
    agent = device.start()
    predictions = agent.predict(device.images)
    session = EdgeSession(device.bundle, device.bundle.source_parameters(), 0)
    logits_BK = session.run(preprocess(device.images, device.bundle.manifest.preprocess)).astype(np.float64)
    expected_BK = np.exp(logits_BK) / np.exp(logits_BK).sum(axis=1, keepdims=True)
    assert [p.label for p in predictions] == expected_BK.argmax(axis=1).tolist()
    np.testing.assert_allclose([p.probability for p in predictions], expected_BK.max(axis=1), rtol=1e-4)
    np.testing.assert_allclose(
        [p.entropy for p in predictions], -(expected_BK * np.log(expected_BK)).sum(axis=1), rtol=1e-3, atol=1e-5
    )
    assert agent.predict([]) == []


@pytest.mark.parametrize("coding", ["auto", "png"])
def test_selected_pixels_arrive_as_coded_once_and_in_order(device: Any, coding: str) -> None:
    agent = device.start(uplink=msgspec.structs.replace(device.config.uplink, image_coding=coding))
    agent.predict(device.images)
    assert agent.settle(20)
    assert [s.seq for s in device.cloud.samples] == list(range(6))
    assert len({s.sample_id for s in device.cloud.samples}) == 6
    for sample, image in zip(device.cloud.samples, device.images, strict=True):
        assert sample.image == encode_image(image, coding)
        if coding == "png":
            np.testing.assert_array_equal(decode_image(sample.image, sample.codec), image)
    assert device.cloud.batches[-1].samples_seen == 6
    assert agent.status()["uploaded"] == 6
    assert agent.status()["outbox_samples"] == 0


def test_a_cameras_own_bytes_pass_through_and_large_pictures_are_fitted(device: Any) -> None:
    agent = device.start()
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    small, large = encode_image(noise[:40, :50], "jpeg"), encode_image(noise, "png")
    agent.predict([small, large])
    assert agent.settle(20)
    first, second = device.cloud.samples
    assert (first.codec, first.image) == ("jpeg", small)
    assert decode_image(second.image, second.codec).shape == (8, 8, 3)


def test_a_bad_image_is_named_and_changes_nothing(device: Any) -> None:
    agent = device.start()
    for bad in (b"not a picture", np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32)):
        with pytest.raises(ImageError, match="image 1: ") as caught:
            agent.predict([device.images[0], bad])  # type: ignore[list-item]
        assert caught.value.values["index"] == 1
    assert agent.status()["samples_seen"] == 0


def test_heartbeats_report_samples_seen_without_samples(device: Any) -> None:
    agent = device.start(selection=SelectionConfig(e_max=0.0))
    agent.predict(device.images)
    device.cloud.wait_for(lambda: any(b.samples_seen == 6 for b in device.cloud.batches))
    assert device.cloud.samples == []


def test_predict_touches_neither_disk_nor_network_while_the_cloud_hangs(
    device: Any, monkeypatch: pytest.MonkeyPatch
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
        assert len(agent.predict(device.images)) == 6
    watching[0] = False
    device.eventually(lambda: len(agent._outbox) == 120)  # the disk works on while the network hangs
    assert touched == []
    assert me not in used_by
    assert used_by


def test_the_memory_queue_is_bounded_and_its_overflow_counted(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cema.edge.writer.Writer._commit", lambda writer, taken: None)
    agent = device.start(outbox=OutboxConfig(memory_samples=4, commit_interval_s=60.0))
    agent.predict(device.images)
    assert agent.status()["dropped"] == {"overflow": 2}


def test_an_update_is_used_and_equals_a_model_built_with_it(device: Any) -> None:
    agent = device.start()
    assert device.version_of(agent) == 0
    device.publish(1)
    device.eventually(lambda: device.version_of(agent) == 1)
    adapted = EdgeSession(device.bundle, device.parameters(1), 1)
    logits_BK = adapted.run(preprocess(device.images, device.bundle.manifest.preprocess))
    assert [p.label for p in agent.predict(device.images)] == logits_BK.argmax(axis=1).tolist()
    assert agent.status()["updates_applied"] == 1


def test_bad_updates_are_refused_counted_and_survived(device: Any) -> None:
    agent = device.start()
    device.publish(1)
    device.eventually(lambda: device.version_of(agent) == 1)
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
        device.eventually(lambda: agent.counters.updates_refused > counted[-1])
        assert text in str(agent.status()["last_error"])
        assert device.version_of(agent) == 1
    device.publish(5)
    device.eventually(lambda: device.version_of(agent) == 5)


def test_an_old_version_is_refused_even_if_it_was_a_rollback(device: Any) -> None:
    agent = device.start()
    device.publish(5)
    device.eventually(lambda: device.version_of(agent) == 5)
    updater = agent._updater
    for rollback_of in (None, 3, 5):  # a rollback has a version of its own: this one has been replayed
        device.publish(4, rollback_of=rollback_of)
        with pytest.raises(UpdateContentError, match="expected a version above 5"):
            updater.apply(*device.cloud.update[1:])
    assert device.version_of(agent) == 5
    device.publish(7, rollback_of=5)
    device.eventually(lambda: device.version_of(agent) == 7)
    device.publish(6, rollback_of=5)  # genuine, but made before version 7
    with pytest.raises(UpdateContentError, match="expected a version above 7"):
        updater.apply(*device.cloud.update[1:])
    assert device.version_of(agent) == 7


def test_an_offline_restart_uses_the_last_good_version_and_keeps_the_samples(device: Any) -> None:
    agent = device.start()
    device.publish(3)
    device.eventually(lambda: device.version_of(agent) == 3)
    assert agent.settle(20)
    seen = len(device.cloud.samples)
    agent.close()
    offline = device.start(url="http://127.0.0.1:1")
    assert [p.version for p in offline.predict(device.images)] == [3] * 6
    offline.close()
    assert offline.status()["outbox_samples"] == 6
    again = device.start()
    assert again.settle(20)
    assert len(device.cloud.samples) == seen + 6


def test_a_new_bundle_replaces_model_and_waiting_samples(
    device: Any, make_tiny_bundle: Callable[[int], Bundle]
) -> None:
    agent = device.start()
    device.publish(1)
    device.eventually(lambda: device.version_of(agent) == 1)
    device.bundle = make_tiny_bundle(9)
    device.offer_bundle(device.bundle)
    device.publish(2)
    device.eventually(
        lambda: agent.status()["fingerprint"] == device.bundle.manifest.fingerprint and device.version_of(agent) == 2
    )
    agent.close()
    assert device.start(url="http://127.0.0.1:1").status()["version"] == 2


def test_in_another_group_nothing_of_the_old_one_is_used_or_sent(device: Any) -> None:
    agent = device.start()
    device.publish(1)
    device.eventually(lambda: device.version_of(agent) == 1)
    device.cloud.script.extend([(503, {"Retry-After": "60"}, b"")] * 9)
    agent.predict(device.images)
    device.eventually(lambda: agent.status()["last_error"])
    agent.close()
    waiting = agent.status()["outbox_samples"]
    assert waiting
    same = device.start(url="http://127.0.0.1:1")
    assert same.status()["outbox_samples"] == waiting
    assert device.version_of(same) == 1
    same.close()
    moved = device.start(group="h", url="http://127.0.0.1:1")
    assert moved.status()["outbox_samples"] == 0
    assert device.version_of(moved) == 0


def test_the_clouds_switch_means_source_parameters_and_no_uploads_also_offline(device: Any) -> None:
    agent = device.start()
    device.publish(1)
    device.eventually(lambda: device.version_of(agent) == 1)
    device.cloud.adaptation = "off"
    device.publish(2)  # ends the long poll
    device.eventually(lambda: device.version_of(agent) == 0)
    assert agent.settle(20)
    before = len(device.cloud.batches)
    assert not any(p.selected for p in agent.predict(device.images))
    agent.close()
    assert len(device.cloud.batches) == before
    assert device.version_of(device.start(url="http://127.0.0.1:1")) == 0


def test_switched_off_locally_nothing_is_asked_or_sent(device: Any) -> None:
    agent = device.start(bundle=device.bundle, runtime=RuntimeConfig(adaptation="off"))
    assert not any(p.selected for p in agent.predict(device.images))
    agent.close()
    assert device.cloud.paths == []


def test_a_device_that_cannot_verify_does_not_start(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="expected public_key"):
        device.start(public_key=None)
    with pytest.raises(ConfigError, match="Ed25519"):
        device.start(public_key="bm90IGEga2V5")
    monkeypatch.setitem(sys.modules, "nacl.signing", None)
    with pytest.raises(DependencyError, match="PyNaCl"):
        device.start()


def test_a_device_whose_outbox_cannot_be_opened_starts_predicts_and_sends_later(device: Any) -> None:
    device.start().close()
    outbox = Path(device.config.state_dir) / "outbox.db"
    for file in outbox.parent.glob("outbox.db*"):
        file.unlink()
    outbox.mkdir()  # as on a full disk: no file can be made
    agent = device.start()
    agent.predict(device.images)
    device.eventually(lambda: agent.status()["dropped"] == {"storage": len(device.images)})
    assert "storage_failed" in str(agent.status()["last_error"])
    outbox.rmdir()
    agent.predict(device.images)
    assert agent.settle(20)
    assert len(device.cloud.samples) == len(device.images)


def test_a_first_start_without_cloud_fails_and_frees_the_folder(device: Any) -> None:
    with pytest.raises(TransportError):
        device.start(url="http://127.0.0.1:1")
    assert device.version_of(device.start()) == 0


def test_a_closed_agent_does_not_predict(device: Any) -> None:
    agent = device.start()
    agent.close()
    agent.close()
    with pytest.raises(ConflictError, match="closed"):
        agent.predict(device.images)
