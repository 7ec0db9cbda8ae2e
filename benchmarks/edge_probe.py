"""Runs on a device's install (see footprint.py): serve one bundle without network, say when the first answer came.

PYTHON edge_probe.py BUNDLE STATE PREDICTIONS     prints one line of JSON; memory in MiB, time on the monotonic clock
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from cema.config import DeviceConfig, RuntimeConfig
from cema.edge import EdgeAgent
from cema.wire.bundle import load_bundle

KIB_PER_MIB = 1024


def resident_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return round(int(line.split()[1]) / KIB_PER_MIB, 1)


def main(bundle_file: str, state: str, predictions: int) -> None:
    bundle = load_bundle(bundle_file)
    config = DeviceConfig(
        url="http://localhost", group="g", device_id="d", verify_updates=False, state_dir=state,
        runtime=RuntimeConfig(threads=1, adaptation="off"),
    )  # fmt: skip
    picture = np.random.default_rng(0).integers(0, 256, (*bundle.manifest.preprocess.size, 3), dtype=np.uint8)
    with EdgeAgent(config, bundle=bundle) as agent:
        agent.predict([picture])
        first_at_s = time.monotonic()
        for _ in range(predictions):
            agent.predict([picture])
        facts = {
            "first_at_s": first_at_s, "rss_mib": resident_mib("VmRSS"), "peak_rss_mib": resident_mib("VmHWM"),
            "latency_ms_p50": agent.status()["latency_ms_p50"],
        }  # fmt: skip
    print(json.dumps(facts))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
