"""Start: what a fresh process costs on the device until its first answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from cema.bench.perf.models import PerfPair
from cema.bench.perf.rows import Sheet
from cema.wire.bundle import encode_bundle

RUNS = 7
_IMPORT = "import time; s = time.perf_counter(); import cema.edge; print(time.perf_counter() - s)"
_SERVE = """
import json, sys, time
from pathlib import Path
import numpy as np
from cema.config import DeviceConfig, RuntimeConfig
from cema.edge import EdgeAgent
from cema.wire.bundle import load_bundle
bundle = load_bundle(sys.argv[1])
config = DeviceConfig(url="http://localhost", group="g", device_id="d", verify_updates=False, state_dir=sys.argv[2],
                      runtime=RuntimeConfig(threads=1, adaptation="off"))
picture = np.zeros((*bundle.manifest.preprocess.size, 3), np.uint8)
with EdgeAgent(config, bundle=bundle) as agent:
    agent.predict([picture])
    first_s = time.monotonic()
    for _ in range(100):
        agent.predict([picture])
    status = Path("/proc/self/status").read_text().splitlines()
resident = next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))
print(json.dumps([first_s, resident / 1024]))
"""


def start(sheet: Sheet, pair: PerfPair) -> None:
    """Fresh processes of this interpreter, warm file cache; the first of each does not count."""
    imports = [float(_python("-c", _IMPORT)) for _ in range(RUNS + 1)][1:]
    sheet.at_most("import cema.edge", "s", 0.6, median(imports))
    firsts, resident = [], []
    with tempfile.TemporaryDirectory(prefix="cema-perf-") as folder:
        file = Path(folder) / "edge.bundle"
        file.write_bytes(encode_bundle(pair.bundle))
        for run in range(RUNS + 1):
            started_s = time.monotonic()
            first_s, mib = json.loads(_python("-c", _SERVE, str(file), str(Path(folder) / str(run))))
            firsts.append(first_s - started_s)
            resident.append(mib)
    sheet.at_most(f"process start to first prediction, {pair.edge_name}", "s", 1.5, median(firsts[1:]))
    sheet.at_most(f"resident after 100 predictions, {pair.edge_name}", "MiB", 180, median(resident[1:]))


def _python(*arguments: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return done.stdout
