"""The doors: an agent that predicts, and a web process that takes requests, for all cases alike."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest

from cema.cloud.store import open_store
from cema.config import (
    DeviceConfig,
    OutboxConfig,
    RuntimeConfig,
    SelectionConfig,
    ServeConfig,
    ServerConfig,
    UplinkConfig,
)
from cema.edge import EdgeAgent
from cema.types import Prediction
from cema.wire import signing
from cema.wire.tokens import token_digest
from hostile.keys import BUNDLE, PRIVATE, signed_update
from integration.web.conftest import PICTURE, Service, served

NOWHERE = "http://127.0.0.1:1"
RUNNING_VERSION = 5
QUIET = UplinkConfig(backoff_min_s=3600, backoff_max_s=3600)
"""The agent's threads try the cloud once and then leave it alone: what comes, comes from the test."""


class Device:
    """An agent on version 5 of the tiny bundle; whatever it predicts goes to its outbox."""

    def __init__(self, agent: EdgeAgent) -> None:
        self.agent, self.updater, self.folder = agent, agent._updater, agent._folder.path
        self._pause = threading.Event()

    def predicts(self, picture: bytes = PICTURE) -> Prediction:
        (prediction,) = self.agent.predict([picture])
        assert np.isfinite(prediction.probability)
        return prediction

    def queued(self) -> int:
        """Samples in the outbox, once the agent's writer has nothing in hand."""
        for _ in range(4000):
            status = self.agent.status()
            if status["memory_samples"] == 0:
                return int(str(status["outbox_samples"]))
            self._pause.wait(0.005)
        raise AssertionError("the writer does not write any more")


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    config = DeviceConfig(
        url=NOWHERE, group="g", device_id="d", token="secret", public_key=signing.public_key(PRIVATE),
        state_dir=str(tmp_path_factory.mktemp("hostile") / "state"), uplink=QUIET, runtime=RuntimeConfig(threads=1),
        selection=SelectionConfig(enabled=False), outbox=OutboxConfig(commit_interval_s=0.0),
    )  # fmt: skip
    with EdgeAgent(config, bundle=BUNDLE) as agent:
        made = Device(agent)
        made.updater.apply(*signed_update(version=RUNNING_VERSION, encoding="float16"))
        assert made.predicts().version == RUNNING_VERSION
        yield made


def _cloud(folder: Any, **changes: Any) -> Iterator[Service]:
    settings = ServerConfig(
        port=0, data_dir=str(folder), max_body_bytes=200_000, max_batch_samples=4, poll_interval_s=0.01,
        device_requests_per_s=0, device_upload_bytes_per_s=0,
    )  # fmt: skip
    config = ServeConfig(server=msgspec.structs.replace(settings, **changes))
    store, blobs = open_store(config)
    store.put_group("g", "f1", blobs.put(b"bundle bytes"), "on", 1)
    store.put_group("other", "f1", blobs.put(b"bundle bytes"), "on", 1)
    store.enrol("cam", "g", token_digest("secret-of-cam"), 1)
    store.enrol("gone", "g", token_digest("secret-of-gone"), 1)
    store.revoke("gone", 2)
    store.add_user("ron", "reader", token_digest("secret-of-ron"), 1)
    with served(config, store, blobs) as made:
        yield made
    store.close()


@pytest.fixture(scope="session")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Group g with device cam, a revoked device and a reader; small limits, no allowances."""
    yield from _cloud(tmp_path_factory.mktemp("cloud"))


@pytest.fixture(scope="session")
def roomy_cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """As ``cloud``, with the limits of the default configuration."""
    yield from _cloud(tmp_path_factory.mktemp("roomy"), max_body_bytes=16 * 1024 * 1024, max_batch_samples=256)


@pytest.fixture(scope="session")
def impatient_cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """As ``cloud``, with next to no patience."""
    yield from _cloud(tmp_path_factory.mktemp("impatient"), receive_timeout_s=0.2)
