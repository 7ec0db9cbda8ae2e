"""``t3a`` against an independent version that keeps its supports in plain lists."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cema.bench.methods.t3a import T3A, Supports, T3ASettings
from cema.cloud.adapt.base import read_options
from cema.errors import ConfigError

CLASSES = 3


def tiny_net(classes: int = CLASSES) -> nn.Sequential:
    """Its features vary much from picture to picture, so that every class gets some."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes)
    ).eval()
    with torch.no_grad():
        head = net[5]
        assert isinstance(head, nn.Linear)
        head.weight.copy_(2 * torch.randn(classes, 4))
        head.bias.copy_(-head.weight @ net[:5](images(64, seed=99)).mean(0))
    return net


def images(count: int, seed: int = 1) -> torch.Tensor:
    return 2 * torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def softmax(logits: np.ndarray) -> np.ndarray:
    exponents: np.ndarray = np.exp(logits - logits.max())
    result: np.ndarray = exponents / exponents.sum()
    return result


def unit(vector: np.ndarray) -> np.ndarray:
    result: np.ndarray = vector / np.sqrt((vector**2).sum())
    return result


class PlainT3A:
    """Per class a list of (entropy, unit vector)."""

    def __init__(self, weight: np.ndarray, bias: np.ndarray, m: int) -> None:
        self.weight, self.bias, self.m = weight, bias, m
        self.supports = [[(self.entropy(w), unit(w))] for w in weight]

    def entropy(self, z: np.ndarray) -> float:
        p = softmax(self.weight @ z + self.bias)
        return float(-(p * np.log(p)).sum())

    def predict(self, features: np.ndarray) -> np.ndarray:
        for z in features:
            self.supports[int((self.weight @ z + self.bias).argmax())].append((self.entropy(z), unit(z)))
        if self.m:
            self.supports = [sorted(own, key=lambda pair: pair[0])[: self.m] for own in self.supports]
        centres = np.array([unit(sum((v for _, v in own), np.zeros(len(self.weight[0])))) for own in self.supports])
        return np.array([softmax(centres @ z) for z in features])


@pytest.mark.parametrize("m", [0, 1, 2, 5, 20])
@pytest.mark.parametrize("batch", [1, 8])
def test_answers_follow_the_papers_equations_over_a_stream(m: int, batch: int) -> None:
    model = tiny_net()
    head = model[-1]
    assert isinstance(head, nn.Linear)
    plain = PlainT3A(head.weight.detach().double().numpy(), head.bias.detach().double().numpy(), m)
    method = T3A(model, T3ASettings(filter_k=m), 0)
    labels = set()
    for step in range(6):
        x = images(batch, seed=step)
        with torch.no_grad():
            features = model[:-1](x).double().numpy()
        answer = method.predict(x)
        assert answer.dtype == torch.float32
        np.testing.assert_allclose(answer.numpy(), plain.predict(features), atol=1e-5)
        labels |= set(answer.argmax(1).tolist())
    assert len(labels) > 1


def test_only_the_most_certain_supports_of_each_class_stay() -> None:
    head = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.eye(2))
    supports = Supports(head, filter_k=2)
    features = torch.tensor([[3.0, 0.0], [0.3, 0.1], [4.0, 0.0], [0.0, 5.0]])
    supports.add(features, torch.tensor([0, 0, 0, 1]), torch.tensor([0.2, 0.6, 0.1, 0.05]))
    # class 0: the weight (entropy of softmax(1, 0) = 0.58) and the picture of 0.6 leave; class 1 has room
    assert supports.labels_N.tolist() == [1, 0, 0, 1]
    np.testing.assert_allclose(supports.entropy_N, [0.58220, 0.2, 0.1, 0.05], atol=1e-5)
    torch.testing.assert_close(supports.prototypes(), torch.eye(2))


def test_each_class_starts_from_its_own_weights_whatever_the_classifier_says_of_them() -> None:
    head = nn.Linear(2, 3)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[3.0, 0.0], [0.5, 0.1], [0.0, 2.0]]))
        head.bias.copy_(torch.tensor([0.0, -2.0, 0.0]))
    assert head(head.weight[1]).argmax() != 1
    expected = head.weight / head.weight.norm(dim=1, keepdim=True)
    torch.testing.assert_close(Supports(head, 1).prototypes(), expected.detach())


def test_prototypes_turn_towards_the_stream() -> None:
    """A shifted stream of two kinds whose border the source classifier has at the wrong place."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        model.get_parameter("1.weight").copy_(torch.tensor([[4.0, 0.0, 0.0], [0.0, 4.0, 0.0]]))
    method = T3A(model, T3ASettings(filter_k=5), 0)
    kinds = torch.tensor([[1.0, 0.3, 2.0], [0.2, 1.0, 0.0]])
    for _ in range(3):
        method.predict(kinds.view(2, 3, 1, 1))
    doubtful = torch.tensor([[0.95, 1.0, 1.9]]).view(1, 3, 1, 1)
    assert model(doubtful).argmax() == 1
    assert method.predict(doubtful).argmax() == 0


def test_batch_statistics_are_a_setting() -> None:
    x = images(6)
    source, shifted = (T3A(tiny_net(), T3ASettings(), 0).predict(factor * x) for factor in (1, 4))
    assert not torch.allclose(source, shifted, atol=1e-2)
    settings = T3ASettings(batch_statistics=True)
    source, shifted = (T3A(tiny_net(), settings, 0).predict(factor * x) for factor in (1, 4))
    torch.testing.assert_close(source, shifted, rtol=1e-2, atol=1e-3)


def test_settings_have_ranges() -> None:
    assert read_options(T3ASettings, "t3a", {"filter_k": 100}).filter_k == 100
    assert T3ASettings() == T3ASettings(filter_k=20, batch_statistics=False)
    for wrong in ({"filter_k": -1}, {"filter_k": 1.5}, {"m": 1}):
        with pytest.raises(ConfigError):
            read_options(T3ASettings, "t3a", wrong)
