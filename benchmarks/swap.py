"""Does a hot swap disturb predictions? Writes results/swap.json.

python benchmarks/swap.py     EdgeAgent.predict, ResNet-20, batch 1 and 16, one inference thread; segments in which a
                              second thread applies a signed update each second alternate with segments without.
                              CEMA_DATA: trained weights

The latency of a batch that meets a swap is what the 99th percentile shows: a swap each second touches more than one
batch in a hundred. The goal is a ratio of at most 1.5. Other work on the machine raises the percentile without swaps
and so lowers the ratio: read it next to the load of its round (this benchmark alone is a load of about 1).
"""

from __future__ import annotations

import json
import logging
import os
import socket
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from provenance import provenance

from cema.cloud.export import build_bundle
from cema.cloud.models import load_model
from cema.config import DeviceConfig, RuntimeConfig, SelectionConfig, UplinkConfig
from cema.edge import EdgeAgent
from cema.wire import signing
from cema.wire.bundle import Bundle
from cema.wire.messages import UpdateManifest
from cema.wire.update import encode_update

RESULT = Path(__file__).parent / "results" / "swap.json"
BATCHES = (1, 16)
ROUNDS = 6
SEGMENT_S = 5.0
SWAP_EVERY_S = 1.0
WARM_UP = 50
GOAL_P99_RATIO = 1.5
GROUP = "g"
KEY = signing.generate_key()


class Swapper:
    """Applies an update each second, in a thread of its own, as the poller does."""

    def __init__(self, agent: EdgeAgent, bundle: Bundle) -> None:
        self._agent, self._bundle = agent, bundle
        self._version = 0
        self.apply_ms: list[float] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        stop = threading.Event()
        thread = threading.Thread(target=self._run, args=(stop, [self._update() for _ in range(int(SEGMENT_S) + 1)]))
        thread.start()
        yield
        stop.set()
        thread.join()

    def _run(self, stop: threading.Event, updates: list[tuple[bytes, str]]) -> None:
        for update in updates:
            if stop.wait(SWAP_EVERY_S):
                return
            started_s = time.perf_counter()
            self._agent._updater.apply(*update)
            self.apply_ms.append(1e3 * (time.perf_counter() - started_s))

    def _update(self) -> tuple[bytes, str]:
        self._version += 1
        manifest = UpdateManifest(
            group=GROUP, version=self._version, fingerprint=self._bundle.manifest.fingerprint, method="benchmark",
            created_at_ms=0,
        )  # fmt: skip
        scale = np.float32(1 + 1e-3 * self._version)
        data = encode_update(manifest, {name: v * scale for name, v in self._bundle.source_parameters().items()})
        return data, signing.sign(data, KEY)


def predict_for(agent: EdgeAgent, images: list[Any], seconds: float) -> list[float]:
    """Latencies in ms."""
    taken, end_s = [], time.perf_counter() + seconds
    while (started_s := time.perf_counter()) < end_s:
        agent.predict(images)
        taken.append(1e3 * (time.perf_counter() - started_s))
    return taken


def measure(agent: EdgeAgent, bundle: Bundle, batch: int, swapper: Swapper) -> dict[str, object]:
    shape = (batch, *bundle.manifest.preprocess.size, 3)
    images = list(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    for _ in range(WARM_UP):
        agent.predict(images)
    still, swapping, loads, swaps_before = [], [], [], len(swapper.apply_ms)
    for turn in range(ROUNDS):
        loads.append(round(os.getloadavg()[0], 2))
        for with_swaps in (False, True) if turn % 2 else (True, False):
            if with_swaps:
                with swapper.running():
                    swapping.append(predict_for(agent, images, SEGMENT_S))
            else:
                still.append(predict_for(agent, images, SEGMENT_S))
    ratios = [float(np.percentile(b, 99) / np.percentile(a, 99)) for a, b in zip(still, swapping, strict=True)]
    without, during = _summary(still), _summary(swapping)
    return {
        "batch": batch, "without": without, "swapping": during,
        "p99_ratio": round(during["p99_ms"] / without["p99_ms"], 3), "goal": GOAL_P99_RATIO,
        "p99_ratio_of_each_round": [round(ratio, 3) for ratio in ratios],
        "load_1min_of_each_round": loads,
        "swaps": len(swapper.apply_ms) - swaps_before,
        "apply_ms_p50": round(float(np.median(swapper.apply_ms[swaps_before:])), 1),
    }  # fmt: skip


def _summary(segments: list[list[float]]) -> dict[str, float]:
    taken = np.concatenate(segments)
    p50, p99 = np.percentile(taken, (50, 99))
    return {
        "batches": len(taken), "p50_ms": round(float(p50), 3), "p99_ms": round(float(p99), 3),
        "max_ms": round(float(taken.max()), 3),
    }  # fmt: skip


def resnet20() -> tuple[Bundle, str]:
    data = os.environ.get("CEMA_DATA")
    weights = Path(data) / "cifar10" / "resnet20.safetensors" if data else None
    model = load_model("resnet20", weights, pretrained=weights is not None)
    assert model.preprocess is not None
    classes = model.classes or [str(label) for label in range(10)]
    bundle = build_bundle(model.module, name="resnet20", preprocess=model.preprocess, classes=classes)
    return bundle, "trained" if weights else "random"


@contextmanager
def silent_cloud() -> Iterator[str]:
    """An address that accepts connections and never answers: the agent's own threads stay asleep."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def main() -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    bundle, weights = resnet20()
    with tempfile.TemporaryDirectory() as folder, silent_cloud() as url:
        config = DeviceConfig(
            url=url, group=GROUP, device_id="d", token="none", public_key=signing.public_key(KEY), state_dir=folder,  # noqa: S106
            runtime=RuntimeConfig(threads=1), selection=SelectionConfig(e_max=0.0),  # nothing to upload
            uplink=UplinkConfig(read_timeout_s=600.0),
        )  # fmt: skip
        with EdgeAgent(config, bundle=bundle) as agent:
            swapper = Swapper(agent, bundle)
            rows = [measure(agent, bundle, batch, swapper) for batch in BATCHES]
            assert agent.status()["updates_refused"] == 0
    origin = provenance(
        ("numpy", "onnxruntime"), threads=1, weights=weights, rounds=ROUNDS, segment_s=SEGMENT_S,
        swap_every_s=SWAP_EVERY_S,
    )  # fmt: skip
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({"rows": rows, "provenance": origin}, indent=1) + "\n")
    for row in rows:
        print(
            f"batch {row['batch']:3}: without {row['without']}, swapping {row['swapping']}, "
            f"p99 ratio {row['p99_ratio']} (goal {GOAL_P99_RATIO}), apply {row['apply_ms_p50']} ms"
        )


if __name__ == "__main__":
    main()
