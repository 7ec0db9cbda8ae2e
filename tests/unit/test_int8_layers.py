"""Numbers in eight bits: grids, weights, and a norm folded into them by the graph itself."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from cema.cloud.int8_layers import SCALE_MIN, Nodes, Norm, grid, quantised_weight, rounding_bias, weight_and_bias
from cema.types import Float32Array

EPS = 1e-3
SCALE_IN = 0.02
FINITE = st.floats(-1e3, 1e3, width=32)


@given(FINITE, FINITE)
def test_a_grid_has_zero_on_it_and_reaches_both_ends(one: float, other: float) -> None:
    low, high = min(one, other), max(one, other)
    found = grid(low, high)
    assert 0 <= found.zero <= 255
    for value in (low, high, 0.0):
        stored = np.clip(round(value / found.scale) + found.zero, 0, 255)
        assert abs(found.scale * (stored - found.zero) - value) <= found.scale
    assert found.scale >= SCALE_MIN / 255 / 2


@given(st.integers(0, 1000))
def test_two_products_of_stored_weights_fit_into_sixteen_bits(seed: int) -> None:
    """Else processors with AVX2 and no VNNI add something else."""
    weight = np.random.default_rng(seed).normal(size=(4, 3, 3, 3)).astype(np.float32)
    stored = np.abs(quantised_weight(weight)[0].astype(np.int64)).reshape(4, -1)
    assert 255 * np.sort(stored, axis=1)[:, -2:].sum(axis=1).max() <= np.iinfo(np.int16).max


def test_a_relu6_grid_ends_exactly_at_six() -> None:
    found = grid(0.0, 6.0)
    assert found.zero == 0
    assert found.scale * 255 == pytest.approx(6.0, rel=1e-6)


def test_each_output_channel_uses_the_whole_range() -> None:
    weight = np.random.default_rng(0).normal(size=(5, 3, 3, 3)).astype(np.float32)
    weight[1] *= 1000
    weight[2] = 0
    stored, scale_K = quantised_weight(weight)
    assert [int(np.abs(channel).max()) for channel in stored] == [64, 64, 0, 64, 64]
    error = np.abs(stored * scale_K[:, None, None, None] - weight).reshape(5, -1).max(axis=1)
    assert (error <= scale_K * 0.501).all()


@pytest.mark.parametrize(("groups", "inputs"), [(1, 6), (2, 6), (6, 6)])
def test_what_rounding_adds_is_what_a_constant_picture_shows(groups: int, inputs: int) -> None:
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(12, inputs // groups, 3, 3)).astype(np.float32)
    stored, scale_K = quantised_weight(weight)
    mean_C = rng.normal(size=inputs).astype(np.float32)
    error = (stored * scale_K[:, None, None, None] - weight).sum(axis=(2, 3))
    per_group, expected = 12 // groups, []
    for channel in range(12):
        first = channel // per_group * (inputs // groups)
        expected.append(error[channel] @ mean_C[first : first + inputs // groups])
    np.testing.assert_allclose(rounding_bias(weight, stored, scale_K, mean_C), expected, atol=1e-4)


def folded(weight: Float32Array, norm: dict[str, Float32Array]) -> tuple[Float32Array, Float32Array]:
    """(weight, bias) as float values, computed by ONNX Runtime from the norm tensors."""
    nodes = Nodes()
    names = Norm("weight", "bias", "running_mean", "running_var", EPS)
    mean_C = np.zeros(weight.shape[1], np.float32)
    outputs = weight_and_bias(nodes, "layer", weight, np.zeros(len(weight), np.float32), names, SCALE_IN, mean_C)
    shapes = {**{name: [len(weight)] for name in norm}, outputs[0]: weight.shape, outputs[1]: [len(weight)]}
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    graph = helper.make_graph(
        nodes.nodes, "folding", [values[name] for name in norm], [values[name] for name in outputs],
        [*nodes.constants.values()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found, shift = session.run(list(outputs), norm)
    return found, shift


def test_the_graph_folds_any_norm_as_arithmetic_does() -> None:
    rng = np.random.default_rng(2)
    weight = rng.normal(size=(6, 4, 3, 3)).astype(np.float32)
    gamma = np.asarray([1.0, -1.0, 0.0, -0.0, 1e-9, -3.0], np.float32)
    beta, mean = (rng.normal(size=6).astype(np.float32) for _ in range(2))
    variance = np.asarray([1.0, 4.0, 1.0, 0.0, 1.0, 1e-6], np.float32)
    found, shift = folded(weight, {"weight": gamma, "bias": beta, "running_mean": mean, "running_var": variance})
    k = gamma / np.sqrt(variance + EPS)
    step = np.abs(k) * np.abs(weight).reshape(6, -1).max(axis=1) / 64
    tiny = np.abs(beta - mean * k) / (SCALE_IN * 2**30) * 64  # what a channel without weights may add at most
    assert (np.abs(found - weight * k[:, None, None, None]).reshape(6, -1).max(axis=1) <= 0.51 * step + 2 * tiny).all()
    np.testing.assert_allclose(shift, beta - mean * k, atol=float(2 * (SCALE_IN * step).max()), rtol=1e-5)
