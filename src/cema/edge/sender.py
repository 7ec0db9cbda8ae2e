"""From disk to the cloud: uploads the outbox in batches, deletes what was acknowledged, reports samples_seen.

One attempt per step; the worker around it backs off after a failure. The first request of a boot carries no samples:
its answer brings the server's clock (clock.py), which decides what has expired.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

from cema.config import UplinkConfig
from cema.edge.client import CloudClient
from cema.edge.clock import ServerClock
from cema.edge.counters import EdgeCounters
from cema.edge.outbox import CORRUPT, OVERFLOW, REJECTED, Outbox
from cema.errors import CemaError, EncodingError, MessageError, OverloadedError, SizeLimitError, StorageError
from cema.wire.body import UploadBody
from cema.wire.messages import Sample, SampleBatch, UploadReceipt

SECONDS_PER_DAY = 86_400
BUDGET_RECHECK_S = 600.0
"""With the day's byte budget used up, how often to look whether a new day has begun."""
_BUDGET_PREFIX = "bytes_up_day_"


class Sender:
    """Uploads for one device; ``step`` is run by a worker thread.

    Parameters
    ----------
    boot_id: 16 random bytes of this start. enabled: False while the cloud or the device has switched adaptation off.
    clock: told the server's time by every answer.
    """

    def __init__(
        self,
        client: CloudClient,
        outbox: Outbox,
        config: UplinkConfig,
        counters: EdgeCounters,
        *,
        device_id: str,
        boot_id: bytes,
        enabled: Callable[[], bool],
        clock: ServerClock,
    ) -> None:
        self._client, self._outbox, self._config, self._counters = client, outbox, config, counters
        self._device_id, self._boot_id, self._enabled, self._clock = device_id, boot_id, enabled, clock
        self._changed = threading.Condition()
        self._closed = self._flushing = False
        self._greeted = False
        self._reported = -1
        self._dropped_but_arrived = 0  # from a full outbox, while they were under way
        self._sent_at_s = -float("inf")
        self._waiting_since_s: float | None = -float("inf") if len(outbox) else None

    def notify(self) -> None:
        """The outbox or the switch has changed: look again."""
        with self._changed:
            if len(self._outbox) and self._waiting_since_s is None:
                self._waiting_since_s = time.monotonic()
            self._changed.notify_all()

    def close(self) -> None:
        self._closed = True
        self.notify()

    def settle(self, memory_samples: Callable[[], int], timeout_s: float) -> bool:
        """Send without waiting for full batches; True once everything has left and samples_seen is reported."""

        def settled() -> bool:
            done = len(self._outbox) == 0 and self._reported >= self._counters.samples_seen
            return memory_samples() == 0 and (done or not self._enabled())

        self._flushing = True
        self.notify()
        with self._changed:
            result = self._changed.wait_for(lambda: settled() or self._closed, timeout_s)
        self._flushing = False
        return result and settled()

    def dropped(self) -> dict[str, int]:
        """Samples lost since boot, by reason: in memory and in the outbox."""
        total = Counter(self._counters.dropped)
        try:
            durable, before = self._outbox.counters(), self._outbox.counters_before or {}
        except StorageError:  # a disk that fails now: reported as soon as it can be read
            durable, before = {}, {}
        for reason, amount in durable.items():
            if reason != CORRUPT and not reason.startswith(_BUDGET_PREFIX):
                total[reason] += amount - before.get(reason, 0)
        total[OVERFLOW] -= self._dropped_but_arrived
        return {reason: amount for reason, amount in total.items() if amount > 0}

    def step(self) -> None:
        """Wait until something is due, then send it. Raises what the client and the outbox raise."""
        if not self._wait_until_due():
            return
        samples: list[Sample] = []
        fingerprint = self._outbox.fingerprint
        if self._greeted:
            self._outbox.expire(self._clock.now_ms())
            samples = self._outbox.peek(self._config.batch_samples, self._config.batch_bytes)
        if self._outbox.fingerprint != fingerprint:  # a new bundle came in between
            return
        self._deliver(samples, fingerprint)
        self._waiting_since_s = None
        self.notify()

    def _wait_until_due(self) -> bool:
        with self._changed:
            pause_s = self._pause_s()
            if pause_s > 0:
                self._changed.wait(min(pause_s, threading.TIMEOUT_MAX))
            return not self._closed and self._enabled() and self._pause_s() <= 0

    def _pause_s(self) -> float:
        waiting, now_s = len(self._outbox), time.monotonic()
        if self._closed:
            return 0.0
        if not self._enabled():
            return float("inf")
        full = waiting >= self._config.batch_samples or self._outbox.size_bytes >= self._config.batch_bytes
        if not self._greeted or full:
            return 0.0
        if self._flushing and (waiting or self._reported < self._counters.samples_seen):
            return 0.0
        due_s = self._sent_at_s + self._config.heartbeat_s
        if self._waiting_since_s is not None:
            due_s = min(due_s, self._waiting_since_s + self._config.max_latency_s)
        return due_s - now_s

    def _deliver(self, samples: list[Sample], fingerprint: str) -> None:
        seen = self._counters.samples_seen
        batch = SampleBatch(
            device_id=self._device_id, boot_id=self._boot_id, fingerprint=fingerprint, samples_seen=seen,
            samples=samples, dropped=self.dropped(),
        )  # fmt: skip
        body = self._client.pack(batch)
        self._spend(len(body.data))
        try:
            receipt = self._client.upload_body(body)
        except (EncodingError, MessageError, SizeLimitError) as error:
            self._counters.failed(error)
            self._try_otherwise(error, body, samples, fingerprint)
            return
        self._reported, self._sent_at_s = seen, time.monotonic()
        self._settle_receipt(receipt, samples)

    def _try_otherwise(self, error: CemaError, body: UploadBody, samples: list[Sample], fingerprint: str) -> None:
        """A batch was refused as a whole: send it as it is, or in parts. Raises ``error`` if there is no other way."""
        if body.encoding is not None and not isinstance(error, SizeLimitError):
            # an older cloud came back, or something in between is in the way: no sample is given up for that
            self._client.send_plain()
            self._deliver(samples, fingerprint)
        elif samples and not isinstance(error, EncodingError):
            self._split(samples, fingerprint)
        else:
            raise error

    def _split(self, samples: list[Sample], fingerprint: str) -> None:
        """Halve a batch until the sample that the cloud cannot take is alone."""
        if len(samples) == 1:
            self._outbox.discard([samples[0].sample_id], REJECTED)
            return
        middle = len(samples) // 2
        self._deliver(samples[:middle], fingerprint)
        self._deliver(samples[middle:], fingerprint)

    def _settle_receipt(self, receipt: UploadReceipt, samples: list[Sample]) -> None:
        refused = {rejection.sample_id for rejection in receipt.rejected}
        bad = [sample.sample_id for sample in samples if sample.sample_id.hex() in refused]
        good = [sample.sample_id for sample in samples if sample.sample_id.hex() not in refused]
        if bad:
            self._outbox.discard(bad, REJECTED)
        if good:
            self._dropped_but_arrived += len(good) - self._outbox.acknowledge(good)
            self._counters.acknowledged(len(good))
        self._clock.hear(receipt.server_time_ms)
        self._greeted = True

    def _spend(self, size_bytes: int) -> None:
        """Book bytes on the day's budget before they leave; counted durably, a restart gives no new budget."""
        budget = self._config.max_bytes_per_day
        if not budget:
            return
        day = f"{_BUDGET_PREFIX}{self._clock.now_ms() // (SECONDS_PER_DAY * 1000)}"
        if self._outbox.count(day, 0) + size_bytes > budget:
            raise OverloadedError(
                f"the budget of {budget} bytes per day is used up",
                hint="uplink.max_bytes_per_day in device.toml; samples wait in the outbox",
                retry_after_s=BUDGET_RECHECK_S,
            )
        self._outbox.count(day, size_bytes)
