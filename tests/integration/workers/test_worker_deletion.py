"""What was deleted is trained on by no worker any more, neither from the store nor from its own memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from cema.cloud.adapt.cema_paper import CemaPaper
from cema.cloud.worker import HOUSEKEEPING_INTERVAL_S, RETENTION_INTERVAL_S
from cema.config import RetentionConfig
from cema.wire.image import decode_image

Seen = list[set[bytes]]


@pytest.fixture
def trained_on(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """The pictures of each adapt step, as the bytes of their normalised pixels."""
    seen: Seen = []
    for name in ("step", "replay_step"):
        real = getattr(CemaPaper, name)

        def watched(adapter: CemaPaper, *images: torch.Tensor | None, real: Any = real) -> Any:
            given = [image.contiguous().numpy().tobytes() for batch in images if batch is not None for image in batch]
            seen.append(set(given))
            return real(adapter, *images)

        monkeypatch.setattr(CemaPaper, name, watched)
    return seen


def pixels(cloud: Any, worker: Any, device: str) -> set[bytes]:
    """Those of a device's pictures as a step would see them."""
    rows = [*cloud.store.pending("g", 9999), *cloud.store.replay("g")]
    controller = worker._controller(cloud.store.group("g"))
    pictures = [decode_image(row.image, row.codec) for row in rows if row.device_id == device]
    return {image.contiguous().numpy().tobytes() for image in controller._input(np.stack(pictures))}


def full_replay(cloud: Any, worker: Any) -> None:
    """Two devices, together enough for steps that draw from replay."""
    for _ in range(5):
        for device in ("cam", "gate"):
            cloud.upload("g", 32, device)
            while worker.once():
                pass


def test_a_running_worker_draws_no_deleted_picture_from_its_memory(
    make_cloud: Callable[..., Any], trained_on: Seen
) -> None:
    cloud = make_cloud()
    cloud.store.enrol("cam", "g", "t", 1)
    worker = cloud.worker()
    full_replay(cloud, worker)
    full_replay(cloud, worker)
    deleted = pixels(cloud, worker, "cam")
    assert any(deleted & step for step in trained_on)
    assert cloud.store.delete_samples("cam") == {"g": 320}
    trained_on.clear()
    for _ in range(12):
        cloud.upload("g", 32, "gate")
        worker.once()
    assert len(trained_on) == 12
    assert max(map(len, trained_on)) > 32, "the other device's replay is still drawn from"
    assert not any(deleted & step for step in trained_on)
    assert cloud.store.update("g", cloud.store.group("g").latest_version).deleted_samples == 320


def test_pictures_that_are_deleted_during_a_step_are_in_no_version(
    make_cloud: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud = make_cloud()
    cloud.store.enrol("cam", "g", "t", 1)
    worker, commit = cloud.worker(), cloud.store.commit_step
    cloud.upload("g", 32, "cam")
    during = [lambda: cloud.store.delete_samples("cam")]

    def interrupted(*arguments: Any) -> None:
        if during:
            during.pop()()
        commit(*arguments)

    monkeypatch.setattr(cloud.store, "commit_step", interrupted)
    worker.once()
    worker.once()
    row = cloud.store.group("g")
    assert (row.latest_version, row.pending, row.checkpoint) == (0, 0, None)


def test_a_group_that_rests_keeps_deleted_pictures_in_no_workers_memory(make_cloud: Callable[..., Any]) -> None:
    cloud = make_cloud()
    cloud.store.enrol("cam", "g", "t", 1)
    worker = cloud.worker()
    cloud.upload("g", 32, "cam")
    worker.once()
    memory = weakref.ref(worker._controllers["g"].replay)
    cloud.now_ms += round(HOUSEKEEPING_INTERVAL_S * 1000)
    worker.once()
    assert memory() is not None, "a group that is as it was stays loaded"
    cloud.store.delete_samples("cam")
    cloud.now_ms += round(HOUSEKEEPING_INTERVAL_S * 1000)
    worker.once()
    gc.collect()
    assert memory() is None


@pytest.mark.parametrize(
    ("limits", "kept"),
    [({"sample_age_s": 7200}, 32), ({"samples_per_group": 40}, 40), ({}, 96),
     ({"sample_age_s": 7200, "samples_per_group": 10}, 10)],
)  # fmt: skip
def test_the_limits_of_retention_are_kept_to_the_hour(
    make_cloud: Callable[..., Any], limits: dict[str, Any], kept: int
) -> None:
    cloud = make_cloud()
    cloud.config = msgspec.structs.replace(cloud.config, retention=RetentionConfig(**limits))
    worker = cloud.worker()
    worker.once()
    for _ in range(3):
        cloud.upload("g", 32)
        worker.once()
        cloud.now_ms += 3_600_000 - 1
    cloud.now_ms += round(RETENTION_INTERVAL_S * 1000)
    worker.once()
    assert len(cloud.store.replay("g")) + cloud.store.group("g").pending == kept
    cloud.upload("g", 32)
    assert worker.once(), "the group goes on"
    replayed = len(cloud.store.replay("g"))
    assert len(worker._controllers["g"].replay) == replayed
    assert replayed + cloud.store.group("g").pending == kept + 32
    assert cloud.store.update("g", cloud.store.group("g").latest_version).deleted_samples == 0


def test_retention_is_looked_at_once_an_hour(make_cloud: Callable[..., Any]) -> None:
    cloud = make_cloud()
    cloud.config = msgspec.structs.replace(cloud.config, retention=RetentionConfig(samples_per_group=10))
    worker = cloud.worker()
    worker.once()
    cloud.upload("g", 32)
    worker.once()
    cloud.now_ms += round(RETENTION_INTERVAL_S * 1000) - 2
    worker.once()
    assert len(cloud.store.replay("g")) == 32
    cloud.now_ms += round(HOUSEKEEPING_INTERVAL_S * 1000)
    worker.once()
    assert len(cloud.store.replay("g")) == 10
