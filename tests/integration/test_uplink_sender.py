"""Uploads against a scripted cloud: retry, refusal, deflated bodies, budget, prompt close."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cema.config import OutboxConfig, UplinkConfig
from cema.edge.client import CloudClient
from cema.edge.clock import ServerClock
from cema.edge.counters import EdgeCounters
from cema.edge.outbox import Outbox
from cema.edge.sender import Sender
from cema.edge.worker import Backoff, Worker
from cema.errors import EncodingError, OverloadedError
from cema.wire.messages import Rejection, Sample, SampleBatch, UploadReceipt, encode_msgpack

SERVER_S = 1000.0  # the scripted cloud's clock


def samples(count: int, *, at_ms: int = 1_000_000) -> list[Sample]:
    return [
        Sample(
            sample_id=i.to_bytes(16, "big"), seq=i, codec="png", image=b"pixels", label=0, probability=1.0,
            entropy=0.1, update_version=0, captured_at_ms=at_ms,
        )
        for i in range(count)
    ]  # fmt: skip


class Rig:
    """A sender with its parts; ``steps`` runs it in this thread."""

    def __init__(self, cloud: Any, folder: Path, *, outbox: OutboxConfig = OutboxConfig(), **changes: Any) -> None:  # noqa: B008
        quick = UplinkConfig(max_latency_s=0.0, heartbeat_s=0.0, backoff_min_s=0.01, backoff_max_s=0.02)
        self.config = msgspec.structs.replace(quick, **changes)
        self.counters = EdgeCounters()
        self.outbox = Outbox(folder / "outbox.db", outbox, "f")
        self.client = CloudClient(cloud.url, "g", "secret", config=self.config, counters=self.counters)
        self.enabled = True
        self.clock_s, self.tick_s = SERVER_S, 0.0
        self.clock = ServerClock(lambda: self.clock_s, lambda: self.tick_s)
        self.sender = Sender(
            self.client, self.outbox, self.config, self.counters, device_id="d", boot_id=b"b" * 16,
            enabled=lambda: self.enabled, clock=self.clock,
        )  # fmt: skip

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.sender.step()

    def close(self) -> None:
        self.client.close()
        self.outbox.close()


@pytest.fixture
def make_rig(scripted_cloud: Any, tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def make(**changes: Any) -> Rig:
        made.append(Rig(scripted_cloud, tmp_path, **changes))
        return made[-1]

    yield make
    for rig in made:
        rig.close()


def test_the_first_request_is_empty_and_brings_the_servers_clock(scripted_cloud: Any, make_rig: Any) -> None:
    rig = make_rig()
    rig.clock_s = 400.0
    rig.outbox.add(samples(2))
    rig.steps(2)
    assert [len(batch.samples) for batch in scripted_cloud.batches] == [0, 2]
    assert rig.clock.now_ms() == 1_000_000
    assert len(rig.outbox) == 0


def test_what_expired_by_the_servers_clock_is_not_sent(scripted_cloud: Any, make_rig: Any) -> None:
    rig = make_rig()
    rig.clock_s = SERVER_S - 2 * 86_400  # by the device's own clock they would still be young enough
    rig.outbox.add(samples(2, at_ms=1_000_000 - 8 * 86_400_000))
    rig.steps(2)
    assert scripted_cloud.samples == []
    assert rig.sender.dropped() == {"expired": 2}


def test_what_a_full_outbox_drops_while_it_is_under_way_is_acknowledged_and_not_lost(
    scripted_cloud: Any, make_rig: Any
) -> None:
    rig = make_rig(outbox=OutboxConfig(max_samples=4), batch_samples=2)
    rig.steps(1)
    rig.outbox.add(samples(4))
    scripted_cloud.judge = lambda batch: rig.outbox.add(samples(7)[4:]) if len(batch.samples) == 2 else None
    rig.steps(1)
    assert [sample.seq for sample in scripted_cloud.samples] == [0, 1]
    assert (rig.counters.uploaded, len(rig.outbox)) == (2, 4)
    assert rig.sender.dropped() == {"overflow": 1}, "the third: two others had arrived"


def test_a_failed_upload_is_sent_again_with_the_same_ids(
    scripted_cloud: Any, make_rig: Any, refuse: Callable[..., Any]
) -> None:
    rig = make_rig()
    rig.outbox.add(samples(3))
    rig.steps(1)
    scripted_cloud.script.extend([refuse(500, "internal"), refuse(503, "overloaded", {"Retry-After": "0"})])
    worker = Worker("sender", rig.sender.step, Backoff(rig.config, random.Random(0)), rig.counters)
    worker.start()
    scripted_cloud.wait_for(lambda: scripted_cloud.samples)
    worker.closing.set()
    rig.sender.close()
    worker.join(10)
    assert scripted_cloud.samples == samples(3)
    assert rig.counters.last_error is not None
    assert "overloaded" in rig.counters.last_error


def test_a_batch_refused_as_a_whole_is_halved_until_the_bad_sample_is_alone(
    scripted_cloud: Any, make_rig: Any, refuse: Callable[..., Any]
) -> None:
    def judge(batch: SampleBatch) -> Any:
        return refuse(400, "message_invalid") if any(s.seq == 5 for s in batch.samples) else None

    scripted_cloud.judge = judge
    rig = make_rig()
    rig.outbox.add(samples(9))
    rig.steps(2)
    assert sorted(s.seq for s in scripted_cloud.samples) == [0, 1, 2, 3, 4, 6, 7, 8]
    assert len(rig.outbox) == 0
    assert rig.sender.dropped() == {"rejected": 1}


def test_samples_that_the_receipt_rejects_are_deleted_and_counted(scripted_cloud: Any, make_rig: Any) -> None:
    bad = Rejection(sample_id=samples(2)[1].sample_id.hex(), code="image_invalid", message="truncated")
    receipt = UploadReceipt(accepted=2, duplicates=0, rejected=[bad], latest_version=0, server_time_ms=1_000_000)
    rig = make_rig()
    rig.outbox.add(samples(3))
    rig.steps(1)
    scripted_cloud.script.append((200, {}, msgspec.json.encode(receipt)))
    rig.steps(1)
    assert len(rig.outbox) == 0
    assert rig.counters.uploaded == 2
    assert rig.sender.dropped() == {"rejected": 1}


@pytest.fixture
def rig(make_rig: Callable[..., Rig]) -> Rig:
    """With two batches to send."""
    made = make_rig(batch_samples=8)
    made.outbox.add(samples(16))
    return made


def test_a_device_deflates_once_the_cloud_has_said_that_it_takes_that(scripted_cloud: Any, rig: Rig) -> None:
    scripted_cloud.inflates = True
    rig.steps(1)
    before = rig.counters.bytes_up
    rig.steps(2)
    assert scripted_cloud.codings == [None, "deflate", "deflate"]
    assert scripted_cloud.samples == samples(16)
    sent = rig.counters.bytes_up - before
    assert sent < 0.8 * sum(len(encode_msgpack(batch)) for batch in scripted_cloud.batches[1:])


def test_an_old_cloud_gets_plain_bodies(scripted_cloud: Any, rig: Rig) -> None:
    rig.steps(3)
    assert scripted_cloud.codings == [None] * 3
    assert scripted_cloud.samples == samples(16)


@pytest.mark.parametrize("refusal", ["an old cloud", "a proxy"])
def test_what_is_refused_deflated_is_sent_as_it_is_from_then_on(
    scripted_cloud: Any, rig: Rig, refuse: Callable[..., Any], refusal: str
) -> None:
    scripted_cloud.inflates = True
    rig.steps(1)
    if refusal == "an old cloud":
        scripted_cloud.inflates = False
    else:
        scripted_cloud.script.append((415, {}, b"<html>unsupported</html>"))
    rig.steps(2)
    assert scripted_cloud.codings == [None, "deflate", None, None]
    assert scripted_cloud.samples == samples(16)
    assert rig.sender.dropped() == {}


def test_a_deflated_batch_that_is_too_large_is_halved_and_stays_deflated(
    scripted_cloud: Any, rig: Rig, refuse: Callable[..., Any]
) -> None:
    scripted_cloud.inflates = True
    rig.steps(1)
    scripted_cloud.script.append(refuse(413, "too_large"))
    rig.steps(1)
    assert scripted_cloud.codings == [None, "deflate", "deflate", "deflate"]
    assert [len(batch.samples) for batch in scripted_cloud.batches] == [0, 4, 4]


def test_a_heartbeat_that_is_refused_deflated_goes_as_it_is(scripted_cloud: Any, rig: Rig) -> None:
    scripted_cloud.inflates = True
    rig.steps(3)
    rig.counters.lost("r" * 64, 7)  # something to say: a report that becomes shorter
    scripted_cloud.inflates = False
    rig.steps(1)
    assert scripted_cloud.codings[-2:] == ["deflate", None]
    assert scripted_cloud.batches[-1].dropped == {"r" * 64: 7}


def test_a_plain_body_that_something_calls_unsupported_costs_no_sample(scripted_cloud: Any, rig: Rig) -> None:
    rig.steps(1)
    scripted_cloud.script.append((415, {}, b"<html>unsupported</html>"))
    with pytest.raises(EncodingError):
        rig.steps(1)
    rig.steps(2)
    assert scripted_cloud.samples == samples(16)


def test_the_byte_budget_holds_over_a_restart_and_ends_with_the_day(scripted_cloud: Any, make_rig: Any) -> None:
    rig = make_rig(max_bytes_per_day=600, batch_samples=1)
    rig.outbox.add(samples(9))
    with pytest.raises(OverloadedError, match="600 bytes per day"):
        rig.steps(20)
    sent = rig.counters.bytes_up
    assert 300 < sent <= 600
    rig.close()
    again = make_rig(max_bytes_per_day=600, batch_samples=1)
    with pytest.raises(OverloadedError):
        again.steps(20)
    assert sent + again.counters.bytes_up <= 600
    again.tick_s += 86_400
    before = len(scripted_cloud.samples)
    again.steps(1)
    assert len(scripted_cloud.samples) == before + 1


def test_close_is_prompt_while_the_cloud_hangs(scripted_cloud: Any, make_rig: Any) -> None:
    rig = make_rig(read_timeout_s=600.0)
    scripted_cloud.released.clear()
    worker = Worker("sender", rig.sender.step, Backoff(rig.config, random.Random(0)), rig.counters)
    worker.start()
    scripted_cloud.wait_for(lambda: scripted_cloud.paths)
    started_s = time.monotonic()
    worker.closing.set()
    rig.sender.close()
    rig.client.close()
    worker.join(60)
    assert time.monotonic() - started_s < 10
    assert not worker._thread.is_alive()


@pytest.mark.parametrize("jump_s", [-30 * 86_400, 3600, 30 * 86_400])
def test_a_clock_that_jumps_expires_no_sample(scripted_cloud: Any, make_rig: Any, jump_s: float) -> None:
    rig = make_rig()
    rig.outbox.add(samples(1))
    rig.steps(1)
    rig.clock_s += jump_s
    rig.outbox.add(samples(2, at_ms=rig.clock.now_ms()))
    rig.steps(1)
    assert rig.sender.dropped() == {}
    assert scripted_cloud.samples != []


def test_what_was_captured_before_the_time_was_known_is_as_old_as_the_first_answer(
    scripted_cloud: Any, make_rig: Any
) -> None:
    rig = make_rig()
    rig.outbox.add(samples(2, at_ms=0), dated=False)  # a device without a clock believes that it is 1970
    rig.steps(2)
    assert len(scripted_cloud.samples) == 2
    rig.outbox.add(samples(4, at_ms=0)[2:], dated=False)
    rig.outbox.expire(rig.clock.now_ms())
    rig.outbox.expire(rig.clock.now_ms() + 8 * 86_400_000)
    assert rig.sender.dropped() == {"expired": 2}
