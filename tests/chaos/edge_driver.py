"""A device under chaos: predicts without end and keeps a diary, one JSON line for each batch, on standard output.

It sees handwritten digits under noise that changes from time to time, so that there is something to learn. A process of
its own, started again by whoever kills it: ``python -m chaos.edge_driver DEVICE.toml IMAGES.npy CLOCK_FILE SEED``.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from cema.cloud.parent import exit_with_parent
from cema.config import DeviceConfig
from cema.config_files import load_device
from cema.edge.agent import EdgeAgent
from cema.edge.session import EdgeSession
from cema.errors import CemaError
from cema.signals import Stop
from cema.types import Uint8Array

BATCH = 8
PERIOD_S = 0.3
"""Between two batches: a camera, not a benchmark."""
WORLD_BATCHES = 75
"""For so long the stream looks the same."""
NOISES = (0, 40, 90)
"""Standard deviations of the noise, of 255."""
STATUS_S = 1.0
RETRY_S = 0.3
"""Before a device that could not start tries again, as its service manager would."""


class Diary:
    """Lines with the time (seconds, monotonic, the same clock in all processes)."""

    def write(self, event: str, **facts: object) -> None:
        line = json.dumps({"event": event, "t": time.monotonic(), **facts})
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


class ShiftedClock:
    """The device's clock, as wrong as a file says."""

    def __init__(self, file: Path) -> None:
        self._file, self._offset_s = file, 0.0
        self.look()

    def look(self) -> None:
        try:
            self._offset_s = float(self._file.read_text())
        except (OSError, ValueError):
            self._offset_s = 0.0

    def __call__(self) -> float:
        return time.time() + self._offset_s


def parameters_in_use(session: EdgeSession) -> dict[str, str]:
    """sha256 of the numbers that ONNX Runtime was given: of weights and biases, and of all norm tensors."""
    values = session._kept[0]
    affine, whole = hashlib.sha256(), hashlib.sha256()
    for tensor in sorted(session.bundle.manifest.norm, key=lambda tensor: tensor.name):
        data = np.ascontiguousarray(values[tensor.initializer], "<f4").tobytes()
        whole.update(data)
        if tensor.role in ("weight", "bias"):
            affine.update(data)
    return {"affine": affine.hexdigest(), "whole": whole.hexdigest()}


def batch_of(images_NHWC: Uint8Array, number: int, rng: np.random.Generator) -> list[Uint8Array]:
    chosen = images_NHWC[rng.integers(0, len(images_NHWC), BATCH)].astype(np.float32)
    noise = NOISES[number // WORLD_BATCHES % len(NOISES)]
    return list(np.clip(chosen + rng.normal(0, noise, chosen.shape), 0, 255).astype(np.uint8))


def started(config: DeviceConfig, clock: ShiftedClock, diary: Diary, stop: Stop) -> EdgeAgent | None:
    """An agent as soon as there can be one; None if ``stop`` comes first."""
    while not stop.is_set():
        try:
            return EdgeAgent(config, clock=clock)
        except CemaError as error:
            diary.write("waits", code=error.code, why=str(error))
            stop.wait(RETRY_S)
    return None


def predict_on(agent: EdgeAgent, images_NHWC: Uint8Array, seed: int, clock: ShiftedClock, diary: Diary,
               stop: Stop) -> None:  # fmt: skip
    rng, session, number, status_s = np.random.default_rng(seed), None, 0, 0.0
    while not stop.wait(PERIOD_S):
        clock.look()
        images = batch_of(images_NHWC, number, rng)
        began_s = time.monotonic()
        try:
            said = agent.predict(images)
        except Exception as error:  # whatever it is, it is the first broken promise
            diary.write("error", n=number, what=f"{type(error).__name__}: {error}")
            return
        diary.write("predicted", n=number, version=said[-1].version, revision=said[-1].stats_revision,
                    took_s=time.monotonic() - began_s, images=len(said))  # fmt: skip
        if agent._updater.session is not session:
            session = agent._updater.session
            diary.write("model", version=session.version, revision=session.revision, **parameters_in_use(session))
        if time.monotonic() - status_s > STATUS_S:
            status_s = time.monotonic()
            diary.write("status", **_shown(agent.status()))
        number += 1


def _shown(status: dict[str, Any]) -> dict[str, Any]:
    names = ("samples_seen", "selected", "uploaded", "dropped", "memory_samples", "outbox_samples", "last_error")
    return {name: status[name] for name in names}


def main() -> None:
    exit_with_parent()
    device, images, clock_file, seed = sys.argv[1:5]
    stop, diary, clock = Stop.on_signals(), Diary(), ShiftedClock(Path(clock_file))
    diary.write("boot")
    agent = started(load_device(device), clock, diary, stop)
    if agent is None:
        return
    diary.write("ready", version=agent.status()["version"])
    with agent:
        predict_on(agent, np.load(images), int(seed), clock, diary, stop)
    diary.write("closed", **_shown(agent.status()))


if __name__ == "__main__":
    main()
