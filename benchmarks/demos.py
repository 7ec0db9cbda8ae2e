"""Runs ``cema demo`` over seeds and methods and writes what the README quotes to ``benchmarks/results``.

    python benchmarks/demos.py --dataset digits --seeds 0,1,2 --methods cema-paper,bn
    python benchmarks/demos.py --dataset cifar10 --data DIR
    python benchmarks/demos.py --dataset imagenet --data DIR

Each run is the real thing: one cloud, two edges, HTTP. A row is one edge of one run, as ``cema demo --json`` gives it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from statistics import mean, stdev

from provenance import ROOT, provenance

PACKAGES = ("cema", "numpy", "onnxruntime", "torch")
HELPED, DID_NOT_HELP = 0, 20
"""Exit codes of ``cema demo`` that come with figures."""
MEASURES = ("accuracy_adapted", "accuracy_source", "accuracy_adapted_clean", "accuracy_source_clean")


def main() -> None:
    options = _options()
    rows = [
        {"method": method, "seed": seed, **edge}
        for method in options.methods.split(",")
        for seed in map(int, options.seeds.split(","))
        for edge in _run(options, method, seed)
    ]
    result = {"rows": rows, "summary": _summary(rows), "provenance": provenance(PACKAGES, dataset=options.dataset)}
    path = ROOT / "benchmarks" / "results" / f"demo-{options.dataset}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {path.relative_to(ROOT)}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits", choices=["digits", "cifar10", "imagenet"])
    parser.add_argument("--data", help="folder with images and weights")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--methods", default="cema-paper")
    parser.add_argument("--samples", default="0", help="images per edge, 0 = the demo's own")
    return parser.parse_args()


def _run(options: argparse.Namespace, method: str, seed: int) -> list[dict[str, float | str]]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "cema", "demo", "--json", "--dataset", options.dataset, "--method", method]
        command += ["--seed", str(seed), "--samples", options.samples, "--report", f"{folder}/report.html"]
        command += ["--data", options.data] if options.data else []
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (HELPED, DID_NOT_HELP):
        raise SystemExit(f"{' '.join(command)} ended with exit code {done.returncode}")
    result = json.loads(done.stdout.splitlines()[-1])
    edges: list[dict[str, float | str]] = [{**edge, "wall_s": result["wall_s"]} for edge in result["edges"]]
    for edge in edges:
        print(method, seed, edge["name"], *(f"{name}={float(edge[name]):.3f}" for name in MEASURES), flush=True)
    return edges


def _summary(rows: list[dict[str, float | str]]) -> list[dict[str, object]]:
    """Mean and standard deviation over the seeds, per method and edge."""
    keys = sorted({(str(row["method"]), str(row["name"])) for row in rows})
    return [{"method": method, "name": name, **_spread(rows, method, name)} for method, name in keys]


def _spread(rows: list[dict[str, float | str]], method: str, name: str) -> dict[str, object]:
    chosen = [row for row in rows if (row["method"], row["name"]) == (method, name)]
    values = {measure: [float(row[measure]) for row in chosen] for measure in (*MEASURES, "uploads", "samples")}
    return {
        "seeds": len(chosen),
        **{measure: round(mean(found), 4) for measure, found in values.items()},
        **{f"{measure}_sd": round(stdev(found), 4) for measure, found in values.items() if len(found) > 1},
    }


if __name__ == "__main__":
    main()
