"""``labels`` against plain numpy in float64, gradients by finite differences.

The model is small enough to write down: fixed linear -> batch norm -> relu -> fixed linear.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cema.bench.methods.labels import Labels, LabelsSettings
from cema.cloud.adapt.base import read_options
from cema.errors import ConfigError

CLASSES, FEATURES, EPS = 4, 6, 1e-5


def tiny_net() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Flatten(),
        nn.Linear(12, FEATURES, bias=False),
        nn.BatchNorm1d(FEATURES),
        nn.ReLU(),
        nn.Linear(FEATURES, CLASSES, bias=False),
    )
    return net.double().eval()


def batches(count: int, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    draw = [torch.randn(size, 3, 2, 2, generator=generator, dtype=torch.float64) * 2 + 0.7 for _ in range(count)]
    return [(x, (x.flatten(1)[:, :CLASSES]).argmax(1)) for x in draw]


def softmax(logits: np.ndarray) -> np.ndarray:
    exponents: np.ndarray = np.exp(logits - logits.max(1, keepdims=True))
    result: np.ndarray = exponents / exponents.sum(1, keepdims=True)
    return result


class PlainLabels:
    """Everything written out."""

    def __init__(self, net: nn.Sequential, lr: float, momentum: float) -> None:
        self.first, self.last = (net.get_parameter(f"{i}.weight").detach().numpy() for i in (1, 4))
        self.theta = np.concatenate([np.ones(FEATURES), np.zeros(FEATURES)])
        self.velocity = np.zeros(2 * FEATURES)
        self.lr, self.momentum = lr, momentum
        self.mean: np.ndarray | None = None

    def head(self, normalised: np.ndarray, theta: np.ndarray) -> np.ndarray:
        return softmax(np.maximum(normalised * theta[:FEATURES] + theta[FEATURES:], 0) @ self.last.T)

    def predict(self, x: np.ndarray) -> np.ndarray:
        hidden = x @ self.first.T
        if self.mean is None:
            self.mean, self.var = hidden.mean(0), hidden.var(0, ddof=1 if len(x) > 1 else 0)
        return self.head((hidden - self.mean) / np.sqrt(self.var + EPS), self.theta)

    def learn(self, x: np.ndarray, labels: np.ndarray) -> None:
        hidden = x @ self.first.T
        # inputs of the only batch norm do not depend on theta: the gradient is that of the running normalisation
        normalised = (hidden - self.mean) / np.sqrt(self.var + EPS)

        def loss(theta: np.ndarray) -> float:
            return float(-np.log(self.head(normalised, theta)[np.arange(len(x)), labels]).mean())

        gradient = np.zeros_like(self.theta)
        for i, step in enumerate(np.eye(len(self.theta)) * 1e-6):
            gradient[i] = (loss(self.theta + step) - loss(self.theta - step)) / 2e-6
        self.velocity = self.momentum * self.velocity + gradient
        self.theta = self.theta - self.lr * self.velocity
        assert self.mean is not None
        self.mean = 0.9 * self.mean + 0.1 * hidden.mean(0)
        self.var = 0.9 * self.var + 0.1 * hidden.var(0, ddof=1)


def test_a_stream_is_answered_and_learned_as_in_plain_numpy() -> None:
    net = tiny_net()
    plain, method = PlainLabels(net, 0.05, 0.9), Labels(net, LabelsSettings(lr=0.05), 0)
    untaught = Labels(net, LabelsSettings(lr=0.05), 0)
    for x, labels in batches(6, 16):
        answer = method.predict(x)
        assert answer.dtype == torch.float32
        np.testing.assert_allclose(answer.numpy(), plain.predict(x.flatten(1).numpy()), atol=1e-6)
        method.learn(labels)
        plain.learn(x.flatten(1).numpy(), labels.numpy())
    assert not torch.allclose(untaught.predict(x), answer, atol=0.01)  # it did learn


def test_the_first_batch_is_answered_by_its_own_statistics() -> None:
    """Layer by layer: the second batch norm sees what the first made of the batch."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    ).eval()  # fmt: skip
    x = 5 * torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(2)) + 3
    with torch.no_grad():
        hidden = x
        for layer in net:
            if isinstance(layer, nn.BatchNorm2d):
                mean, var = hidden.mean((0, 2, 3), keepdim=True), hidden.var((0, 2, 3), correction=0, keepdim=True)
                hidden = (hidden - mean) / (var + 1e-5).sqrt()
            else:
                hidden = layer(hidden)
    answer = Labels(net, LabelsSettings(), 0).predict(x)
    torch.testing.assert_close(answer, hidden.softmax(1), rtol=0.02, atol=0.005)  # unbiased variance in the method
    assert not torch.allclose(answer, net(x).softmax(1), rtol=0.02, atol=0.005)


def test_predicting_alone_changes_nothing_and_the_given_model_stays() -> None:
    net = tiny_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    method = Labels(net, LabelsSettings(), 0)
    (x, labels), (other, _) = batches(2, 8)
    first = method.predict(x)
    method.predict(other)
    assert torch.equal(method.predict(x), first)
    method.learn(labels)
    assert not torch.equal(method.predict(x), first)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_batches_of_one_image_and_two_classes() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    ).eval()
    method = Labels(net, LabelsSettings(), 0)
    for seed in range(4):
        answer = method.predict(torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(seed)))
        assert answer.shape == (1, 2)
        assert torch.isfinite(answer).all()
        method.learn(torch.tensor([seed % 2]))


def test_labels_must_be_those_of_the_batch_last_predicted() -> None:
    method = Labels(tiny_net(), LabelsSettings(), 0)
    (x, labels), _ = batches(2, 8)
    with pytest.raises(ConfigError, match="batch last predicted"):
        method.learn(labels)
    method.predict(x)
    with pytest.raises(ConfigError, match=r"int64 \[8\], got \[5\]"):
        method.learn(labels[:5])
    method.predict(x)
    method.learn(labels)
    with pytest.raises(ConfigError, match="call learn once"):
        method.learn(labels)


def test_settings_have_ranges() -> None:
    assert read_options(LabelsSettings, "labels", {}) == LabelsSettings(lr=0.01, momentum=0.9)
    for wrong in ({"lr": 0}, {"momentum": 1}, {"steps": 2}):
        with pytest.raises(ConfigError):
            read_options(LabelsSettings, "labels", wrong)
