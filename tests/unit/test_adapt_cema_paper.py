"""``cema-paper`` against an independent plain-numpy version in float64, gradients by finite differences.

The model is small enough to write down: fixed linear -> batch norm -> relu -> fixed linear.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import nn

from cema.cloud.adapt import create_adapter
from cema.cloud.adapt.base import State
from cema.cloud.adapt.cema_paper import CemaPaper
from cema.errors import ConfigError

CLASSES, FEATURES, EPS = 5, 4, 1e-5
E_MAX = 0.4 * math.log(CLASSES)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def entropy(logits: np.ndarray) -> np.ndarray:
    return -(np.exp(log_softmax(logits)) * log_softmax(logits)).sum(1)


@dataclass
class NumpyModel:
    """The same network with everything written out."""

    first: np.ndarray
    last: np.ndarray
    gamma: np.ndarray
    beta: np.ndarray
    mean: np.ndarray
    var: np.ndarray
    lr: float
    velocity: np.ndarray = field(default_factory=lambda: np.zeros(2 * FEATURES))

    def by_running(self, x: np.ndarray) -> np.ndarray:
        hidden = (x @ self.first.T - self.mean) / np.sqrt(self.var + EPS) * self.gamma + self.beta
        return np.maximum(hidden, 0) @ self.last.T

    def train_step(self, x: np.ndarray, loss: object) -> float:
        hidden = x @ self.first.T
        mu, sd = hidden.mean(0), np.sqrt(hidden.var(0) + EPS)
        r, d = sd / np.sqrt(self.var + EPS), (mu - self.mean) / np.sqrt(self.var + EPS)

        def value(theta: np.ndarray) -> float:
            y = theta[:FEATURES] * ((hidden - mu) / sd * r + d) + theta[FEATURES:]
            return float(loss(np.maximum(y, 0) @ self.last.T))  # type: ignore[operator]

        theta = np.concatenate([self.gamma, self.beta])
        before = value(theta)
        gradient = np.zeros_like(theta)
        for i in range(len(theta)):
            step = np.zeros_like(theta)
            step[i] = 1e-6
            gradient[i] = (value(theta + step) - value(theta - step)) / 2e-6
        self.velocity = 0.9 * self.velocity + gradient
        theta = theta - self.lr * self.velocity
        self.gamma, self.beta = theta[:FEATURES], theta[FEATURES:]
        self.mean = self.mean + 0.1 * (mu - self.mean)
        self.var = self.var + 0.1 * (hidden.var(0, ddof=1) - self.var)
        return before


def numpy_step(f: NumpyModel, g: NumpyModel, uploads: np.ndarray, replayed: np.ndarray | None) -> tuple[float, float]:
    h = np.exp(E_MAX - entropy(f.by_running(uploads)))  # train-mode value = value by running statistics
    foundation_loss = f.train_step(uploads, lambda logits: (h * entropy(logits)).mean())
    images = uploads if replayed is None else np.concatenate([uploads, replayed])
    return foundation_loss, numpy_edge_step(f, g, images)


def numpy_edge_step(f: NumpyModel, g: NumpyModel, images: np.ndarray) -> float:
    teacher = f.by_running(images)
    h_t, h_s = np.exp(E_MAX - entropy(teacher)), np.exp(E_MAX - entropy(g.by_running(images)))
    p, label = np.exp(log_softmax(teacher)), teacher.argmax(1)

    def loss(student: np.ndarray) -> float:
        kl = (p * (log_softmax(teacher) - log_softmax(student))).sum(1)
        ce = -log_softmax(student)[np.arange(len(student)), label]
        return float(3 * (h_s * entropy(student)).mean() + 3 * (h_t * kl).mean() + 1 * (h_t * ce).mean())

    return g.train_step(images, loss)


def torch_model(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Flatten(),
        nn.Linear(3, FEATURES, bias=False),
        nn.BatchNorm1d(FEATURES),
        nn.ReLU(),
        nn.Linear(FEATURES, CLASSES, bias=False),
    )
    with torch.no_grad():
        for tensor in (net[2].running_mean, net[2].bias):
            tensor.normal_()
        for tensor in (net[2].running_var, net[2].weight):
            tensor.uniform_(0.5, 1.5)
        net[4].weight.mul_(4)  # confident enough that the weights h differ between samples
    return net.eval()


def numpy_twin(net: nn.Sequential, lr: float) -> NumpyModel:
    values = {name: value.double().numpy().copy() for name, value in net.state_dict().items()}
    return NumpyModel(
        values["1.weight"], values["4.weight"], values["2.weight"], values["2.bias"],
        values["2.running_mean"], values["2.running_var"], lr,
    )  # fmt: skip


def assert_equal(state: State, prefix: str, twin: NumpyModel) -> None:
    for name, value in [
        ("weight", twin.gamma),
        ("bias", twin.beta),
        ("running_mean", twin.mean),
        ("running_var", twin.var),
    ]:
        np.testing.assert_allclose(state[f"{prefix}2.{name}"], value, rtol=1e-4, atol=1e-5, err_msg=prefix + name)


@pytest.mark.parametrize("teacher", ["torch", "onnx"])
@pytest.mark.parametrize("impl", ["textbook", "native", "fused"])
def test_full_and_replay_steps_equal_the_equations_written_in_numpy(impl: str, teacher: str) -> None:
    edge, foundation = torch_model(1), torch_model(2)
    adapter = create_adapter("cema-paper", edge, foundation, {"norm_impl": impl, "teacher": teacher})
    g, f = numpy_twin(edge, 0.0025), numpy_twin(foundation, 0.00025)
    rng = np.random.default_rng(3)
    for replayed_count in (0, 96, 96):
        uploads = rng.normal(1, 2, (32, 3)).astype(np.float32)
        replayed = rng.normal(1, 2, (replayed_count, 3)).astype(np.float32) if replayed_count else None
        metrics = adapter.step(image(uploads), None if replayed is None else image(replayed))
        foundation_loss, edge_loss = numpy_step(f, g, uploads.astype(float), replayed)
        assert metrics is not None
        assert metrics["foundation_loss"] == pytest.approx(foundation_loss, rel=1e-4)
        assert metrics["edge_loss"] == pytest.approx(edge_loss, rel=1e-4)
    replay_only = rng.normal(1, 2, (128, 3)).astype(np.float32)
    metrics = adapter.replay_step(image(replay_only))
    assert metrics is not None
    assert metrics["edge_loss"] == pytest.approx(numpy_edge_step(f, g, replay_only.astype(float)), rel=1e-4)
    assert_equal(adapter.state(), "edge.", g)
    assert_equal(adapter.state(), "foundation.", f)


def test_a_teacher_that_cannot_be_exported_answers_through_torch(caplog: pytest.LogCaptureFixture) -> None:
    class Undecided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch_model(2)

        def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
            sign = 1 if float(images_BCHW.sum()) > -1e9 else -1  # a branch on values: not exportable
            logits_BK: torch.Tensor = sign * self.net(images_BCHW)
            return logits_BK

    uploads = image(np.random.default_rng(3).normal(1, 2, (32, 3)).astype(np.float32))
    adapters = [
        create_adapter("cema-paper", torch_model(1), Undecided(), {"teacher": teacher}) for teacher in ("onnx", "torch")
    ]
    first, second = (adapter.step(uploads, None) for adapter in adapters)
    assert first == second
    assert "torch instead" in caplog.text


def image(features: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(features).view(-1, 3, 1, 1)


def test_state_round_trip_continues_to_the_same_bits() -> None:
    images = [image(np.random.default_rng(i).normal(0, 1, (32, 3)).astype(np.float32)) for i in range(4)]
    straight = create_adapter("cema-paper", torch_model(1), torch_model(2), {"norm_start": "first_batch"})
    stopped = create_adapter("cema-paper", torch_model(1), torch_model(2), {"norm_start": "first_batch"})
    for batch in images[:2]:
        straight.step(batch, None)
        stopped.step(batch, None)
    resumed = create_adapter("cema-paper", torch_model(1), torch_model(2), {"norm_start": "first_batch"})
    resumed.load_state(stopped.state())
    for batch in images[2:]:
        straight.step(batch, batch)
        resumed.step(batch, batch)
    assert straight.state().keys() == resumed.state().keys()
    for name, value in straight.state().items():
        np.testing.assert_array_equal(value, resumed.state()[name], err_msg=name)


def test_edge_logits_change_nothing_and_match_the_published_parameters() -> None:
    adapter = create_adapter("cema-paper", torch_model(1), torch_model(2), {})
    batch = image(np.random.default_rng(0).normal(0, 1, (32, 3)).astype(np.float32))
    adapter.step(batch, None)
    before = adapter.state()
    logits = adapter.edge_logits(batch).numpy()
    for name, value in adapter.state().items():
        np.testing.assert_array_equal(value, before[name])
    twin = numpy_twin(torch_model(1), 0.0)
    parameters = adapter.edge_parameters()
    twin.gamma, twin.beta = parameters["2.weight"], parameters["2.bias"]
    twin.mean, twin.var = parameters["2.running_mean"], parameters["2.running_var"]
    np.testing.assert_allclose(logits, twin.by_running(batch.view(-1, 3).numpy()), rtol=1e-4, atol=1e-5)


def test_bn_moves_statistics_only() -> None:
    source = torch_model(1)
    adapter = create_adapter("bn", source, None, {})
    batch = image(np.random.default_rng(0).normal(3, 1, (32, 3)).astype(np.float32))
    adapter.step(batch, None)
    after = adapter.edge_parameters()
    hidden = batch.view(-1, 3).double().numpy() @ source[1].weight.detach().double().numpy().T
    np.testing.assert_array_equal(after["2.weight"], source[2].weight.detach())
    np.testing.assert_allclose(
        after["2.running_mean"], 0.9 * source[2].running_mean.numpy() + 0.1 * hidden.mean(0), rtol=1e-5
    )
    assert adapter.replay_step(batch) is None


def test_source_learns_nothing() -> None:
    source = torch_model(1)
    adapter = create_adapter("source", source, None, {})
    assert adapter.step(image(np.ones((32, 3), np.float32)), None) is None
    np.testing.assert_array_equal(adapter.edge_parameters()["2.weight"], source[2].weight.detach())


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("cema-papre", {}, "cema-paper"),
        ("cema-paper", {"edge_lrr": 0.1}, "edge_lrr"),
        ("cema-paper", {"edge_lr": -1.0}, "edge_lr"),
        ("source", {"edge_lr": 0.1}, "edge_lr"),
    ],
)
def test_wrong_methods_and_options_are_refused_by_name(method: str, options: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        create_adapter(method, torch_model(1), torch_model(2), options)


def test_cema_paper_without_foundation_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="foundation"):
        CemaPaper(torch_model(1), None, {})
