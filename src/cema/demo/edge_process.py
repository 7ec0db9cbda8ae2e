"""One edge of the demo, a process of its own: streams images through an ``EdgeAgent`` and reports a JSON line a batch.

A shadow of the source model runs beside the agent to show what would have been without adaptation; no real device
does that. Frames are paced to the cloud's steps, so that a slow machine shows the same curves as a fast one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from cema.bench.corruptions import corrupt
from cema.bench.datasets import Dataset, load_dataset
from cema.cloud.parent import exit_with_parent
from cema.config_files import load_device
from cema.demo.scenario import CLEAN, TICK_IMAGES, corruption_steps
from cema.edge.agent import EdgeAgent
from cema.edge.client import CloudClient
from cema.edge.identity import current_token
from cema.edge.session import EdgeSession
from cema.errors import CemaError
from cema.signals import Stop, Stopping
from cema.types import Uint8Array
from cema.wire.bundle import Bundle, load_bundle
from cema.wire.preprocess import fit

PACE_LIMIT_S = 120.0
"""Longest wait for the cloud at one tick: a stalled cloud slows the demo down but does not stop it."""
PACE_INTERVAL_S = 0.05


class EdgePlan(msgspec.Struct, frozen=True, kw_only=True):
    """What one edge process is told. phases: (condition, images)."""

    name: str
    device: str
    bundle: str
    dataset: str
    data: str | None
    phases: list[tuple[str, int]]
    batch_size: int
    seed: int
    seconds: float


class EdgeEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One batch: what the edge saw, said and has moved so far (bytes and counts since its start)."""

    edge: str
    condition: str
    images: int
    correct: int
    correct_source: int
    selected: int
    version: int
    latency_ms: float
    bytes_up: int
    bytes_down: int
    updates_applied: int
    at_s: float


def frames(plan: EdgePlan, dataset: Dataset) -> Iterator[tuple[str, list[Uint8Array], NDArray[np.int64]]]:
    """Batches of (condition, images, labels): passes over the dataset in ever new order, each draw corrupted afresh."""
    rng = np.random.default_rng(plan.seed)
    order: list[int] = []
    for condition, count in plan.phases:
        for start in range(0, count, plan.batch_size):
            size = min(plan.batch_size, count - start)
            while len(order) < size:
                order.extend(int(i) for i in rng.permutation(len(dataset.labels)))
            chosen, order = order[:size], order[size:]
            images_BHWC = np.stack([dataset.images[i] for i in chosen])
            for name, severity in corruption_steps(condition):
                images_BHWC = corrupt(images_BHWC, name, severity, rng)
            yield condition, list(images_BHWC), dataset.labels[chosen]


class Pace:
    """Holds the stream back until the cloud has worked off the images that it was shown."""

    def __init__(self, client: CloudClient, agent: EdgeAgent, stop: Stopping) -> None:
        self.client, self.agent, self.stop = client, agent, stop

    def wait(self, seen: int) -> None:
        """At most one tick ahead of the cloud, and not behind its latest version; gives up after PACE_LIMIT_S."""
        deadline = time.monotonic() + PACE_LIMIT_S
        while not self._level(seen) and time.monotonic() < deadline and not self.stop.wait(PACE_INTERVAL_S):
            pass

    def _level(self, seen: int) -> bool:
        try:
            status = self.client.status()
        except CemaError:
            return False
        in_use: Any = self.agent.status()["version"]
        return status.ticks_done >= seen // TICK_IMAGES and bool(in_use >= status.latest_version)


def run(plan: EdgePlan, emit: Callable[[EdgeEvent], None], stop: Stopping) -> None:
    """Stream the whole plan, or as much of it as fits into ``plan.seconds``."""
    dataset = load_dataset(plan.dataset, Path(plan.data) if plan.data else None)
    bundle, config = load_bundle(plan.bundle), load_device(plan.device)
    shadow = EdgeSession(bundle, bundle.source_parameters(), 0, threads=1)
    client = CloudClient(config.url, config.group, current_token(config), config=config.uplink)
    started, seen = time.monotonic(), 0
    with EdgeAgent(config, bundle=bundle) as agent:
        pace = Pace(client, agent, stop)
        for condition, images, labels_B in frames(plan, dataset):
            emit(_batch(plan, agent, bundle, shadow, condition, images, labels_B, started))
            seen += len(images)
            if seen % TICK_IMAGES == 0:
                pace.wait(seen)
            if stop.is_set() or (plan.seconds and time.monotonic() - started > plan.seconds):
                break
    client.close()


def _batch(
    plan: EdgePlan,
    agent: EdgeAgent,
    bundle: Bundle,
    shadow: EdgeSession,
    condition: str,
    images: list[Uint8Array],
    labels_B: NDArray[np.int64],
    started: float,
) -> EdgeEvent:
    before = time.perf_counter()
    predictions = agent.predict(images)
    latency_s = time.perf_counter() - before
    source_B = shadow.logits(np.stack([fit(image, bundle.manifest.preprocess) for image in images])).argmax(1)
    status: dict[str, Any] = agent.status()
    return EdgeEvent(
        edge=plan.name,
        condition=condition,
        images=len(images),
        correct=int(sum(p.label == label for p, label in zip(predictions, labels_B, strict=True))),
        correct_source=int((source_B == labels_B).sum()),
        selected=sum(p.selected for p in predictions),
        version=predictions[-1].version,
        latency_ms=latency_s * 1000,
        bytes_up=status["bytes_up"],
        bytes_down=status["bytes_down"],
        updates_applied=status["updates_applied"],
        at_s=time.monotonic() - started,
    )


def is_drift(condition: str) -> bool:
    return condition != CLEAN


def main() -> None:
    """``python -m cema.demo.edge_process PLAN.json``: events on standard output."""
    exit_with_parent()
    stop = Stop.on_signals()
    plan = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=EdgePlan)

    def emit(event: EdgeEvent) -> None:
        sys.stdout.buffer.write(msgspec.json.encode(event) + b"\n")
        sys.stdout.buffer.flush()

    run(plan, emit, stop)


if __name__ == "__main__":
    main()
