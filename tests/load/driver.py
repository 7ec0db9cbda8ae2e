"""Many devices in one process, each a real ``EdgeAgent``; every second a JSON line about what they did.

Orders come on standard input. A process of its own: ``python -m load.driver PLAN.json``.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, cycle
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
from urllib3.connection import HTTPConnection

from cema.cloud.models.digits import digit_images
from cema.config import DeviceConfig, OutboxConfig, RuntimeConfig, SelectionConfig, StatisticsConfig, UplinkConfig
from cema.edge.agent import EdgeAgent
from cema.edge.client import CloudClient, Fetched
from cema.edge.identity import Identity
from cema.errors import CemaError, OverloadedError
from cema.types import Uint8Array
from cema.wire.body import UploadBody
from cema.wire.bundle import load_bundle
from cema.wire.messages import GroupStatus, SampleBatch, UploadReceipt
from load.plan import BATCH, GROUP, DriverPlan, Order

PICTURES = 128
OUTBOX_SAMPLES = 2 * BATCH
"""So small that the backlog of a fleet is worked off within seconds, and that drops have to be counted."""
POLL_WAIT_S = 5.0
"""Shorter than on devices: minutes show what hours would."""
CODING = "raw"
"""Of pictures: a hundred devices share one core here, which shall do what devices do all day, but for pictures."""
LATE_S = 5.0
"""A producer that is so far behind gives up what it has not made: it is not offered."""
IDLE_S = 0.02
REPORT_S = 1.0


class Notes:
    """What happened since the last report. requests: as ``evidence.Request``. Thread-safe."""

    def __init__(self) -> None:
        self._requests: list[tuple[float, str, str, float, float, float, str]] = []
        self._connects: list[float] = []
        self._predicted: dict[str, float] = {}
        self._made, self._gap_s = 0, 0.0

    @contextmanager
    def request(self, device: str, kind: str, wait_s: float = 0.0) -> Iterator[None]:
        """``wait_s``: of a poll, which its answer may take longer."""
        began_s, code, asked_s = time.monotonic(), "", 0.0
        try:
            yield
        except CemaError as error:
            code = error.code
            if isinstance(error, OverloadedError):
                asked_s = float(str(error.values["retry_after_s"]))
            raise
        finally:
            now_s = time.monotonic()
            taken_s = now_s - began_s
            self._requests.append((now_s, kind, code, taken_s, max(0.0, taken_s - wait_s), asked_s, device))

    def connecting(self) -> None:
        self._connects.append(time.monotonic())

    def predicted(self, device: str, images: int, period_s: float) -> None:
        """period_s: from one prediction of a device to its next, if nothing holds it up."""
        now_s = time.monotonic()
        self._gap_s = max(self._gap_s, now_s - self._predicted.get(device, now_s) - period_s)
        self._predicted[device] = now_s
        self._made += images

    def resting(self, device: str) -> None:
        """It has nothing to see for now: this is no gap."""
        self._predicted.pop(device, None)

    def report(self) -> dict[str, Any]:
        requests, self._requests = self._requests, []
        connects, self._connects = self._connects, []
        made, self._made = self._made, 0
        gap_s, self._gap_s = self._gap_s, 0.0
        return {"made": made, "gap_s": gap_s, "requests": requests, "connects": connects}


class NotedClient(CloudClient):
    """The product's client; notes what came of each request, and which samples were acknowledged."""

    notes: Notes
    device = ""
    acknowledged: IO[bytes]
    _packed: tuple[bytes, ...] = ()

    def pack(self, batch: SampleBatch) -> UploadBody:
        self._packed = tuple(sample.sample_id for sample in batch.samples)  # the sender alone packs
        return super().pack(batch)

    def upload_body(self, body: UploadBody) -> UploadReceipt:
        with self.notes.request(self.device, "upload" if self._packed else "report"):
            receipt = super().upload_body(body)
        refused = {rejection.sample_id for rejection in receipt.rejected}
        self.acknowledged.write(b"".join(each for each in self._packed if each.hex() not in refused))
        return receipt

    def status(self) -> GroupStatus:
        with self.notes.request(self.device, "status"):
            return super().status()

    def poll(self, after: int, fingerprint: str, wait_s: float, have: int | None = None) -> Fetched | None:
        with self.notes.request(self.device, "poll", wait_s):
            return super().poll(after, fingerprint, wait_s, have)


class Device(EdgeAgent):
    """A real agent with that client. waiting: samples that it has not handed over yet."""

    def _client(self) -> CloudClient:
        config = self._config
        identity = Identity(config, self._folder)
        client = NotedClient(config.url, config.group, identity, config=config.uplink, counters=self.counters)
        client.device = config.device_id
        return client

    @property
    def waiting(self) -> int:
        return len(self._uplink.writer) + len(self._outbox)


def configured(plan: DriverPlan, name: str, token: str) -> DeviceConfig:
    return DeviceConfig(
        url=plan.url, group=GROUP, device_id=name, token=token, public_key=plan.public_key,
        state_dir=f"{plan.state}/{name}", selection=SelectionConfig(enabled=False),
        outbox=OutboxConfig(max_samples=OUTBOX_SAMPLES), statistics=StatisticsConfig(follow="off"),
        uplink=UplinkConfig(batch_samples=BATCH, poll_wait_s=POLL_WAIT_S, image_coding=CODING),
        runtime=RuntimeConfig(threads=1),
    )  # fmt: skip


class Orders:
    """The last line of standard input; its end is an order to stop at once."""

    def __init__(self) -> None:
        self.current = Order()
        self.changed = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with open(0, "rb", buffering=0, closefd=False) as lines:  # a buffer's lock would be in the way at exit
            for line in lines:
                self.current = msgspec.json.decode(line, type=Order)
                self.changed.set()
        self.current = Order(settle_s=0.0)
        self.changed.set()


def produce(devices: list[Device], orders: Orders, notes: Notes, pictures: list[Uint8Array]) -> float:
    """Predict as ordered, until the order to settle; returns how long to wait for that."""
    stream = cycle([pictures[start : start + BATCH] for start in range(0, len(pictures), BATCH)])
    due_s = 0.0
    for number in count():
        order = orders.current
        if order.settle_s is not None:
            return order.settle_s
        if orders.changed.is_set():
            orders.changed.clear()
            due_s = time.monotonic()
            for device in devices:
                notes.resting(device._config.device_id)
        device = devices[number % order.active] if order.active else None
        if device is None or (order.images_per_s is None and device.waiting > BATCH):
            orders.changed.wait(IDLE_S / max(1, order.active))
            continue
        said = device.predict(next(stream))
        pause_s = BATCH / order.images_per_s if order.images_per_s else 0.0
        notes.predicted(device._config.device_id, sum(each.selected for each in said), order.active * pause_s)
        if pause_s:
            due_s = max(due_s + pause_s, time.monotonic() - LATE_S)
            orders.changed.wait(max(0.0, due_s - time.monotonic()))
    raise AssertionError("counting ended")


def say(event: str, **facts: object) -> None:
    sys.stdout.write(json.dumps({"event": event, "t": time.monotonic(), **facts}) + "\n")
    sys.stdout.flush()


def report_on(notes: Notes, over: threading.Event) -> None:
    while not over.wait(REPORT_S):
        say("second", **notes.report())
    say("second", **notes.report())


def settle(devices: list[Device], limit_s: float) -> None:
    """Each sends what waits; then the books are closed."""
    deadline_s = time.monotonic() + limit_s
    for device in devices:
        device.settle(max(0.0, deadline_s - time.monotonic()))
    for device in devices:
        device.close()
        status = device.status()
        waiting = int(str(status["memory_samples"])) + int(str(status["outbox_samples"]))
        say("ledger", device=status["device_id"], made=status["samples_seen"], acknowledged=status["uploaded"],
            waiting=waiting, dropped=status["dropped"])  # fmt: skip


def main() -> None:
    plan = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=DriverPlan)
    notes, orders, over = Notes(), Orders(), threading.Event()
    dial = HTTPConnection._new_conn

    def noted_dial(connection: HTTPConnection) -> Any:
        notes.connecting()
        return dial(connection)

    HTTPConnection._new_conn = noted_dial  # type: ignore[method-assign]
    rng = np.random.default_rng(plan.seed)
    pictures = list(rng.permutation(digit_images()[0])[:PICTURES])
    with Path(plan.acknowledged).open("wb") as acknowledged:
        NotedClient.notes, NotedClient.acknowledged = notes, acknowledged
        devices = [Device(configured(plan, *each), bundle=load_bundle(plan.bundle)) for each in plan.devices]
        reporter = threading.Thread(target=report_on, args=(notes, over))
        reporter.start()
        say("ready")
        settle(devices, produce(devices, orders, notes, pictures))
        over.set()
        reporter.join()


if __name__ == "__main__":
    main()
