"""Fixtures that all kinds of tests share."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from cema.cloud.memory import keep_freed_memory
from cema.wire.bundle import Bundle, encode_bundle, fingerprint
from cema.wire.messages import BundleManifest, NormTensor, Preprocess

TINY_SIZE_PX = 8
TINY_CHANNELS = 4
TINY_CLASSES = ["cat", "dog", "eel"]
TINY_EPS = 1e-5
TINY_ROLES = ("weight", "bias", "running_mean", "running_var")

CEMA = [sys.executable, "-m", "cema"]
GROUP = "digits"
START_LIMIT_S = 120.0


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


class Service:
    """``cema serve`` as an operator runs it; may be killed and started again on the same port and data."""

    cema, group = CEMA, GROUP

    def __init__(self, folder: Path, bundle: bytes) -> None:
        self.folder = folder
        (folder / "edge.bundle").write_bytes(bundle)
        self.port = 0
        self.child: subprocess.Popen[bytes] | None = None
        self.url = ""

    def start(self) -> None:
        """Returns when it accepts requests."""
        (self.folder / "cema.toml").write_text(
            f"[server]\nport = {self.port}\npoll_interval_s = 0.02\n[admin]\nport = 0\n"
            "[worker]\nlease_s = 2\nthreads = 1\npublish_min_interval_s = 0\nidle_interval_s = 0.01\n"
            f"[groups.{GROUP}]\nbundle = 'edge.bundle'\n"
            "edge_model = 'digits-edge'\nfoundation_model = 'digits-foundation'\n"
            "method = 'cema-paper'\n"
        )
        with (self.folder / "serve.log").open("ab") as log:
            self.child = subprocess.Popen(
                [*CEMA, "serve", "-c", "cema.toml", "--json"], cwd=self.folder, stdout=subprocess.PIPE, stderr=log
            )
        guard = threading.Timer(START_LIMIT_S, self.child.kill)
        guard.start()
        assert self.child.stdout is not None
        line = self.child.stdout.readline()
        guard.cancel()
        assert line, (self.folder / "serve.log").read_text()[-2000:]
        self.url = json.loads(line)["url"]
        self.port = int(self.url.rpartition(":")[2])

    def kill(self) -> None:
        """kill -9: web process at once, its workers when they notice."""
        assert self.child is not None
        self.child.send_signal(signal.SIGKILL)
        self.child.communicate()

    def stop(self) -> int:
        assert self.child is not None
        self.child.terminate()
        self.child.communicate(timeout=60)
        return self.child.returncode

    def enrol(self, name: str) -> Path:
        self.run("device", "enrol", "-c", "cema.toml", "--group", GROUP, "--name", name, "--url", self.url,
                 "--out", f"{name}.toml")  # fmt: skip
        return self.folder / f"{name}.toml"

    def run(self, *arguments: str) -> str:
        """A command of the operator's; returns what it prints."""
        done = subprocess.run([*CEMA, *arguments], cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="session", autouse=True)
def one_thread_of_torch() -> None:
    """Small networks are faster with one, and the processes that tests start need the other cores."""
    torch.set_num_threads(1)
    keep_freed_memory()


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


@pytest.fixture(scope="session")
def digits_bundle() -> bytes:
    """The bundle of the embedded example, encoded."""
    # imported here: most tests that share this file need no torch
    from cema.cloud.export import build_bundle
    from cema.cloud.models import load_model

    model = load_model("digits-edge")
    assert model.preprocess is not None
    assert model.classes is not None
    bundle = build_bundle(model.module, name=model.name, preprocess=model.preprocess, classes=model.classes)
    return encode_bundle(bundle)


@pytest.fixture
def service(tmp_path: Path, digits_bundle: bytes) -> Iterator[Service]:
    """A cloud that runs, with the group ``digits``."""
    found = Service(tmp_path, digits_bundle)
    found.start()
    yield found
    if found.child is not None and found.child.poll() is None:
        found.stop()
