"""A convolution in int8 whose batch norm still lies outside, tensor by tensor.

Folding a norm into a convolution scales each output channel by k = gamma / sqrt(variance + eps). The int8 weights, with
a scale per output channel of their own, therefore never change; only their scales (times k) and the bias depend on the
norm tensors. A few nodes compute both from them, and ONNX Runtime runs these once, while it builds a session: what is
left is one integer convolution (ADR 13).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from cema.types import Float32Array

WEIGHT_MAX = 64
"""Largest int8 weight: two products of 255 and 64 fit into the 16 bits in which AVX2 without VNNI adds (ADR 13)."""
BIAS_MAX = float(2**30)
"""Largest bias in units of its scale: half of int32. The other half is the sum's: 65,000 products of 255 and 64, where
a 3 x 3 convolution of 512 channels has 4,608."""
SCALE_MIN = 1e-12
"""Of weights, so that a channel of zeros or a gamma of zero divides by something."""


@dataclass(frozen=True)
class Grid:
    """How a tensor is stored as uint8: value = scale * (stored - zero)."""

    scale: float
    zero: int


def grid(low: float, high: float) -> Grid:
    """The grid from ``low`` to ``high``; zero is always on it, as padding and ReLU need it exactly."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32(max(high - low, SCALE_MIN) / 255))
    return Grid(scale, round(-low / scale))


def quantised_weight(weight: Float32Array) -> tuple[NDArray[np.int8], Float32Array]:
    """[K, ...] -> (int8 of the same shape, scale [K]): each output channel uses the whole range."""
    rows_KN = weight.reshape(len(weight), -1)
    scale_K = np.maximum(np.abs(rows_KN).max(axis=1) / WEIGHT_MAX, SCALE_MIN).astype(np.float32)
    stored_KN = np.clip(np.rint(rows_KN / scale_K[:, None]), -WEIGHT_MAX, WEIGHT_MAX).astype(np.int8)
    return stored_KN.reshape(weight.shape), scale_K


def rounding_bias(
    weight: Float32Array, stored: NDArray[np.int8], scale_K: Float32Array, mean_C: Float32Array
) -> Float32Array:
    """What rounding the weights adds to each output channel on average, [K], for inputs of these channel means.

    Taken off before the norm, so that it stays right when the norm changes. Padding is not considered.
    """
    error = stored * scale_K.reshape(-1, *[1] * (weight.ndim - 1)) - weight
    taps_KC = error.reshape(*weight.shape[:2], -1).sum(axis=2)
    groups = len(mean_C) // weight.shape[1]
    means_KC = np.repeat(mean_C.reshape(groups, -1), len(weight) // groups, axis=0)
    added_K: Float32Array = (taps_KC * means_KC).sum(axis=1).astype(np.float32)
    return added_K


class Nodes:
    """Collects nodes and constants; every name begins with what they are for."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        self.constants[name] = numpy_helper.from_array(value, name)
        return name

    def add(self, operation: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operation, inputs, [output], **attributes))
        return output

    def copy(self, node: onnx.NodeProto, inputs: list[str], output: str) -> str:
        """The same operation with the same attributes elsewhere."""
        twin = helper.make_node(node.op_type, inputs, [output], domain=node.domain)
        twin.attribute.extend(node.attribute)
        self.nodes.append(twin)
        return output

    def scalar(self, name: str, value: float) -> str:
        return self.constant(name, np.asarray(value, np.float32))


@dataclass(frozen=True)
class Norm:
    """A batch norm behind a convolution: names of its tensors, and its eps."""

    weight: str
    bias: str
    mean: str
    variance: str
    eps: float


def weight_and_bias(
    nodes: Nodes, name: str, weight: Float32Array, bias_K: Float32Array, norm: Norm | None, scale_in: float,
    mean_C: Float32Array,
) -> tuple[str, str]:  # fmt: skip
    """Names of float tensors that ONNX Runtime takes as int8 weight and int32 bias, the norm folded into both.

    name: of the layer. scale_in: of the grid of its input. mean_C: channel means of its input.
    """
    stored, scale_K = quantised_weight(weight)
    bias_K = bias_K - rounding_bias(weight, stored, scale_K, mean_C)
    plain = nodes.constant(f"{name}.scale", scale_K)
    bias = nodes.constant(f"{name}.bias", bias_K.astype(np.float32))
    factor = None if norm is None else _factor(nodes, name, norm)
    if norm is not None and factor is not None:
        centred = nodes.add("Sub", [bias, norm.mean], f"{name}.centred")
        bias = nodes.add("Add", [nodes.add("Mul", [centred, factor], f"{name}.scaled"), norm.bias], f"{name}.shift")
        plain = nodes.add("Mul", [plain, factor], f"{name}.folded")
    scale = _bounded(nodes, name, plain, bias, scale_in)
    zeros_K = nodes.constant(f"{name}.zero", np.zeros(len(scale_K), np.int8))
    weights = [nodes.constant(f"{name}.int8", stored), scale, zeros_K]
    unit = nodes.add("Mul", [scale, nodes.scalar(f"{name}.input_scale", scale_in)], f"{name}.unit")
    counted = nodes.add("Round", [nodes.add("Div", [bias, unit], f"{name}.units")], f"{name}.whole")
    stored_bias = nodes.add("Cast", [counted], f"{name}.int32", to=onnx.TensorProto.INT32)
    return (
        nodes.add("DequantizeLinear", weights, f"{name}.weight_value", axis=0),
        nodes.add("DequantizeLinear", [stored_bias, unit], f"{name}.bias_value", axis=0),
    )


def _factor(nodes: Nodes, name: str, norm: Norm) -> str:
    """k = gamma / sqrt(variance + eps), [K]."""
    above = nodes.add("Add", [norm.variance, nodes.scalar(f"{name}.eps", norm.eps)], f"{name}.above")
    return nodes.add("Div", [norm.weight, nodes.add("Sqrt", [above], f"{name}.deviation")], f"{name}.factor")


def _bounded(nodes: Nodes, name: str, scale: str, bias: str, scale_in: float) -> str:
    """The scale, kept away from zero where the bias would not fit into int32 otherwise; its sign is gamma's."""
    size = nodes.add("Abs", [scale], f"{name}.size")
    per_unit = nodes.scalar(f"{name}.per_unit", 1 / (scale_in * BIAS_MAX))
    needed = nodes.add("Mul", [nodes.add("Abs", [bias], f"{name}.bias_size"), per_unit], f"{name}.needed")
    safe = nodes.add("Max", [size, needed, nodes.scalar(f"{name}.least", SCALE_MIN)], f"{name}.safe")
    negative = nodes.add("Less", [scale, nodes.scalar(f"{name}.nought", 0.0)], f"{name}.negative")
    return nodes.add("Where", [negative, nodes.add("Neg", [safe], f"{name}.turned"), safe], f"{name}.signed")
