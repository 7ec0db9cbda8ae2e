"""Is ``cema-paper`` faithful? ResNet-20/56 on 2,000 CIFAR-10 photographs, four corruptions; to results/oracle.json.

    CEMA_DATA=DIR python benchmarks/oracle.py [--methods source,bn,cema-paper] [--seeds 0]

The published code (deleted modules restored, the paper's filters) gives Gaussian noise 70.9, contrast 76.6, Gaussian
blur 80.9, JPEG 81.1, mean 77.4 % with 46 % of the samples uploaded (severity 5, batch 64).
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from statistics import mean

from provenance import ROOT, provenance

from cema.bench.corruptions import corrupted
from cema.bench.datasets import load_dataset
from cema.bench.simulate import Pair, Plan, Simulator
from cema.cloud.export import build_bundle
from cema.cloud.memory import keep_freed_memory
from cema.cloud.models import load_model
from cema.config import SelectionConfig

CORRUPTIONS = ("gaussian_noise", "contrast", "gaussian_blur", "jpeg_compression")
SEVERITY, IMAGES = 5, 2000
PAPER_FILTERS = SelectionConfig(e_max_warmup_samples=64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="source,bn,cema-paper")
    parser.add_argument("--seeds", default="0")
    options = parser.parse_args()
    keep_freed_memory()
    data = Path(os.environ["CEMA_DATA"])
    pair, photographs = _pair(data), load_dataset("cifar10", data, IMAGES)
    rows = []
    for name in CORRUPTIONS:
        for seed in map(int, options.seeds.split(",")):
            images = corrupted(photographs.images, name, SEVERITY, seed)
            for method in options.methods.split(","):
                plan = Plan(method=method, selection=PAPER_FILTERS, seed=seed, first_batch=method != "source")
                outcome = Simulator(pair, plan).run(images, photographs.labels)
                row = {
                    "method": method, "corruption": name, "severity": SEVERITY, "seed": seed, "samples": IMAGES,
                    "accuracy": outcome.accuracy, "accuracy_second_half": outcome.accuracy_second_half,
                    "uploads": outcome.uploads, "bytes_up": outcome.bytes_up, "bytes_down": outcome.bytes_down,
                    "edge_s": round(outcome.edge_s, 2), "cloud_s": round(outcome.cloud_s, 2),
                }  # fmt: skip
                rows.append(row)
                print(
                    method,
                    name,
                    seed,
                    f"{outcome.accuracy:.3f}",
                    outcome.uploads,
                    f"{outcome.cloud_s:.0f} s",
                    flush=True,
                )
    means = {
        method: {key: mean(row[key] for row in rows if row["method"] == method) for key in ("accuracy", "uploads")}
        for method in options.methods.split(",")
    }
    path = ROOT / "benchmarks" / "results" / "oracle.json"
    facts = provenance(("cema", "numpy", "onnxruntime", "torch"))
    path.write_text(json.dumps({"rows": rows, "means": means, "provenance": facts}, indent=1) + "\n")


def _pair(data: Path) -> Pair:
    edge = load_model("resnet20", data / "cifar10" / "resnet20.safetensors")
    foundation = load_model("resnet56", data / "cifar10" / "resnet56.safetensors")
    assert edge.preprocess is not None
    assert edge.classes is not None
    bundle = build_bundle(edge.module, name=edge.name, preprocess=edge.preprocess, classes=edge.classes)
    return Pair(bundle, edge.module, foundation.module)


if __name__ == "__main__":
    main()
