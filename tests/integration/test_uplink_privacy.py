"""What leaves a device, and in which form, is for its owner to say: nothing at all, or what a guard lets through."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image, ImageFilter

from cema.config import StatisticsConfig
from cema.edge import EdgeAgent
from cema.edge.session import EdgeSession
from cema.types import Uint8Array
from cema.wire.image import decode_image, encode_image


@pytest.fixture
def start(device: Any) -> Callable[..., EdgeAgent]:
    """start(before_upload, **uplink): an agent that sends exact pixels, of every picture."""

    def make(before_upload: Callable[[Uint8Array], Any] | None = None, **uplink: Any) -> EdgeAgent:
        settings = msgspec.structs.replace(device.config.uplink, **{"image_coding": "png", **uplink})
        config = msgspec.structs.replace(device.config, uplink=settings)
        agent = EdgeAgent(config, before_upload=before_upload)
        device.agents.append(agent)
        return agent

    return make


def arrived(device: Any) -> list[Uint8Array]:
    return [decode_image(sample.image, sample.codec) for sample in device.cloud.samples]


def test_the_cloud_gets_what_the_guard_made_of_a_picture_and_the_model_what_the_camera_saw(
    device: Any, start: Callable[..., EdgeAgent]
) -> None:
    session = EdgeSession(device.bundle, device.bundle.source_parameters(), 0, threads=1)
    plain = session.predict(np.stack(device.images)).confidence_B.tolist()
    agent = start(lambda pixels_HWC: pixels_HWC[2:6, 1:7] // 2)
    assert [said.probability for said in agent.predict(device.images)] == plain
    assert agent.settle(20)
    for picture, image in zip(arrived(device), device.images, strict=True):
        np.testing.assert_array_equal(picture, image[2:6, 1:7] // 2)


def test_a_cameras_own_bytes_do_not_pass_by_the_guard(device: Any, start: Callable[..., EdgeAgent]) -> None:
    agent = start(np.zeros_like)
    agent.predict([encode_image(device.images[0], "png")])
    assert agent.settle(20)
    (picture,) = arrived(device)
    assert picture.shape == (8, 8, 3)
    assert not picture.any()


def test_the_guard_runs_beside_predict_and_may_take_its_time(device: Any, start: Callable[..., EdgeAgent]) -> None:
    threads: list[int] = []
    released = threading.Event()

    def slow(pixels_HWC: Uint8Array) -> Uint8Array:
        threads.append(threading.get_ident())
        released.wait(20)
        return pixels_HWC

    agent = start(slow)
    assert len(agent.predict(device.images)) == 6
    released.set()
    assert agent.settle(20)
    assert len(arrived(device)) == 6
    assert threading.get_ident() not in threads


def failing(pixels_HWC: Uint8Array) -> Uint8Array:
    raise ZeroDivisionError("a bug of the guard's")


@pytest.mark.parametrize(
    ("guard", "error"),
    [
        (lambda pixels_HWC: None, None),
        (failing, "a bug of the guard's"),
        (lambda pixels_HWC: pixels_HWC.astype(np.float32), "got float32 [8, 8, 3]"),
        (lambda pixels_HWC: pixels_HWC[..., 0], "got uint8 [8, 8]"),
        (lambda pixels_HWC: pixels_HWC[:0], "got uint8 [0, 8, 3]"),
        (lambda pixels_HWC: "no picture", "expected uint8"),
    ],
    ids=["nothing", "raises", "floats", "one channel", "empty", "text"],
)
@pytest.mark.parametrize("blur_px", [0.0, 1.0])
def test_what_a_guard_does_not_let_through_stays_on_the_device_and_is_counted(
    device: Any, start: Callable[..., EdgeAgent], guard: Any, error: str | None, blur_px: float
) -> None:
    agent = start(guard, blur_px=blur_px)
    agent.predict(device.images)
    device.cloud.wait_for(lambda: device.cloud.batches and device.cloud.batches[-1].dropped == {"withheld": 6})
    assert device.cloud.samples == []
    told = agent.status()["last_error"]
    assert told is None if error is None else error in str(told)


def test_one_picture_that_is_withheld_does_not_cost_the_others(device: Any, start: Callable[..., EdgeAgent]) -> None:
    first = device.images[0].tobytes()
    agent = start(lambda pixels_HWC: None if pixels_HWC.tobytes() == first else pixels_HWC)
    agent.predict(device.images)
    assert agent.settle(20)
    assert [picture.tobytes() for picture in arrived(device)] == [image.tobytes() for image in device.images[1:]]


@pytest.mark.parametrize("before_upload", [None, lambda pixels_HWC: 255 - pixels_HWC], ids=["blur", "guard and blur"])
def test_the_configured_blur_comes_last(device: Any, start: Callable[..., EdgeAgent], before_upload: Any) -> None:
    agent = start(before_upload, blur_px=1.5)
    agent.predict([encode_image(device.images[0], "png"), device.images[1]])
    assert agent.settle(20)
    for picture, image in zip(arrived(device), device.images, strict=False):
        seen = image if before_upload is None else before_upload(image)
        expected = np.asarray(Image.fromarray(seen).filter(ImageFilter.GaussianBlur(1.5)))
        np.testing.assert_array_equal(picture, expected)
    assert len(arrived(device)) == 2


def test_a_device_that_sends_no_samples_takes_updates_and_reports_what_it_saw(
    device: Any, start: Callable[..., EdgeAgent]
) -> None:
    agent = start(send_samples=False)
    assert not any(said.selected for said in agent.predict(device.images))
    device.publish(1)
    device.eventually(lambda: device.version_of(agent) == 1)
    device.cloud.wait_for(lambda: any(batch.samples_seen >= 6 for batch in device.cloud.batches))
    agent.close()
    assert device.cloud.samples == []
    assert agent.status()["adaptation"] == "on"
    assert agent.status()["memory_samples"] == agent.status()["outbox_samples"] == 0


def test_a_device_that_sends_no_samples_still_follows_its_stream(own: Any, pale: Uint8Array) -> None:
    uplink = msgspec.structs.replace(own.config.uplink, send_samples=False)
    agent = own.start(statistics=StatisticsConfig(follow="on"), uplink=uplink)
    assert agent.predict(list(pale[:16]))[0].stats_revision >= 1
    assert agent.settle(20)
    assert own.cloud.samples == []


def test_what_waits_is_dropped_when_nothing_may_be_sent_any_more(device: Any, start: Callable[..., EdgeAgent]) -> None:
    agent = start()
    device.cloud.released.clear()
    agent.predict(device.images)
    agent.close()
    assert agent.status()["outbox_samples"] == 6
    device.cloud.released.set()
    start(send_samples=False).close()
    again = start()
    again.predict(device.images[:1])
    assert again.settle(20)
    assert len(device.cloud.samples) == 1
