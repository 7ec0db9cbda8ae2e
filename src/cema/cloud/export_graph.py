"""torch module -> ONNX graph in which every norm tensor is still there, under its torch name, on its own.

The exporter's own optimisation folds batch norm into convolutions and merges equal tensors; without it the graph
is 1.7 to 3.6 times slower, as pads and clip bounds stay dynamic (benchmarks/results/exporters.json). So the optimiser
runs while the norm tensors are declared graph inputs: what could be anything can be neither folded nor merged.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import onnx
import onnx_ir as ir
import onnxscript.optimizer
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import nn

from cema.errors import ExportError
from cema.wire.messages import CONFIDENCE_OUTPUT, ENTROPY_OUTPUT, LABEL_OUTPUT, PROBABILITIES_OUTPUT, Preprocess
from cema.wire.preprocess import scale_and_shift

INPUT_NAME, OUTPUT_NAME = "images", "logits"
OPSET = 18
"""The exporter's native opset, and one that ONNX Runtime 1.20 knows; GroupNorm becomes InstanceNormalization and a
scale per channel (the GroupNormalization of opset 18 itself scales per group)."""
EXAMPLE_BATCH = 2
"""Not 1, which the tracer would take for a constant."""


def to_graph(module: nn.Module, size: tuple[int, int], norm_names: Sequence[str]) -> ir.Model:
    """Export ``module`` for float32 [B, 3, height, width] images, B free.

    Works on a copy in eval mode; ``module`` stays as it is. ``norm_names``: the tensors to keep.

    Raises
    ------
    ExportError: the module cannot be traced, or a norm tensor is not in the graph.
    """
    frozen = copy.deepcopy(module).cpu().float().eval().requires_grad_(False)
    example = torch.zeros(EXAMPLE_BATCH, 3, *size)
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                frozen, (example,), dynamo=True, optimize=False, verbose=False, opset_version=OPSET,
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), input_names=[INPUT_NAME], output_names=[OUTPUT_NAME],
            )  # fmt: skip
        except Exception as error:  # whatever the tracer or the model raises
            reason = str(error.__cause__ or error).strip().split("\n")[0][:300]
            raise ExportError(
                f"the model cannot be exported for images [B, 3, {size[0]}, {size[1]}]: {reason}",
                hint="forward must take one image tensor of any batch size, without control flow on its values",
            ) from error
        assert program is not None
        model = program.model
        _check_single_output(model)
        _optimise(model, norm_names)
    ClearMetadataAndDocStringPass()(model)  # stack traces with the paths of this machine
    return model


def take_pixels(model: onnx.ModelProto, recipe: Preprocess) -> None:
    """Let the graph take uint8 [B, H, W, 3] and normalise by itself, with the very operations of ``normalise``."""
    graph = model.graph
    for node in graph.node:
        node.input[:] = ["normalised" if name == INPUT_NAME else name for name in node.input]
    scale, shift = (value.reshape(3, 1, 1) for value in scale_and_shift(recipe))
    constants = {"pixels.scale": scale, "pixels.shift": shift}
    graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in constants.items())
    steps = [
        onnx.helper.make_node("Transpose", [INPUT_NAME], ["pixels.planes"], perm=[0, 3, 1, 2]),
        onnx.helper.make_node("Cast", ["pixels.planes"], ["pixels.float"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("Mul", ["pixels.float", "pixels.scale"], ["pixels.scaled"]),
        onnx.helper.make_node("Add", ["pixels.scaled", "pixels.shift"], ["normalised"]),
    ]
    nodes = list(graph.node)
    graph.ClearField("node")
    graph.node.extend([*steps, *nodes])
    pixels = onnx.helper.make_tensor_value_info(INPUT_NAME, onnx.TensorProto.UINT8, ["B", *recipe.size, 3])
    graph.input[0].CopyFrom(pixels)


def give_answers(model: onnx.ModelProto, classes: int) -> None:
    """Let the graph also give all that is said about a picture: probabilities [B, K], their entropy [B] in nats, the
    label [B] and its probability [B]."""
    make, graph = onnx.helper.make_node, model.graph
    graph.initializer.append(onnx.numpy_helper.from_array(np.asarray([-1], np.int64), "answers.axis"))
    graph.node.extend(
        [
            make("Softmax", [OUTPUT_NAME], [PROBABILITIES_OUTPUT], axis=-1),
            make("LogSoftmax", [OUTPUT_NAME], ["answers.log"], axis=-1),
            make("Mul", [PROBABILITIES_OUTPUT, "answers.log"], ["answers.product"]),
            make("ReduceSum", ["answers.product", "answers.axis"], ["answers.sum"], keepdims=0),
            make("Neg", ["answers.sum"], [ENTROPY_OUTPUT]),
            make("ArgMax", [OUTPUT_NAME], [LABEL_OUTPUT], axis=-1, keepdims=0),
            make("ReduceMax", [PROBABILITIES_OUTPUT, "answers.axis"], [CONFIDENCE_OUTPUT], keepdims=0),
        ]
    )
    values, number = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    graph.output.append(values(PROBABILITIES_OUTPUT, number, ["B", classes]))
    graph.output.extend(values(name, number, ["B"]) for name in (ENTROPY_OUTPUT, CONFIDENCE_OUTPUT))
    graph.output.append(values(LABEL_OUTPUT, onnx.TensorProto.INT64, ["B"]))


def _check_single_output(model: ir.Model) -> None:
    if len(model.graph.outputs) != 1:
        raise ExportError(
            f"expected one output, logits [B, K], got {len(model.graph.outputs)}",
            hint="wrap the model so that forward returns its logits alone",
        )


def _optimise(model: ir.Model, norm_names: Sequence[str]) -> None:
    graph = model.graph
    if missing := [name for name in norm_names if name not in graph.initializers]:
        raise ExportError(
            f"expected every norm tensor in the graph; {len(missing)} are not, such as {missing[0]}",
            hint="remove norm layers that forward does not use, and share none under two names",
        )
    held = {name: graph.initializers.pop(name) for name in norm_names}
    graph.inputs.extend(held.values())
    onnxscript.optimizer.optimize_ir(model)
    for value in held.values():
        graph.inputs.remove(value)
        graph.register_initializer(value)


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns about packages that no model here needs, and about itself."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
