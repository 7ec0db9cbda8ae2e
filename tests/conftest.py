"""Fixtures that all kinds of tests share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from cema.wire.bundle import Bundle, fingerprint
from cema.wire.messages import BundleManifest, NormTensor, Preprocess

TINY_SIZE_PX = 8
TINY_CHANNELS = 4
TINY_CLASSES = ["cat", "dog", "eel"]
TINY_EPS = 1e-5
TINY_ROLES = ("weight", "bias", "running_mean", "running_var")


def _external(tensor: NormTensor) -> TensorProto:
    proto = TensorProto(name=tensor.initializer, data_type=TensorProto.FLOAT, dims=tensor.shape)
    proto.data_location = TensorProto.EXTERNAL
    length = 4 * int(np.prod(tensor.shape))
    for key, value in (("location", "norm.bin"), ("offset", tensor.offset), ("length", length)):
        proto.external_data.add(key=key, value=str(value))
    return proto


def build_tiny_bundle(seed: int = 0) -> Bundle:
    """conv(w) -> batch norm bn -> relu -> mean over H, W -> matmul(fc): 8 x 8 px, 3 classes, four norm tensors."""
    rng = np.random.default_rng(seed)
    table = [
        NormTensor(
            name=f"bn.{role}", initializer=f"onnx::bn.{role}", kind="batch_norm", role=role,
            shape=(TINY_CHANNELS,), eps=TINY_EPS, offset=4 * TINY_CHANNELS * position,
        )
        for position, role in enumerate(TINY_ROLES)
    ]  # fmt: skip
    weight = rng.normal(size=(TINY_CHANNELS, 3, 3, 3)).astype(np.float32)
    head = rng.normal(size=(TINY_CHANNELS, len(TINY_CLASSES))).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["images", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", *(t.initializer for t in table)], ["n"], epsilon=TINY_EPS),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "fc"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["B", 3, TINY_SIZE_PX, TINY_SIZE_PX])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", len(TINY_CLASSES)])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(head, "fc"), *map(_external, table)],
    )
    onnx_model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    model = onnx_model.SerializeToString(deterministic=True)
    source = [
        rng.uniform(0.5, 1.5, TINY_CHANNELS), rng.normal(size=TINY_CHANNELS),
        rng.normal(size=TINY_CHANNELS), rng.uniform(0.5, 1.5, TINY_CHANNELS),
    ]  # fmt: skip
    norm = np.concatenate(source).astype("<f4").tobytes()
    recipe = Preprocess(size=(TINY_SIZE_PX, TINY_SIZE_PX))
    manifest = BundleManifest(
        fingerprint=fingerprint(model, norm, recipe, TINY_CLASSES, table), model="tiny", classes=TINY_CLASSES,
        preprocess=recipe, input_name="images", output_name="logits", norm=table, opset=17,
    )  # fmt: skip
    return Bundle(manifest, model, norm)


@pytest.fixture(scope="session")
def tiny_bundle() -> Bundle:
    """A real, runnable bundle of a few hundred bytes of weights."""
    return build_tiny_bundle()


@pytest.fixture(scope="session")
def make_tiny_bundle() -> Callable[[int], Bundle]:
    """Other tiny bundles, by seed: same shapes, other weights, other fingerprint."""
    return build_tiny_bundle


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with real photographs and weights (``CEMA_DATA``); the test is skipped without it."""
    folder = os.environ.get("CEMA_DATA")
    if not folder:
        pytest.skip("CEMA_DATA is not set: it names the folder with cifar10/ and imagenet/")
    return Path(folder)
