"""``tent`` against plain numpy in float64: gradients by finite differences, optimisers written out."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from cema.bench.methods import METHODS, OnDevice
from cema.bench.methods.bn import BatchNorm, BatchNormSettings
from cema.bench.methods.tent import Tent, TentSettings
from cema.errors import ConfigError

EPS, CLASSES, CHANNELS = 1e-3, 5, 4
NAMES = ("1.weight", "1.bias", "4.weight", "4.bias")


def conv_net(seed: int = 0) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, CHANNELS, 1, bias=False), nn.BatchNorm2d(CHANNELS, eps=EPS), nn.ReLU(),
        nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False), nn.BatchNorm2d(CHANNELS, eps=EPS), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, CLASSES),
    ).double().eval()  # fmt: skip
    for parameter in net.parameters():
        parameter.data.copy_(torch.rand(parameter.shape, generator=generator).double() * 2 - 0.5)
    return net


def batch(images: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(1.0, 2.0, (images, 3, 2, 2)))


def affine(net: nn.Module) -> np.ndarray:
    return np.concatenate([net.state_dict()[name].numpy() for name in NAMES])


def numpy_logits(net: nn.Sequential, theta: np.ndarray, images: np.ndarray) -> np.ndarray:
    state, x = net.state_dict(), images
    for i, (gamma, beta) in zip((1, 4), theta.reshape(2, 2, CHANNELS), strict=True):
        x = np.einsum("oc,bchw->bohw", state[f"{i - 1}.weight"].numpy()[:, :, 0, 0], x)
        mean, var = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
        x = np.maximum((x - mean) / np.sqrt(var + EPS) * gamma[:, None, None] + beta[:, None, None], 0)
    return np.asarray(x.mean((2, 3)) @ state["8.weight"].numpy().T + state["8.bias"].numpy())


def mean_entropy(logits: np.ndarray) -> float:
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return float(-(p * np.log(p)).sum(1).mean())


def gradient(net: nn.Sequential, theta: np.ndarray, images: np.ndarray, step: float = 1e-6) -> np.ndarray:
    def difference(direction: np.ndarray) -> float:
        up, down = (numpy_logits(net, theta + sign * step * direction, images) for sign in (1, -1))
        return (mean_entropy(up) - mean_entropy(down)) / (2 * step)

    return np.array([difference(direction) for direction in np.eye(len(theta))])


def test_sgd_steps_descend_the_mean_entropy_through_the_batch_statistics() -> None:
    net = conv_net()
    tent = Tent(net, TentSettings(optimiser="sgd", lr=0.1, momentum=0.8), 0)
    theta, velocity = affine(net), np.zeros(4 * CHANNELS)
    for seed in range(3):
        tent.predict(batch(6, seed))
        velocity = 0.8 * velocity + gradient(conv_net(), theta, batch(6, seed).numpy())
        theta = theta - 0.1 * velocity
        np.testing.assert_allclose(affine(net), theta, rtol=1e-7, atol=1e-8)
    assert np.abs(theta - affine(conv_net())).max() > 1e-2


def test_adam_is_the_default_with_the_published_numbers() -> None:
    net = conv_net()
    tent = Tent(net, TentSettings(), 0)
    theta = affine(net)
    first, second = np.zeros_like(theta), np.zeros_like(theta)
    for t in (1, 2, 3):
        tent.predict(batch(6, t))
        g = gradient(conv_net(), theta, batch(6, t).numpy())
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
        theta = theta - 0.001 * (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
    np.testing.assert_allclose(affine(net), theta, rtol=1e-6, atol=1e-7)


def test_many_classes_get_the_published_numbers_for_imagenet() -> None:
    entry = METHODS["tent"]
    assert isinstance(entry, OnDevice)
    s = msgspec.convert(entry.many_classes, TentSettings)
    assert (s.optimiser, s.lr, s.momentum) == ("sgd", 0.00025, 0.9)


def test_the_answer_is_that_of_the_forward_before_the_step() -> None:
    tent = Tent(conv_net(), TentSettings(lr=0.5), 0)
    bn = BatchNorm(conv_net(), BatchNormSettings(), 0)
    first, second = tent.predict(batch(6)), tent.predict(batch(6))
    assert torch.equal(first, bn.predict(batch(6)))
    assert not torch.allclose(second, first, atol=1e-3)


def test_only_norm_parameters_change() -> None:
    net = conv_net()
    Tent(net, TentSettings(lr=0.1), 0).predict(batch(6))
    before = conv_net().state_dict()
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == set(NAMES)


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 4), nn.LayerNorm([4, 2, 2])])
def test_group_and_layer_norms_learn_from_a_single_image(norm: nn.Module) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), norm, nn.Flatten(), nn.Linear(16, CLASSES)).eval()
    tent = Tent(net, TentSettings(optimiser="sgd", lr=0.05), 0)
    answers = torch.cat([tent.predict(batch(1).float()) for _ in range(4)])
    entropies = -(answers * answers.log()).sum(1)
    assert (entropies.diff() < 0).all()


@pytest.mark.parametrize("images", [1, 7])
def test_answers_are_probabilities_and_a_caller_without_gradient_does_not_matter(images: int) -> None:
    net = conv_net().float()
    tent = Tent(net, TentSettings(), 0)
    before = affine(net).copy()
    with torch.no_grad():
        answer = tent.predict(batch(images).float())
    assert answer.shape == (images, CLASSES)
    assert answer.dtype == torch.float32
    assert not answer.requires_grad
    torch.testing.assert_close(answer.sum(1), torch.ones(images))
    assert not np.array_equal(affine(net), before)


def test_one_value_per_channel_is_no_error() -> None:
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3), nn.Linear(3, CLASSES)).eval()
    tent = Tent(net, TentSettings(), 0)
    for seed in range(3):
        answer = tent.predict(batch(1, seed).float()[:, :, :1, :1])
        torch.testing.assert_close(answer.sum(1), torch.ones(1))
    assert all(torch.isfinite(parameter).all() for parameter in net.parameters())


def test_a_model_without_norm_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match="'tent'"):
        Tent(nn.Sequential(nn.Linear(2, 2)), TentSettings(), 0)


@pytest.mark.parametrize("values", [{"optimiser": "lbfgs"}, {"lr": 0}, {"momentum": 1}, {"rate": 0.1}])
def test_settings_out_of_range_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(values, TentSettings)
