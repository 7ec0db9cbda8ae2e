"""The device's way to the cloud: four background threads and no more.

- writer: memory queue -> encode -> outbox (writer.py); never waits for the network
- sender: outbox -> upload, with backoff and a byte budget (sender.py)
- poller: long poll -> verify, build, swap (updater.py); a new bundle; the cloud's kill switch
- follower: what was predicted -> the device's own statistics (follower.py); needs no cloud

Every wait is on an event or condition, and a running request can be ended: ``close`` is prompt.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable

from cema.config import DeviceConfig
from cema.edge.client import CloudClient
from cema.edge.clock import ServerClock
from cema.edge.counters import EdgeCounters
from cema.edge.follower import Follower
from cema.edge.outbox import Outbox
from cema.edge.sender import Sender
from cema.edge.updater import Updater
from cema.edge.worker import Backoff, Worker
from cema.edge.writer import Captured, Writer
from cema.errors import BaseMismatchError
from cema.types import Uint8Array
from cema.wire.messages import BOOT_ID_BYTES, GroupStatus

CLOSE_TIMEOUT_S = 5.0
"""For each thread; one that hangs in the operating system (connect, DNS) is left behind, it is a daemon."""


class Poller:
    """Asks the cloud what to run; ``step`` is run by a worker thread."""

    def __init__(
        self, client: CloudClient, updater: Updater, config: DeviceConfig, *,
        switch: Callable[[], None], pause: Callable[[float], object],
    ) -> None:  # fmt: skip
        self._client, self._updater, self._config = client, updater, config.uplink
        self._switch, self._pause = switch, pause

    def step(self) -> None:
        """One round: kill switch, bundle, update, new key. Raises what client and updater raise."""
        status = self._client.status()
        self._follow(status)
        if status.rotate_key is True:  # last: a key that cannot be had now keeps no update back
            self._client.rotate_key()

    def _follow(self, status: GroupStatus) -> None:
        started_s = time.monotonic()
        self._updater.set_adaptation(status.adaptation)
        self._updater.set_stats_owner(status.stats_owner)
        self._switch()
        if status.adaptation == "off":
            self._pause(max(self._config.poll_wait_s, self._config.backoff_min_s))
            return
        fetched = self._poll() if status.fingerprint == self._updater.fingerprint else self._replace_bundle()
        if not fetched:  # a cloud or proxy that answers at once instead of waiting must not make us spin
            self._pause(max(0.0, self._config.backoff_min_s - (time.monotonic() - started_s)))

    def _poll(self) -> bool:
        try:
            answer = self._client.poll(
                self._updater.poll_after, self._updater.fingerprint, self._config.poll_wait_s, self._updater.have
            )
        except BaseMismatchError:
            return self._replace_bundle()
        if answer is not None:
            self._updater.apply(*answer)
        return answer is not None

    def _replace_bundle(self) -> bool:
        self._updater.replace_bundle(*self._client.bundle())
        self._switch()
        return True


class Uplink:
    """The threads of one agent. client None: offline by configuration, only the writer runs."""

    def __init__(
        self, client: CloudClient | None, outbox: Outbox, updater: Updater, config: DeviceConfig,
        counters: EdgeCounters, *, write_status: Callable[[], None], clock: ServerClock | None = None,
        rng: random.Random | None = None, follower: Follower | None = None,
        guard: Callable[[Uint8Array], Uint8Array | None] | None = None,
    ) -> None:  # fmt: skip
        self._client, self._outbox, self._updater = client, outbox, updater
        clock = clock or ServerClock()
        self._workers: list[Worker] = []
        self.sender: Sender | None = None
        if client is not None:
            rng = rng or random.Random()  # noqa: S311 - jitter, not a secret
            self.sender = Sender(
                client, outbox, config.uplink, counters, device_id=config.device_id,
                boot_id=os.urandom(BOOT_ID_BYTES), enabled=lambda: updater.adapting, clock=clock,
            )  # fmt: skip
            self._workers.append(Worker("cema-sender", self.sender.step, Backoff(config.uplink, rng), counters))
            poller = Poller(client, updater, config, switch=self._on_switch, pause=self._pause)
            self._workers.append(Worker("cema-poller", poller.step, Backoff(config.uplink, rng), counters))
        self._follower = follower
        if follower is not None:
            backoff = Backoff(config.uplink, rng or random.Random())  # noqa: S311 - jitter, not a secret
            self._workers.append(Worker("cema-follower", follower.step, backoff, counters))
        self.writer = Writer(
            outbox, config.outbox, counters, on_commit=self._wake, write_status=write_status,
            clock=clock, coding=config.uplink.image_coding, guard=guard,
        )  # fmt: skip

    def start(self) -> None:
        self.writer.start()
        for worker in self._workers:
            worker.start()

    def offer(self, captured: list[Captured]) -> None:
        """Hand over selected samples; returns at once."""
        self.writer.offer(captured)

    def settle(self, timeout_s: float) -> bool:
        """Wait until all samples have reached the cloud, at most ``timeout_s``."""
        return self.sender is None or self.sender.settle(lambda: len(self.writer), timeout_s)

    def close(self) -> None:
        """End all threads; what is in memory is committed to the outbox first."""
        for worker in self._workers:
            worker.closing.set()
        if self._follower is not None:
            self._follower.close()
        if self._client is not None and self.sender is not None:
            self.sender.close()
            self._client.close()
        self.writer.close(CLOSE_TIMEOUT_S)
        for worker in self._workers:
            worker.join(CLOSE_TIMEOUT_S)

    def _pause(self, seconds: float) -> None:
        self._workers[0].closing.wait(seconds)

    def _wake(self) -> None:
        if self.sender is not None:
            self.sender.notify()

    def _on_switch(self) -> None:
        if self._outbox.fingerprint != self._updater.fingerprint:
            self._outbox.switch(self._updater.fingerprint)
        self._wake()
