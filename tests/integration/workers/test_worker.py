"""A worker on a real store: serves what is due, survives a broken group, keeps house."""

from __future__ import annotations

import itertools
import logging
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from cema.cloud.adapt.cema_paper import CemaPaper
from cema.cloud.keys import signing_key
from cema.cloud.pool import ModelPool
from cema.cloud.worker import HOUSEKEEPING_INTERVAL_S, SLICE_S
from cema.edge.session import EdgeSession
from cema.wire import signing
from cema.wire.bundle import load_bundle
from cema.wire.update import open_update


def test_worker_turns_uploads_into_a_signed_version(folder: Path, make_cloud: Callable[..., Any]) -> None:
    cloud = make_cloud("g")
    worker = cloud.worker()
    assert not worker.once()
    cloud.upload("g", 32)
    assert worker.once()
    row = cloud.store.update("g", 1)
    update = open_update(
        cloud.blobs.get(row.blob), load_bundle(folder / "edge.bundle").manifest, signature=row.signature,
        key=signing.public_key(signing_key(cloud.config)),
    )  # fmt: skip
    source = cloud.bundle.source_parameters()
    assert any(not np.array_equal(update.parameters[name], source[name]) for name in source)
    assert not worker.once()


def test_devices_in_int8_are_served_by_the_float_model(
    make_cloud: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    cloud = make_cloud({"g": "worker_models:edge", "wrong": "worker_models:other_edge"}, int8=True)
    for group in ("g", "wrong"):
        cloud.upload(group, 32)
    worker = cloud.worker()
    while worker.once():
        pass
    update = open_update(cloud.blobs.get(cloud.store.update("g", 1).blob), cloud.bundle.manifest)
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (8, 8, 8, 3), np.uint8)
    before = EdgeSession(cloud.bundle, cloud.bundle.source_parameters(), 0).logits(images)
    assert np.abs(EdgeSession(cloud.bundle, update.parameters, 1).logits(images) - before).max() > 0
    assert cloud.store.group("wrong").latest_version == 0
    assert "was not built from edge_model" in caplog.text


def test_a_broken_group_does_not_keep_the_worker_from_the_others(
    make_cloud: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    cloud = make_cloud({"broken": "worker_models:other_edge", "good": "worker_models:edge"})
    worker = cloud.worker()
    for group in ("broken", "good"):
        cloud.upload(group, 32)
    with caplog.at_level(logging.ERROR):
        assert worker.once()
        assert worker.once()
        assert not worker.once()  # the broken one rests before it is tried again
    assert cloud.store.group("good").latest_version == 1
    assert cloud.store.group("broken").latest_version == 0
    assert cloud.store.group("broken").pending == 32
    assert "was not built from edge_model" in caplog.text


def test_a_group_with_a_backlog_makes_room_for_others_and_goes_on_after_them(make_cloud: Callable[..., Any]) -> None:
    cloud = make_cloud(dict.fromkeys(("busy", "other"), "worker_models:edge"))
    elapsed_s = itertools.count(step=SLICE_S / 2)  # two looks at the clock, then the slice is over
    worker = cloud.worker(clock_s=lambda: next(elapsed_s))
    cloud.upload("busy", 5 * 32)
    cloud.upload("other", 32)
    left = []
    while worker.once():
        left.append(tuple(cloud.store.group(name).pending for name in ("busy", "other")))
    assert left == [(128, 32), (128, 0), (96, 0), (64, 0), (32, 0), (0, 0)]
    assert [cloud.store.group(name).ticks_done for name in ("busy", "other")] == [1, 1]


class UntilReleased(threading.Event):
    """Set once it has been waited for so many times."""

    def __init__(self, waits: int) -> None:
        super().__init__()
        self.waits = waits

    def wait(self, timeout: float | None = None) -> bool:
        self.waits -= 1
        if self.waits <= 0:
            self.set()
        return super().wait(0)


def test_a_store_that_fails_does_not_end_the_worker(
    folder: Path, make_cloud: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    cloud = make_cloud("g")
    cloud.upload("g", 32)
    worker = cloud.worker()
    with sqlite3.connect(folder / "data" / "cema.db") as database:  # as a full disk would, every write fails
        database.execute("CREATE TRIGGER full BEFORE UPDATE ON groups BEGIN SELECT RAISE(ABORT, 'disk is full'); END")
    worker.run(UntilReleased(2))
    assert "disk is full" in caplog.text
    assert cloud.store.group("g").latest_version == 0
    with sqlite3.connect(folder / "data" / "cema.db") as database:
        database.execute("DROP TRIGGER full")
    worker.run(UntilReleased(2))
    assert cloud.store.group("g").latest_version == 1


def test_a_group_whose_checkpoint_is_damaged_learns_again(
    folder: Path, make_cloud: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    cloud = make_cloud("g")
    cloud.upload("g", 32)
    assert cloud.worker("one").once()
    checkpoint = cloud.store.group("g").checkpoint
    assert checkpoint is not None
    (folder / "data" / "blobs" / checkpoint[:2] / checkpoint).write_bytes(b"damaged")
    cloud.upload("g", 32)
    assert cloud.worker("two").once()
    row = cloud.store.group("g")
    assert (row.latest_version, row.pending) == (2, 0)
    assert len(cloud.store.replay("g")) == 64
    assert "learning begins anew" in caplog.text


def test_another_worker_goes_on_where_the_first_one_stopped(make_cloud: Callable[..., Any]) -> None:
    cloud = make_cloud("g")
    first, second = cloud.worker("one"), cloud.worker("two")
    for worker in (first, second, first):  # the first has an old state in memory by then
        cloud.upload("g", 32)
        assert worker.once()
    assert cloud.store.group("g").latest_version == 3
    assert len(cloud.store.replay("g")) == 96


def test_housekeeping_deletes_checkpoints_that_are_no_longer_needed(
    folder: Path, make_cloud: Callable[..., Any]
) -> None:
    cloud = make_cloud("g")
    worker = cloud.worker()
    for _ in range(3):
        cloud.upload("g", 32)
        worker.once()
    blobs = folder / "data" / "blobs"
    before = sum(path.is_file() for path in blobs.rglob("*"))
    cloud.now_ms += round(HOUSEKEEPING_INTERVAL_S * 1000)
    worker.once()
    assert sum(path.is_file() for path in blobs.rglob("*")) == before - 2
    assert cloud.worker("fresh").once() is False
    cloud.upload("g", 32)
    assert cloud.worker("fresh").once()  # its checkpoint is still there


def test_groups_that_share_models_learn_as_if_each_were_alone(folder: Path, make_cloud: Callable[..., Any]) -> None:
    def learned(names: list[str]) -> dict[str, bytes]:
        """Parameters after three rounds of uploads that are the same for a name, whoever else is there."""
        (folder / "-".join(names)).mkdir()
        cloud = make_cloud(dict.fromkeys(names, "worker_models:edge"), folder / "-".join(names))
        worker = cloud.worker()
        for turn in range(3):
            for number, name in enumerate(("one", "two")):
                if name in names:
                    cloud.sent = 1000 * number + 100 * turn
                    cloud.upload(name, 32)
                    assert worker.once()
        rows = {name: cloud.store.update(name, 3) for name in names}
        found = {name: open_update(cloud.blobs.get(row.blob), cloud.bundle.manifest) for name, row in rows.items()}
        return {
            name: b"".join(value.tobytes() for _, value in sorted(update.parameters.items()))
            for name, update in found.items()
        }

    together = learned(["one", "two"])
    assert together["one"] != together["two"]
    assert together == {**learned(["one"]), **learned(["two"])}


def test_models_are_shared_by_groups_that_adapt_them_alike_and_by_no_others(make_cloud: Callable[..., Any]) -> None:
    cloud = make_cloud("abc")
    blob, pool = cloud.store.group("a").bundle_blob, ModelPool(cloud.blobs)
    group = cloud.config.groups["a"]
    bundle, shared = pool.models(group, blob)
    assert pool.models(msgspec.structs.replace(group, seed=7), blob) == (bundle, shared)
    assert pool.models(msgspec.structs.replace(group, options={"edge_lr": 0.01}), blob)[1] is not shared
    assert pool.models(msgspec.structs.replace(group, method="bn"), blob)[1] is not shared


def test_the_gate_judges_a_group_by_its_own_parameters_whoever_worked_before(
    folder: Path, make_cloud: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    answered: list[bytes] = []
    answer = CemaPaper.edge_logits

    def listen(adapter: CemaPaper, images_BCHW: torch.Tensor) -> torch.Tensor:
        answered.append(adapter.edge_parameters()["1.running_mean"].tobytes())
        return answer(adapter, images_BCHW)

    monkeypatch.setattr(CemaPaper, "edge_logits", listen)

    def heard(names: list[str]) -> list[bytes]:
        """The parameters with which group one was asked, before and after each of its steps."""
        (folder / "-".join(names)).mkdir()
        cloud = make_cloud(dict.fromkeys(names, "worker_models:edge"), folder / "-".join(names))
        worker, asked = cloud.worker(), []
        for turn in range(3):
            for name in names:
                cloud.sent = 100 * turn + 1000 * names.index(name)
                cloud.upload(name, 32)
                answered.clear()
                assert worker.once()
                asked += answered if name == "one" else []
        return asked

    alone = heard(["one"])
    assert len(set(alone)) == 4
    assert heard(["one", "two"]) == alone
