"""An update does on the device what it does in torch, and no prediction is lost or mixed while it is swapped in."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cema.cloud.export import PARITY_TOLERANCE, build_bundle
from cema.cloud.norms import write_parameters
from cema.config import DeviceConfig, RuntimeConfig, SelectionConfig, UplinkConfig
from cema.edge import EdgeAgent, Prediction
from cema.edge.session import EdgeSession
from cema.types import Float32Array, NormParameters
from cema.wire import signing
from cema.wire.bundle import Bundle, encode_bundle
from cema.wire.messages import Preprocess, UpdateManifest
from cema.wire.preprocess import preprocess
from cema.wire.update import encode_update

SIDE_PX = 12
CHANNELS = 8
CLASSES = ("cat", "dog", "eel", "fox")
IMAGES = list(np.random.default_rng(5).integers(0, 256, (40, SIDE_PX, SIDE_PX, 3), dtype=np.uint8))
KEY = signing.generate_key()
UPDATES = 12
THREADS = 3
MAX_BATCH = 5
PREDICTIONS_PER_VERSION = 10
ROUNDING = 1e-5
"""Of a probability, between batches of different size; versions differ by much more, which the test makes sure of."""
WAIT_S = 30.0

NORMS: dict[str, Callable[[], nn.Module]] = {
    "batch_norm": lambda: nn.BatchNorm2d(CHANNELS),
    "layer_norm": lambda: nn.LayerNorm([CHANNELS, SIDE_PX, SIDE_PX]),
    "group_norm": lambda: nn.GroupNorm(2, CHANNELS),
}


def network(norm: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    head = nn.Linear(CHANNELS, len(CLASSES))
    nn.init.normal_(head.weight, std=1.5)  # logits of a few units, as those of a trained network
    return nn.Sequential(
        nn.Conv2d(3, CHANNELS, 3, padding=1), norm(), nn.ReLU(),
        nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), norm(), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), head,
    ).eval()  # fmt: skip


def perturbed(bundle: Bundle, version: int) -> NormParameters:
    """Other values for every norm tensor, of its own size; variances stay positive. 0 = the source."""
    source, rng = bundle.source_parameters(), np.random.default_rng(version)
    if version == 0:
        return source
    noise = {name: rng.uniform(0.4, 1.6, value.shape).astype(np.float32) for name, value in source.items()}
    return {
        name: value * noise[name] if name.endswith("running_var") else value + noise[name]
        for name, value in source.items()
    }


class Model:
    """One network, as torch has it and as the device has it."""

    def __init__(self, kind: str) -> None:
        self.module = network(NORMS[kind])
        self.bundle = build_bundle(
            self.module, name=kind, preprocess=Preprocess(size=(SIDE_PX, SIDE_PX)), classes=CLASSES
        )
        assert {tensor.kind for tensor in self.bundle.manifest.norm} == {kind}

    @torch.no_grad()
    def torch_logits(self, version: int) -> Float32Array:
        write_parameters(self.module, perturbed(self.bundle, version))
        logits_BK: Float32Array = self.module(torch.from_numpy(self.inputs())).numpy()
        return logits_BK

    def inputs(self) -> Float32Array:
        return preprocess(IMAGES, self.bundle.manifest.preprocess)


class Fleet:
    """A cloud with this model, and one device of it."""

    def __init__(self, cloud: Any, bundle: Bundle, state: Path) -> None:
        self._cloud, self._bundle = cloud, bundle
        data = encode_bundle(bundle)
        cloud.fingerprint, cloud.bundle = bundle.manifest.fingerprint, (data, signing.sign(data, KEY))
        self.agent = EdgeAgent(DeviceConfig(
            url=cloud.url, group="g", device_id="d", token="secret", public_key=signing.public_key(KEY),
            state_dir=str(state), selection=SelectionConfig(e_max=0.0),  # nothing is uploaded
            runtime=RuntimeConfig(threads=1), uplink=UplinkConfig(poll_wait_s=5.0),
        ))  # fmt: skip

    def publish(self, version: int) -> None:
        fingerprint = self._bundle.manifest.fingerprint
        manifest = UpdateManifest(group="g", version=version, fingerprint=fingerprint, method="test", created_at_ms=1)
        data = encode_update(manifest, perturbed(self._bundle, version))
        self._cloud.publish(version, data, signing.sign(data, KEY))

    def predict_with(self, version: int) -> list[Prediction]:
        """All images, once ``version`` is in use."""
        waiting = threading.Event()
        for _ in range(int(WAIT_S / 0.01)):
            predictions = self.agent.predict(IMAGES)
            if predictions[0].version == version:
                return predictions
            waiting.wait(0.01)
        raise AssertionError(f"version {version} was not taken over: {self.agent.status()['last_error']}")


@pytest.fixture(scope="module", params=NORMS)
def model(request: pytest.FixtureRequest) -> Model:
    return Model(request.param)


@pytest.fixture
def fleet(scripted_cloud: Any, model: Model, tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(scripted_cloud, model.bundle, tmp_path / "state")
    yield made
    made.agent.close()


def softmax(logits_BK: Float32Array) -> np.ndarray[Any, np.dtype[np.float64]]:
    powers_BK = np.exp(logits_BK.astype(np.float64) - logits_BK.max(axis=1, keepdims=True))
    return np.asarray(powers_BK / powers_BK.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("version", [0, 1, 2])
def test_a_session_with_other_parameters_computes_what_torch_computes(version: int, model: Model) -> None:
    session = EdgeSession(model.bundle, perturbed(model.bundle, version), version, threads=1)
    expected_BK = model.torch_logits(version)
    assert np.abs(session.logits(np.stack(IMAGES)) - expected_BK).max() <= PARITY_TOLERANCE * max(
        1.0, float(np.abs(expected_BK).max())
    )
    if version:
        assert np.abs(expected_BK - model.torch_logits(0)).max() > 0.1  # else a session that ignores them would pass


def test_every_norm_tensor_takes_effect(model: Model) -> None:
    source = model.bundle.source_parameters()
    before_BK = EdgeSession(model.bundle, source, 0, threads=1).logits(np.stack(IMAGES))
    for name, value in perturbed(model.bundle, 1).items():
        after_BK = EdgeSession(model.bundle, {**source, name: value}, 1, threads=1).logits(np.stack(IMAGES))
        write_parameters(model.module, {**source, name: value})
        expected_BK = model.module(torch.from_numpy(model.inputs())).detach().numpy()
        assert np.abs(after_BK - before_BK).max() > 1e-3, name
        assert np.abs(after_BK - expected_BK).max() <= PARITY_TOLERANCE * max(1.0, float(np.abs(expected_BK).max()))


def test_a_signed_update_from_the_cloud_predicts_what_torch_predicts(fleet: Fleet, model: Model) -> None:
    for version in (0, 1, 2):
        if version:
            fleet.publish(version)
        predictions = fleet.predict_with(version)
        expected_BK = softmax(model.torch_logits(version))
        assert [p.label for p in predictions] == expected_BK.argmax(axis=1).tolist()
        np.testing.assert_allclose([p.probability for p in predictions], expected_BK.max(axis=1), atol=PARITY_TOLERANCE)
        entropies = -(expected_BK * np.log(expected_BK)).sum(axis=1)
        np.testing.assert_allclose([p.entropy for p in predictions], entropies, atol=10 * PARITY_TOLERANCE)


class Camera(threading.Thread):
    """Predicts batches of random images and sizes until it is stopped; keeps what it asked and what it was told."""

    def __init__(self, agent: EdgeAgent, seed: int) -> None:
        super().__init__(daemon=True)
        self._agent, self._rng = agent, random.Random(seed)
        self.stopped = threading.Event()
        self.progress = threading.Condition()
        self.batches: list[tuple[list[int], list[Prediction]]] = []

    def run(self) -> None:
        while not self.stopped.is_set():
            asked = self._rng.sample(range(len(IMAGES)), self._rng.randint(1, MAX_BATCH))
            told = self._agent.predict([IMAGES[index] for index in asked])
            with self.progress:
                self.batches.append((asked, told))
                self.progress.notify_all()

    def wait_for_version(self, version: int) -> None:
        """Until several of its batches were answered by ``version``."""
        with self.progress:
            assert self.progress.wait_for(lambda: self._answered_by(version) >= PREDICTIONS_PER_VERSION, WAIT_S)

    def _answered_by(self, version: int) -> int:
        return sum(told[0].version == version for _, told in self.batches[-2 * PREDICTIONS_PER_VERSION :])


def test_no_prediction_is_lost_or_mixed_while_updates_are_swapped_in(fleet: Fleet, model: Model) -> None:
    expected = np.stack([softmax(model.torch_logits(version)).max(axis=1) for version in range(UPDATES + 1)])
    changes = np.median(np.abs(np.diff(expected, axis=0)), axis=1)
    assert changes.min() > 100 * ROUNDING  # else a prediction that names the wrong version would pass
    cameras = [Camera(fleet.agent, seed) for seed in range(THREADS)]
    for camera in cameras:
        camera.start()
    for version in range(1, UPDATES + 1):
        fleet.publish(version)
        for camera in cameras:
            camera.wait_for_version(version)
    for camera in cameras:
        camera.stopped.set()
        camera.join(WAIT_S)
        assert not camera.is_alive()
    for camera in cameras:
        for asked, told in camera.batches:
            (version,) = {said.version for said in told}
            np.testing.assert_allclose([said.probability for said in told], expected[version, asked], atol=ROUNDING)
        versions = [told[0].version for _, told in camera.batches]
        assert all(earlier <= later for earlier, later in pairwise(versions))
        assert set(range(1, UPDATES + 1)) <= set(versions)
    status = fleet.agent.status()
    assert status["samples_seen"] == sum(len(asked) for camera in cameras for asked, _ in camera.batches)
    assert status["updates_applied"] == UPDATES
    assert status["last_error"] is None
