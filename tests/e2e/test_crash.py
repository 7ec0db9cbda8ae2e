"""kill -9 in mid-stream, of the cloud and of the edge: nothing acknowledged is lost, nothing is trained on twice."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from cema.bench.datasets import load_dataset
from cema.config import OutboxConfig
from cema.config_files import device_token, load_device
from cema.edge.client import CloudClient
from cema.edge.outbox import Outbox
from cema.errors import CemaError
from cema.wire.bundle import decode_bundle
from cema.wire.image import encode_image
from cema.wire.messages import Sample, SampleBatch

pytestmark = pytest.mark.e2e
KILLS = 3
BATCHES = 30
BATCH = 32


def samples_in(folder: Path) -> dict[bytes, str]:
    """id -> state, of every sample in the store."""
    with sqlite3.connect(folder / "cema-data" / "cema.db") as database:
        rows = database.execute("select sample_id, state from samples").fetchall()
    assert len({bytes(row[0]) for row in rows}) == len(rows)
    return {bytes(row[0]): row[1] for row in rows}


class Uploader(threading.Thread):
    """A device that never gives up: every batch is sent until it is acknowledged."""

    def __init__(self, device: Path, fingerprint: str) -> None:
        super().__init__(daemon=True)
        config = load_device(device)
        self.client = CloudClient(config.url, config.group, device_token(config), config=config.uplink)
        self.fingerprint, self.acknowledged, self.retries = fingerprint, set[bytes](), 0
        self.progress = threading.Condition()

    def run(self) -> None:
        images = load_dataset("digits", None).images
        boot_id = os.urandom(16)
        for number in range(BATCHES):
            samples = [
                Sample(
                    sample_id=os.urandom(16), seq=number * BATCH + i, codec="png",
                    image=encode_image(np.asarray(images[(number * BATCH + i) % len(images)]), "png"), label=0,
                    probability=0.5, entropy=0.5, update_version=0, captured_at_ms=0,
                )
                for i in range(BATCH)
            ]  # fmt: skip
            batch = SampleBatch(
                device_id="cam", boot_id=boot_id, fingerprint=self.fingerprint, samples=samples,
                samples_seen=(number + 1) * 64,
            )  # fmt: skip
            self._insist(batch)
            with self.progress:
                self.acknowledged |= {sample.sample_id for sample in samples}
                self.progress.notify_all()

    def _insist(self, batch: SampleBatch) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                receipt = self.client.upload(batch)
            except CemaError:
                self.retries += 1
                threading.Event().wait(0.05)  # the cloud is down: this is the back-off of a device
                continue
            assert receipt.rejected == []
            return
        raise AssertionError("the cloud did not come back")


def test_killing_the_cloud_in_mid_stream_loses_no_acknowledged_sample_and_trains_on_none_twice(
    service: Any, digits_bundle: bytes
) -> None:
    uploader = Uploader(service.enrol("cam"), decode_bundle(digits_bundle).manifest.fingerprint)
    uploader.start()
    for kill in range(1, KILLS + 1):
        with uploader.progress:
            enough = kill * BATCHES * BATCH // (KILLS + 1)
            assert uploader.progress.wait_for(lambda n=enough: len(uploader.acknowledged) >= n, 120)
        service.kill()
        service.start()
    uploader.join(180)
    assert not uploader.is_alive()
    assert uploader.retries > 0  # it was hit
    wait_until_idle(service)
    assert service.stop() == 0
    stored = samples_in(service.folder)
    assert uploader.acknowledged <= stored.keys()
    assert len(stored) == BATCHES * BATCH
    assert Counter(stored.values())["pending"] < 32
    listed = service.run("update", "list", "-c", "cema.toml", "--group", service.group, "--limit", "10000", "--json")
    updates = json.loads(listed)["updates"]
    assert [row["version"] for row in updates] == list(range(len(updates), 0, -1))
    # Every step publishes: a version that learned from anything but 32 new samples lost some or saw some twice.
    assert {row["samples"] for row in updates} <= {0, 32}
    used = sum(state != "pending" for state in stored.values())
    assert sum(row["samples"] for row in updates) == used


def wait_until_idle(service: Any) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if Counter(samples_in(service.folder).values())["pending"] < 32:
            return
        threading.Event().wait(0.1)
    raise AssertionError("the worker did not use up the samples")


def test_killing_the_edge_loses_no_sample_that_was_committed_and_sends_none_twice(
    service: Any, tmp_path: Path, digits_bundle: bytes
) -> None:
    device, photos = service.enrol("cam"), tmp_path / "photos"
    photos.mkdir()
    for index, image in enumerate(load_dataset("digits", None).images[:200]):
        Image.fromarray(np.asarray(image)).save(photos / f"{index:04}.png")
    device.write_text(device.read_text() + "\n[selection]\nenabled = false\n")
    where = ["--device", str(device), "--images", str(photos)]
    command = [*service.cema, "edge", "run", *where, "--batch", "8", "--settle", "60"]
    first = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    for _ in range(64):
        assert json.loads(first.stdout.readline())["selected"] is True
    first.send_signal(signal.SIGKILL)
    first.communicate()
    fingerprint = decode_bundle(digits_bundle).manifest.fingerprint
    outbox = Outbox(tmp_path / "cema-state" / "cam" / "outbox.db", OutboxConfig(), fingerprint)
    committed = {sample.sample_id for sample in outbox.peek(10_000, 1 << 30)}
    outbox.close()
    delivered_before = set(samples_in(tmp_path))
    second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=180)
    assert second.returncode == 0, second.stderr
    assert len(second.stdout.splitlines()) == 200
    stored = samples_in(tmp_path)
    assert committed <= stored.keys()
    assert delivered_before <= stored.keys()
    assert len(stored) == len(committed | delivered_before) + 200
    devices = json.loads(service.run("device", "list", "-c", "cema.toml", "--json"))["devices"]
    assert devices[0]["samples_seen"] == 200


def test_no_process_is_left_behind_when_the_service_is_killed(service: Any) -> None:
    parent = psutil.Process(service.child.pid)
    deadline = time.monotonic() + 60
    while not (workers := parent.children(recursive=True)) and time.monotonic() < deadline:
        threading.Event().wait(0.05)
    assert workers
    service.kill()
    _, left = psutil.wait_procs(workers, timeout=30)
    assert left == []
