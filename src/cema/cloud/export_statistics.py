"""The graph with which a device measures its own norm statistics: the model's, opened at every batch norm.

In: the model's graph. Out: one forward in which each batch norm reports the moments of its input and normalises by a
blend of them and the statistics that it is given, so that the next layer measures inputs that are corrected already
(edge/statistics.py). Large weights are not stored again: the device reads them out of ``model.onnx``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from cema.errors import ExportError
from cema.wire.bundle import MODEL_FILE, SHARE_INPUT, MeasuredLayer, measured_layers
from cema.wire.messages import NormTensor, SharedWeight

SHARED_MIN_BYTES = 1024
"""Smaller weights are stored again: a table entry would cost as much."""
_make = onnx.helper.make_node


def statistics_graph(
    proto: onnx.ModelProto, model: bytes, table: Sequence[NormTensor]
) -> tuple[bytes, list[SharedWeight] | None]:
    """``statistics.onnx`` and its description; no bytes for a model without batch norm statistics to follow.

    proto: the graph that became ``model``, with its weights inside. Raises ExportError for one whose norm layers the
    exporter did not keep as batch norms.
    """
    layers = measured_layers(table)
    if not layers:
        return b"", None
    opened = onnx.ModelProto()
    opened.CopyFrom(onnx.shape_inference.infer_shapes(proto))
    known = [*opened.graph.input, *opened.graph.value_info]
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in known}
    _open_norms(opened.graph, layers, ranks)
    _take_parameters(opened.graph, layers, [tensor.initializer for tensor in table])
    shared = _share_weights(opened.graph, model)
    opened.graph.ClearField("value_info")
    data: bytes = opened.SerializeToString(deterministic=True)
    return data, shared


def _open_norms(graph: onnx.GraphProto, layers: Sequence[MeasuredLayer], ranks: dict[str, int]) -> None:
    """Each batch norm measures its input and normalises by the blend; other nodes stay."""
    index_of = {layer.weight: index for index, layer in enumerate(layers)}
    nodes, opened = [], 0
    for node in graph.node:
        index = index_of.get(node.input[1]) if node.op_type == "BatchNormalization" else None
        if index is None:
            nodes.append(node)
            continue
        nodes.extend(_measured(node, index, ranks[node.input[0]]))
        opened += 1
    if opened != len(layers):
        raise ExportError(
            f"expected {len(layers)} batch norm layers in the graph, found {opened}",
            hint="a norm layer that forward uses in another way than as a batch norm cannot be measured",
        )
    graph.ClearField("node")
    graph.node.extend(nodes)


def _measured(node: onnx.NodeProto, index: int, rank: int) -> list[onnx.NodeProto]:
    """x -> first, second moment per image [B, C]; blended mean and variance [C]; the norm by them."""
    name = f"statistics.{index}"
    x, weight, bias, mean, var = node.input[:5]
    axes = ",".join(map(str, range(2, rank)))
    first, second = f"{name}.first", f"{name}.second"
    steps = [_make("Mul", [x, x], [f"{name}.square"])]
    if axes:
        steps += [
            _make("ReduceMean", [x, f"statistics.axes.{axes}"], [first], keepdims=0),
            _make("ReduceMean", [f"{name}.square", f"statistics.axes.{axes}"], [second], keepdims=0),
        ]
    else:
        steps += [_make("Identity", [x], [first]), _make("Identity", [f"{name}.square"], [second])]
    steps += [
        _make("ReduceMean", [first, "statistics.axes.0"], [f"{name}.mean"], keepdims=0),
        _make("ReduceMean", [second, "statistics.axes.0"], [f"{name}.power"], keepdims=0),
        _make("Mul", [f"{name}.mean", f"{name}.mean"], [f"{name}.mean2"]),
        _make("Sub", [f"{name}.power", f"{name}.mean2"], [f"{name}.raw"]),
        _make("Relu", [f"{name}.raw"], [f"{name}.var"]),  # rounding may leave a variance below zero
        _make("Gather", [SHARE_INPUT, f"statistics.index.{index}"], [f"{name}.share"]),
    ]
    for what, source in (("mean", mean), ("var", var)):
        steps += [
            _make("Sub", [f"{name}.{what}", source], [f"{name}.{what}.far"]),
            _make("Mul", [f"{name}.{what}.far", f"{name}.share"], [f"{name}.{what}.step"]),
            _make("Add", [source, f"{name}.{what}.step"], [f"{name}.{what}.blend"]),
        ]
    blended = _make("BatchNormalization", [x, weight, bias, f"{name}.mean.blend", f"{name}.var.blend"], node.output[:1])
    blended.attribute.extend(attribute for attribute in node.attribute if attribute.name == "epsilon")
    return [*steps, blended]


def _take_parameters(graph: onnx.GraphProto, layers: Sequence[MeasuredLayer], taken: Sequence[str]) -> None:
    """The norms' tensors and the shares become inputs, moments outputs, the logits stay one."""
    held = {tensor.name: tensor for tensor in graph.initializer}
    values, number = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    graph.input.append(values(SHARE_INPUT, number, [len(layers)]))
    graph.input.extend(values(name, number, list(held[name].dims)) for name in taken)
    kept = [tensor for name, tensor in held.items() if name not in set(taken)]
    axes = {",".join(map(str, range(2, rank))) for rank in (3, 4, 5)} | {"0"}
    constants = {f"statistics.axes.{each}": np.fromstring(each, np.int64, sep=",") for each in axes}
    constants |= {f"statistics.index.{index}": np.asarray(index, np.int64) for index in range(len(layers))}
    used = {name for node in graph.node for name in node.input}
    kept += [onnx.numpy_helper.from_array(value, name) for name, value in constants.items() if name in used]
    graph.ClearField("initializer")
    graph.initializer.extend(kept)
    del graph.output[1:]
    channels = [held[layer.weight].dims[0] for layer in layers]
    for index, count in enumerate(channels):
        graph.output.extend(values(f"statistics.{index}.{what}", number, ["B", count]) for what in ("first", "second"))


def _share_weights(graph: onnx.GraphProto, model: bytes) -> list[SharedWeight]:
    """Large weights that lie in ``model`` as well become external: the device hands them in."""
    shared = []
    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.raw_data) >= SHARED_MIN_BYTES:
            offset = model.find(tensor.raw_data)
            if offset >= 0:
                shared.append(SharedWeight(name=tensor.name, shape=tuple(tensor.dims), offset=offset))
                _make_external(tensor, offset)
    return shared


def _make_external(tensor: onnx.TensorProto, offset: int) -> None:
    size = 4 * int(np.prod(tensor.dims, dtype=np.int64))
    tensor.ClearField("raw_data")
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", MODEL_FILE), ("offset", offset), ("length", size)):
        tensor.external_data.add(key=key, value=str(value))
