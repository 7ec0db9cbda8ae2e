"""A bad day, whole: real processes adapt, an operator takes a version back, the device follows, adaptation goes on."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from cema.cloud.models import digits
from cema.config import SelectionConfig, UplinkConfig
from cema.config_files import load_device
from cema.edge import EdgeAgent

pytestmark = pytest.mark.e2e
QUICK = UplinkConfig(max_latency_s=0.05, heartbeat_s=0.1, backoff_min_s=0.05, poll_wait_s=2.0)


def eventually(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    done = threading.Event()
    for _ in range(int(timeout_s / 0.02)):
        if condition():
            return
        done.wait(0.02)
    raise AssertionError("did not happen")


def updates(service: Any) -> list[dict[str, Any]]:
    """Newest first."""
    listed = service.run("update", "list", "-c", "cema.toml", "--group", service.group, "--json")
    return list(json.loads(listed)["updates"])


def test_a_version_that_was_taken_back_is_gone_from_device_and_cloud(service: Any) -> None:
    images = list((digits.digit_images()[0][:64] * 0.2 + 100).astype(np.uint8))
    config = load_device(service.enrol("cam"))
    config = msgspec.structs.replace(config, uplink=QUICK, selection=SelectionConfig(enabled=False))
    with EdgeAgent(config) as agent:

        def version_after_more_pictures() -> int:
            agent.predict(images)
            assert agent.settle(60)
            return agent.predict(images[:1])[0].version

        eventually(lambda: version_after_more_pictures() >= 3)
        told = json.loads(service.run(
            "update", "rollback", "-c", "cema.toml", "--group", service.group, "--to", "1", "--json"
        ))  # fmt: skip
        assert (told["restores"], told["rollback_of"]) == (1, told["version"] - 1)
        eventually(lambda: agent.predict(images[:1])[0].version >= told["version"])
        eventually(lambda: version_after_more_pictures() > told["version"])
        assert agent.status()["updates_refused"] == 0
    assert service.stop() == 0
    chain = {row["version"]: row for row in updates(service)}
    assert [row["version"] for row in chain.values() if row["rollback_of"]] == [told["version"]]
    assert chain[told["version"] + 1]["samples"] > 0
