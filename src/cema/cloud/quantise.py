"""The graph of a bundle in integers: convolutions, linear layers and additions in uint8 x int8, all else as it was.

Written as QuantizeLinear and DequantizeLinear around the float operations, which is what every execution provider
understands; ONNX Runtime makes QLinearConv, QLinearAdd and QGemm of it when it builds a session. The quantiser that
ONNX Runtime brings folds batch norm into the weights, which no update could reach then.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from cema.cloud.int8_layers import Grid, Nodes, Norm, grid, weight_and_bias
from cema.errors import ExportError
from cema.types import Float32Array

_LAYERS = ("Conv", "Gemm")
CHANNELS_MIN = 8
"""A convolution of fewer input channels stays in float: the one that reads the picture is faster so, and its rounding
is what costs most accuracy (docs/adr/0013)."""
_MOVES = ("Slice", "Pad", "MaxPool", "Reshape", "Flatten")
"""Operations that only move values about: done on what is stored, as it is."""
_MADE = (*_LAYERS, "BatchNormalization", "Relu", "Clip", "Add")
"""Operations whose results may have to be stored."""


@dataclass(frozen=True)
class Observed:
    """A tensor over the calibration pictures. mean_C: of each channel (axis 1), of what enters a layer, else None."""

    low: float
    high: float
    mean_C: Float32Array | None = None


def observable(model: onnx.ModelProto) -> dict[str, str]:
    """Tensors that ``quantised_graph`` may want to know about, with the layer that they enter (Conv, Gemm) or ""."""
    values = {tensor.name: tensor for tensor in model.graph.initializer}
    made = {node.output[0]: "" for node in model.graph.node if node.op_type in _MADE}
    return made | {node.input[0]: node.op_type for node in model.graph.node if _is_layer(node, values)}


def quantised_graph(model: onnx.ModelProto, observed: Mapping[str, Observed]) -> onnx.ModelProto:
    """A new graph; the norm tensors are in it under their names, each still feeds one node.

    Raises ExportError: no convolution or linear layer with weights of its own.
    """
    return _Rewriter(model, observed).run()


class _Rewriter:
    """Walks the graph once, in order. ``_stored``: tensors that exist as uint8 by now, and on which grid."""

    def __init__(self, model: onnx.ModelProto, observed: Mapping[str, Observed]) -> None:
        self._model, self._observed = model, observed
        self._values = {tensor.name: tensor for tensor in model.graph.initializer}
        self._users: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in model.graph.node:
            for name in node.input:
                self._users[name].append(node)
        self._results = {output.name for output in model.graph.output}
        self._nodes = Nodes()
        self._stored: dict[str, Grid] = {}
        self._absorbed: set[str] = set()

    def run(self) -> onnx.ModelProto:
        layers = 0
        for node in self._model.graph.node:
            if node.output[0] in self._absorbed:
                continue
            if _is_layer(node, self._values):
                self._layer(node)
                layers += 1
            elif node.op_type == "Add" and all(name in self._stored for name in node.input):
                output = self._activated(node.output[0])
                self._nodes.copy(node, [self._value(name) for name in node.input], output.name)
                self._store(output)
            elif self._only_moves(node):
                self._move(node)
            else:
                self._keep(node)
        if not layers:
            raise ExportError(
                "expected convolutions or linear layers to quantise, got none", hint="build the bundle without --int8"
            )
        return self._finished()

    def _layer(self, node: onnx.NodeProto) -> None:
        source, name = node.input[0], f"int8.{node.output[0]}"
        seen = self._observed[source]
        assert seen.mean_C is not None
        if source not in self._stored:
            self._store(_Output(source, grid(seen.low, seen.high)))
        weight = numpy_helper.to_array(self._values[node.input[1]])
        bias = numpy_helper.to_array(self._values[node.input[2]]) if len(node.input) > 2 else np.zeros(len(weight))
        norm, last = self._norm_behind(node)
        output = self._activated(last) if node.op_type == "Conv" else None
        tensors = weight_and_bias(
            self._nodes, name, weight, bias.astype(np.float32), norm, self._stored[source].scale, seen.mean_C
        )
        self._nodes.copy(node, [self._value(source), *tensors], output.name if output else last)
        if output:
            self._store(output)

    def _norm_behind(self, node: onnx.NodeProto) -> tuple[Norm | None, str]:
        """The batch norm that alone uses a convolution's result, and the tensor behind both."""
        norm = self._only_user(node.output[0]) if node.op_type == "Conv" else None
        if norm is None or norm.op_type != "BatchNormalization":
            return None, node.output[0]
        self._absorbed.add(norm.output[0])
        eps = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
        _, weight, bias, mean, variance = norm.input
        return Norm(weight, bias, mean, variance, eps), norm.output[0]

    def _activated(self, name: str) -> _Output:
        """The tensor behind a following ReLU or ReLU6, which the grid's lower end does; else the tensor itself."""
        after = self._only_user(name)
        limit = None if after is None else self._upper_limit(after)
        if after is None or limit is None:
            seen = self._observed[name]
            return _Output(name, grid(seen.low, seen.high))
        self._absorbed.add(after.output[0])
        high = limit if math.isfinite(limit) else self._observed[after.output[0]].high
        return _Output(after.output[0], grid(0.0, high))

    def _upper_limit(self, node: onnx.NodeProto) -> float | None:
        """Of a ReLU infinity, of a Clip from 0 its upper bound; None for anything else."""
        if node.op_type == "Relu":
            return math.inf
        if node.op_type != "Clip" or any(name not in self._values for name in node.input[1:]) or len(node.input) < 3:
            return None
        low, high = (float(numpy_helper.to_array(self._values[name])) for name in node.input[1:3])
        return high if low == 0 < high else None

    def _store(self, output: _Output) -> None:
        """Quantise a tensor; whoever uses it from now on gets what was stored."""
        name, where = output.name, output.grid
        scale = self._nodes.scalar(f"{name}.scale", where.scale)
        zero = self._nodes.constant(f"{name}.zero", np.asarray(where.zero, np.uint8))
        self._nodes.add("QuantizeLinear", [name, scale, zero], f"{name}.uint8")
        self._nodes.add("DequantizeLinear", [f"{name}.uint8", scale, zero], f"{name}.value")
        self._stored[name] = where

    def _move(self, node: onnx.NodeProto) -> None:
        source, result = node.input[0], node.output[0]
        where = self._stored[source]
        inputs = [f"{source}.uint8", *node.input[1:]]
        scale = self._nodes.scalar(f"{result}.scale", where.scale)
        zero = self._nodes.constant(f"{result}.zero", np.asarray(where.zero, np.uint8))
        if node.op_type == "Pad":
            inputs[2:3] = [zero]
        self._nodes.copy(node, inputs, f"{result}.uint8")
        self._nodes.add("DequantizeLinear", [f"{result}.uint8", scale, zero], f"{result}.value")
        self._stored[result] = where

    def _keep(self, node: onnx.NodeProto) -> None:
        kept = onnx.NodeProto()
        kept.CopyFrom(node)
        kept.input[:] = [self._value(name) for name in node.input]
        self._nodes.nodes.append(kept)

    def _value(self, name: str) -> str:
        return f"{name}.value" if name in self._stored else name

    def _only_user(self, name: str) -> onnx.NodeProto | None:
        users = self._users[name]
        return users[0] if len(users) == 1 and name not in self._results else None

    def _only_moves(self, node: onnx.NodeProto) -> bool:
        if node.op_type not in _MOVES or node.input[0] not in self._stored or node.output[0] in self._results:
            return False
        if node.op_type != "Pad":
            return len(node.output) == 1
        mode = next((a.s for a in node.attribute if a.name == "mode"), b"constant")
        filler = self._values.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        return mode == b"constant" and (len(node.input) < 3 or not node.input[2] or _is_zero(filler))

    def _finished(self) -> onnx.ModelProto:
        made = onnx.ModelProto()
        made.CopyFrom(self._model)
        graph = made.graph
        used = {name for node in self._nodes.nodes for name in node.input}
        initializers = [t for t in graph.initializer if t.name in used]
        initializers += [t for name, t in self._nodes.constants.items() if name in used]
        for field, content in (("node", self._nodes.nodes), ("initializer", initializers)):
            graph.ClearField(field)
            getattr(graph, field).extend(content)
        graph.ClearField("value_info")
        return made


@dataclass(frozen=True)
class _Output:
    name: str
    grid: Grid


def _is_layer(node: onnx.NodeProto, values: Mapping[str, onnx.TensorProto]) -> bool:
    """A convolution over height and width, of channels enough, or a linear layer; weights [K, ...] and bias are
    constants."""
    if node.op_type not in _LAYERS or any(name not in values for name in node.input[1:]):
        return False
    numbers = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "Conv":
        dims = values[node.input[1]].dims
        return len(dims) == 4 and dims[1] * numbers.get("group", 1) >= CHANNELS_MIN
    plain = numbers.get("alpha", 1.0) == numbers.get("beta", 1.0) == 1.0 and not numbers.get("transA", 0)
    return plain and numbers.get("transB", 0) == 1


def _is_zero(tensor: onnx.TensorProto | None) -> bool:
    return tensor is not None and not numpy_helper.to_array(tensor).any()
