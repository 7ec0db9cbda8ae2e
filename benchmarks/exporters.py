"""How fast is the graph of each exporter in ONNX Runtime? Writes results/exporters.json.

python benchmarks/exporters.py            two models, batch 1 and 8, one thread, medians of interleaved runs
"""

from __future__ import annotations

import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch
from provenance import provenance
from torch import nn

from cema.cloud.export_graph import to_graph
from cema.cloud.models import load_model
from cema.cloud.norms import read_parameters

RESULT = Path(__file__).parent / "results" / "exporters.json"
MODELS = ("resnet20", "efficientnet-lite0")
BATCHES = (1, 8)
RUNS = 31


def dynamo(module: nn.Module, example: torch.Tensor, *, optimize: bool) -> onnx.ModelProto:
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.onnx.export(
        module, (example,), dynamo=True, optimize=optimize, verbose=False, dynamic_shapes=shapes, input_names=["images"]
    )
    assert program is not None
    return program.model_proto


def torchscript(module: nn.Module, example: torch.Tensor) -> onnx.ModelProto:
    file = Path(tempfile.mkdtemp()) / "model.onnx"
    torch.onnx.export(
        module, (example,), file, dynamo=False, do_constant_folding=False,
        training=torch.onnx.TrainingMode.PRESERVE, dynamic_axes={"images": {0: "B"}}, input_names=["images"],
    )  # fmt: skip
    return onnx.load(file)


def ours(module: nn.Module, example: torch.Tensor) -> onnx.ModelProto:
    height, width = example.shape[2:]
    return ir.serde.serialize_model(to_graph(module, (height, width), list(read_parameters(module))))


EXPORTERS: dict[str, Callable[[nn.Module, torch.Tensor], onnx.ModelProto]] = {
    "dynamo": lambda module, example: dynamo(module, example, optimize=False),
    "dynamo, optimised": lambda module, example: dynamo(module, example, optimize=True),
    "torchscript": torchscript,
    "cema": ours,
}


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return ort.InferenceSession(model.SerializeToString(), options)


def measure(name: str) -> list[dict[str, object]]:
    loaded = load_model(name, pretrained=name != "resnet20")
    assert loaded.preprocess is not None
    height, width = loaded.preprocess.size
    example = torch.zeros(2, 3, height, width)
    kept, sessions, export_s = {}, {}, {}
    for exporter, export in EXPORTERS.items():
        started = time.perf_counter()
        model = export(loaded.module, example)
        export_s[exporter] = time.perf_counter() - started
        names = {tensor.name for tensor in model.graph.initializer}
        kept[exporter] = sum(wanted in names for wanted in read_parameters(loaded.module))
        sessions[exporter] = session(model)
    rows = []
    for batch in BATCHES:
        images = np.random.default_rng(0).standard_normal((batch, 3, height, width), np.float32)
        times: dict[str, list[float]] = {exporter: [] for exporter in sessions}
        for _ in range(RUNS):
            for exporter, made in sessions.items():
                started = time.perf_counter()
                made.run(None, {"images": images})
                times[exporter].append(1e3 * (time.perf_counter() - started))
        rows += [
            {
                "model": name, "exporter": exporter, "batch": batch, "median_ms": round(statistics.median(taken), 2),
                "norm_tensors_kept": kept[exporter], "norm_tensors": len(read_parameters(loaded.module)),
                "export_s": round(export_s[exporter], 1),
            }
            for exporter, taken in times.items()
        ]  # fmt: skip
    return rows


def main() -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    rows = [row for name in MODELS for row in measure(name)]
    origin = provenance(("torch", "onnxruntime"), threads=1, runs=RUNS)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({"rows": rows, "provenance": origin}, indent=1) + "\n")
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
