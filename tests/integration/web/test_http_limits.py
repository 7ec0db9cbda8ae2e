"""Too much at once, over real HTTP: the cloud says how long to wait, the device does, and nothing is lost."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import pytest

from cema.config import OutboxConfig, UplinkConfig
from cema.edge.client import CloudClient
from cema.edge.clock import ServerClock
from cema.edge.counters import EdgeCounters
from cema.edge.outbox import Outbox
from cema.edge.sender import Sender
from cema.edge.worker import Backoff, Worker
from cema.errors import OverloadedError
from cema.wire.tokens import token_digest

SAMPLES = 8


@pytest.fixture
def server_settings() -> dict[str, Any]:
    """One request and one upload, then a long wait."""
    return {"device_requests_per_s": 0.01, "device_upload_bytes_per_s": 0.01}


def exhaust(service: Any) -> Any:
    """The first refusal."""
    for _ in range(100):
        answer = service.call("/v1/groups/g")
        if answer.status != 200:
            return answer
    raise AssertionError("never refused")


def test_a_device_that_asks_too_much_is_told_to_wait_and_others_are_not(service: Any) -> None:
    service.store.enrol("cam2", "g", token_digest("secret-of-cam2"), 1)
    answer = exhaust(service)
    assert service.error_of(answer) == (429, "overloaded")
    assert 80 <= int(answer.headers["retry-after"]) <= 100
    assert service.call("/v1/groups/g", token="secret-of-cam2").status == 200
    assert service.administer("/v1/admin/groups").status == 200
    assert service.metrics()["cema_http_errors_total,code=overloaded"] == 1


@pytest.mark.parametrize("server_settings", [{"device_upload_bytes_per_s": 0.01}])
def test_uploads_are_limited_by_their_bytes(service: Any) -> None:
    assert service.upload(service.batch(service.sample(1))).status == 200
    assert service.error_of(service.upload(service.batch(service.sample(2)))) == (429, "overloaded")
    assert service.store.group("g").pending == 1
    assert service.call("/v1/groups/g").status == 200, "asking is free of it"


def test_the_client_reads_how_long_to_wait(service: Any) -> None:
    exhaust(service)
    client = CloudClient(service.url, "g", "secret-of-cam", config=UplinkConfig())
    with pytest.raises(OverloadedError) as caught:
        client.status()
    pause_s = caught.value.values["retry_after_s"]
    assert isinstance(pause_s, float)
    assert 80 <= pause_s <= 100
    client.close()


@pytest.mark.parametrize("server_settings", [{"device_requests_per_s": 2.0}])
def test_a_device_waits_as_told_and_everything_arrives(service: Any, tmp_path: Path) -> None:
    config = UplinkConfig(max_latency_s=0.0, heartbeat_s=0.0, batch_samples=1, backoff_min_s=0.01, backoff_max_s=0.05)
    counters, outbox = EdgeCounters(), Outbox(tmp_path / "outbox.db", OutboxConfig(), "f1")
    outbox.add([service.sample(number) for number in range(SAMPLES)])
    client = CloudClient(service.url, "g", "secret-of-cam", config=config, counters=counters)
    sender = Sender(client, outbox, config, counters, device_id="cam", boot_id=b"b" * 16, enabled=lambda: True,
                    clock=ServerClock(lambda: 1.0))  # fmt: skip
    pauses: list[float] = []

    class Noted(Backoff):
        def pause_s(self, error: Exception) -> float:
            pauses.append(super().pause_s(error))
            return pauses[-1]

    worker = Worker("sender", sender.step, Noted(config, random.Random(0)), counters)
    exhaust(service)
    worker.start()
    assert sender.settle(lambda: 0, 60)
    worker.closing.set()
    sender.close()
    worker.join(10)
    assert not any(thread.name == "sender" for thread in threading.enumerate())
    assert service.store.group("g").pending == SAMPLES
    assert counters.dropped == {}
    assert pauses, "it was refused at least once"
    assert all(1.0 <= pause_s <= 2.0 + config.backoff_max_s for pause_s in pauses)
    assert service.metrics()["cema_http_errors_total,code=overloaded"] <= 2 + len(pauses)
    client.close()
    outbox.close()
