"""The numbers of the rivals: the same few candidates for each, on other photographs than the tables report.

    python benchmarks/tune.py --data DIR [--methods tent,eata]

CIFAR-10, ResNet-20, photographs 4,001 to 5,000 (the tables stream the first 2,000), severity 5, batch 64, corruptions
Gaussian noise, contrast, Gaussian blur and JPEG. Every method has its published numbers and four other candidates; the
best mean accuracy is chosen. Finished cells are kept. Written to results/tuning.json, from where tables.py takes it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean

from kept import FOUR, cells_folder, workplace
from provenance import ROOT, provenance

from cema.bench.grid import Spec
from cema.bench.run import run

Options = dict[str, bool | int | float | str]
CANDIDATES: dict[str, list[Options]] = {
    "bn-alpha": [{"prior_samples": n} for n in (16, 2, 4, 8, 32)],
    "bn-ema": [{"momentum": m} for m in (0.1, 0.05, 0.2, 0.3, 0.5)],
    "lame": [
        {},
        {"batch_statistics": True},
        {"batch_statistics": True, "neighbours": 1},
        {"batch_statistics": True, "neighbours": 3},
        {"batch_statistics": True, "affinity": "rbf"},
    ],
    "t3a": [{}, *({"batch_statistics": True, "filter_k": k} for k in (5, 20, 100, 0))],
    "tent": [
        {},
        {"lr": 0.0003},
        {"lr": 0.003},
        {"optimiser": "sgd", "lr": 0.001},
        {"optimiser": "sgd", "lr": 0.005},
    ],
    "eta": [{}, {"lr": 0.001}, {"lr": 0.0025}, {"lr": 0.01}, {"d_margin": 1.0}],
    "eata": [{}, {"lr": 0.001}, {"lr": 0.0025}, {"lr": 0.01}, {"d_margin": 1.0}],
    "sar": [
        {},
        {"lr": 0.001},
        {"lr": 0.005},
        {"lr": 0.005, "reset_entropy": 0.0},
        {"lr": 0.02, "reset_entropy": 0.0},
    ],
    "rotta": [{}, {"lr": 0.0003}, {"lr": 0.003}, {"statistics_rate": 0.1}, {"statistics_rate": 0.3}],
    "cotta": [{}, {"lr": 0.0003}, {"threshold": 0.72}, {"restore": 0.001}, {"lr": 0.0001}],
}
"""The first of each: as published."""
SKIP, LIMIT = 4000, 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10/")
    parser.add_argument("--methods", default=",".join(CANDIDATES))
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    path = ROOT / "benchmarks" / "results" / "tuning.json"
    known = json.loads(path.read_text())["methods"] if path.exists() else {}
    for method in arguments.methods.split(","):
        tried = [_try(method, options, arguments) for options in CANDIDATES[method]]
        best = max(tried, key=lambda one: one["accuracy"])
        known[method] = {"chosen": best["options"], "tried": tried}
        print(f"{method}: {best['options'] or 'as published'} {best['accuracy']:.4f}", flush=True)
        content = {"methods": known, "provenance": provenance(("cema", "numpy", "torch"))}
        path.write_text(json.dumps(content, indent=1) + "\n")


def _try(method: str, options: Options, arguments: argparse.Namespace) -> dict[str, object]:
    spec = Spec(
        dataset="cifar10",
        methods=(method,),
        corruptions=FOUR,
        skip=SKIP,
        limit=LIMIT,
        options={method: options} if options else {},
    )
    place = workplace(spec, arguments.data, arguments.processes)
    finished = run(place, cells_folder("tune"), resume=True, processes=arguments.processes)
    if finished.failures:
        raise SystemExit(f"{method}: {finished.failures[0].message}")
    accuracy = mean(row.accuracy for row in finished.rows)
    print(f"  {method} {options or 'as published'}: {accuracy:.4f}", flush=True)
    return {"options": options, "accuracy": accuracy}


if __name__ == "__main__":
    main()
