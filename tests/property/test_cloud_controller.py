"""The cloud's loop as a state machine: uploads, steps, versions, house-keeping, and a power cut at any point of them.

Real database and blobs. A cut is a copy of the files as they lie on the disk before some SQL statement, commit or
system call; the next life runs on the copy. The adapter counts in its own state how often it has learned each sample,
so that what the cloud committed says itself whether a sample was trained on twice or lost.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sqlalchemy import Engine, event

from cema.cloud.adapt.base import CloudStatistics, Metrics, Schedule, State
from cema.cloud.checkpoint import decode_checkpoint
from cema.cloud.controller import Controller, Publishing
from cema.cloud.sharing import SharedAdapter
from cema.cloud.store.blobs import FolderBlobs
from cema.cloud.store.sql import SqlStore
from cema.errors import ConflictError
from cema.types import NormParameters
from cema.wire.bundle import Bundle, encode_bundle, fingerprint
from cema.wire.image import encode_image
from cema.wire.messages import BundleManifest, NormTensor, Preprocess, Sample, SampleBatch
from cema.wire.update import open_update

GROUP, LEASE_MS, INTERVAL_MS, BOOT = "g", 50, 3, bytes(16)
MOST_SAMPLES = 250  # the number of a sample is the value of its pixels
cuts = st.none() | st.integers(0, 60)
"""Before which statement, commit or system call the power fails; None = it does not."""


def counting_bundle() -> Bundle:
    """One norm tensor, in which versions carry how many samples they have learned."""
    table = [NormTensor(name="n", initializer="n", kind="layer_norm", role="bias", shape=(1,), eps=1e-5, offset=0)]
    recipe, norm = Preprocess(size=(2, 2), mean=(0.0,) * 3, std=(1.0,) * 3), np.zeros(1, "<f4").tobytes()
    manifest = BundleManifest(
        fingerprint=fingerprint(b"graph", norm, recipe, ["a"], table), model="m", classes=["a"], preprocess=recipe,
        input_name="x", output_name="y", norm=table,
    )  # fmt: skip
    return Bundle(manifest, b"graph", norm)


BUNDLE = counting_bundle()


class CountingAdapter(CloudStatistics):
    """Learns nothing but which samples it was given: ``learned_N``, times that each was."""

    schedule = Schedule(
        tick_images=4, step_uploads=3, least_uploads=2, replay_draw=2, replay_min=4, replay_only=2, replay_capacity=6
    )

    def __init__(self) -> None:
        self.learned_N = np.zeros(MOST_SAMPLES, np.float32)
        self.replayed = np.zeros(1, np.float32)

    def step(self, uploads_BCHW: torch.Tensor, replayed_BCHW: torch.Tensor | None) -> Metrics | None:
        for number in (uploads_BCHW[:, 0, 0, 0] * 255).round().to(torch.int64).tolist():
            self.learned_N[number] += 1
        return {"loss": 0.0}

    def replay_step(self, replayed_BCHW: torch.Tensor) -> Metrics | None:
        self.replayed += 1
        return {"loss": 0.0}

    def edge_logits(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(images_BCHW), 1)

    def edge_parameters(self) -> NormParameters:
        return {"n": np.array([self.learned_N.sum()], np.float32)}

    def state(self) -> State:
        return {"learned_N": self.learned_N.copy(), "replayed": self.replayed.copy()}

    def load_state(self, state: State) -> None:
        self.learned_N, self.replayed = state["learned_N"].copy(), state["replayed"].copy()


class PowerCut(BaseException):
    """The machine is gone."""


@contextmanager
def failing_after(points: int, snapshot: Callable[[], None]) -> Iterator[None]:
    """Raise PowerCut at that point, once the disk has been copied; what comes later on the way out is not counted."""
    left, mine = [points], threading.get_ident()

    def reach(*_: Any) -> None:
        if threading.get_ident() != mine:  # another test's server that has not ended yet: its power does not fail
            return
        if left[0] == 0:
            snapshot()
        left[0] -= 1
        if left[0] == -1:
            raise PowerCut

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            reach()
            return real(*args)

        return call

    listeners = [("before_cursor_execute", lambda *_: reach()), ("commit", reach)]
    for name, listener in listeners:
        event.listen(Engine, name, listener)
    try:
        with patch.multiple(os, fsync=counted(os.fsync), replace=counted(os.replace)):
            yield
    finally:
        for name, listener in listeners:
            event.remove(Engine, name, listener)


@pytest.fixture(scope="module")
def empty_cloud(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with the group in it: migrating one for every example would take most of the time."""
    folder = tmp_path_factory.mktemp("empty")
    store = SqlStore.open(f"sqlite:///{folder / 'cema.db'}")
    blob = FolderBlobs(folder / "blobs").put(encode_bundle(BUNDLE))
    store.put_group(GROUP, BUNDLE.manifest.fingerprint, blob, "on", 0)
    store.enrol("cam", GROUP, "token", 0)
    store.close()
    return folder


class CloudMachine(RuleBasedStateMachine):
    """One device that keeps a sample until it is acknowledged, and one worker at a time, or two that do not know."""

    empty: Path

    def __init__(self) -> None:
        super().__init__()
        self.parent = Path(tempfile.mkdtemp())
        self.lives, self.now_ms, self.sent, self.seen = 0, 1000, 0, 0
        self.waiting: list[int] = []
        self.acknowledged: set[int] = set()
        self.newest = 0
        shutil.copytree(self.empty, self.parent / "life-0")
        self._open()

    def _open(self) -> None:
        self.folder = self.parent / f"life-{self.lives}"
        self.store = SqlStore.open(f"sqlite:///{self.folder / 'cema.db'}")
        self.blobs = FolderBlobs(self.folder / "blobs")
        self.controllers: dict[str, Controller] = {}

    def _snapshot(self) -> None:
        """What a power cut would leave: not the log's index, which is shared memory."""
        self.lives += 1  # whatever becomes of the exception: a library may swallow it while it cleans up
        shutil.copytree(self.folder, self.parent / f"life-{self.lives}", ignore=shutil.ignore_patterns("*-shm"))

    def perform(self, operation: Callable[[], None], cut: int | None) -> bool:
        """Whether it came to its end; if not, the cloud is back on what the disk had."""
        if cut is None:
            operation()
            return True
        lives = self.lives
        with suppress(PowerCut), failing_after(cut, self._snapshot):
            operation()
        if self.lives == lives:
            return True
        self.store.close()
        self._open()
        return False

    @precondition(lambda self: self.sent < MOST_SAMPLES - 5)
    @rule(count=st.integers(0, 5), images=st.integers(0, 6))
    def select(self, count: int, images: int) -> None:
        """The device has new samples, and has seen so many images more."""
        self.waiting += range(self.sent, self.sent + count)
        self.sent += count
        self.seen += images + count

    @rule(again=st.integers(0, 3), cut=cuts)
    def upload(self, again: int, cut: int | None) -> None:
        """All that waits, and some that was acknowledged before: its answer may have been lost."""
        numbers = [*sorted(self.acknowledged)[-again:], *self.waiting] if again else [*self.waiting]
        batch = SampleBatch(
            device_id="cam", boot_id=BOOT, fingerprint=BUNDLE.manifest.fingerprint, samples_seen=self.seen,
            samples=[sample(number) for number in numbers],
        )  # fmt: skip
        if self.perform(lambda: void(self.store.add_samples(GROUP, batch, self.now_ms)), cut):
            self.acknowledged.update(numbers)
            self.waiting = []

    @rule(worker=st.sampled_from(["v", "w"]), cut=cuts, late=st.booleans())
    def work(self, worker: str, cut: int | None, late: bool) -> None:
        """One turn of a worker. late: another one takes over before it commits; then nothing of it counts."""
        self.now_ms += LEASE_MS  # the lease of a worker that died has run out
        self.perform(lambda: self._turn(f"{worker}{self.lives}", late), cut)

    def _turn(self, worker: str, late: bool) -> None:
        row = self._claim(worker)
        if row is None:
            return
        if late:
            self.now_ms += LEASE_MS
            self._turn(f"other than {worker}", late=False)
        try:
            self._controller(worker).tick(row)
        except ConflictError:
            self.controllers.pop(worker)
        self.store.release(GROUP, worker)

    def _claim(self, worker: str) -> Any:
        interval = {"tick_images": CountingAdapter.schedule.tick_images, "publish_interval_ms": INTERVAL_MS}
        return self.store.claim(worker, self.now_ms, lease_ms=LEASE_MS, **interval)

    def _controller(self, worker: str) -> Controller:
        row, known = self.store.group(GROUP), self.controllers.get(worker)
        if known is not None and known.checkpoint == row.checkpoint:  # as a worker asks of those that it keeps
            return known
        publishing = Publishing("counting", None, INTERVAL_MS)
        made = Controller(
            row, BUNDLE, SharedAdapter(CountingAdapter()), self.store, self.blobs, publishing, worker=worker,
            seed=1, clock_ms=lambda: self.now_ms,
        )  # fmt: skip
        self.controllers[worker] = made
        return made

    @rule(cut=cuts)
    def keep_house(self, cut: int | None) -> None:
        def forget() -> None:
            for blob in self.store.forget(self.now_ms, id_memory_ms=10**9, keep_versions=2):
                self.blobs.delete(blob)

        self.perform(forget, cut)

    @rule()
    def restart(self) -> None:
        self.store.close()
        self._open()

    @invariant()
    def every_acknowledged_sample_is_trained_on_once_or_waits(self) -> None:
        row = self.store.group(GROUP)
        learned_N = np.zeros(MOST_SAMPLES)
        if row.checkpoint is not None:
            learned_N = decode_checkpoint(self.blobs.get(row.checkpoint))[0]["learned_N"]
        assert learned_N.max() <= 1
        trained = set(np.flatnonzero(learned_N).tolist())
        pending = [int.from_bytes(each.sample_id, "big") for each in self.store.pending(GROUP, 10**6)]
        assert len(set(pending)) == len(pending) == row.pending
        assert not trained & set(pending)
        assert self.acknowledged <= trained | set(pending) <= set(range(self.sent))
        assert row.samples_seen <= self.seen

    @invariant()
    def versions_rise_and_each_knows_what_it_learned(self) -> None:
        row, kept = self.store.group(GROUP), self.store.updates(GROUP)
        assert row.latest_version >= self.newest
        self.newest = row.latest_version
        assert [each.version for each in kept] == list(range(row.latest_version, row.latest_version - len(kept), -1))
        learned = [open_update(self.blobs.get(each.blob), BUNDLE.manifest).parameters["n"].item() for each in kept]
        assert learned == sorted(learned, reverse=True)
        new = [self.store.update_samples(GROUP, each.version) for each in kept]
        assert [len(ids) for ids in new] == [each.samples for each in kept]
        assert [len(ids) for ids in new[:-1]] == [a - b for a, b in pairwise(learned)]

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.parent)


def sample(number: int) -> Sample:
    picture = encode_image(np.full((2, 2, 3), number, np.uint8), "png")
    return Sample(
        sample_id=number.to_bytes(16, "big"), seq=number, codec="png", image=picture, label=0, probability=0.5,
        entropy=0.5, update_version=0, captured_at_ms=0,
    )  # fmt: skip


def void(_: object) -> None:
    """The answer is lost, or not looked at."""


@pytest.mark.usefixtures("empty_cloud")
class TestCloud(CloudMachine.TestCase):
    settings = settings(max_examples=20, stateful_step_count=20, deadline=None)

    @pytest.fixture(autouse=True)
    def _start_from(self, empty_cloud: Path) -> None:
        CloudMachine.empty = empty_cloud
