"""``sar`` against plain numpy in float64: both filters, the climb, the step, the recovery, the frozen top."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from cema.bench.methods.bn import BatchNorm, BatchNormSettings
from cema.bench.methods.sar import Sar, SarSettings
from cema.errors import ConfigError

EPS, CLASSES, CHANNELS = 1e-3, 5, 4
NAMES = ("1.weight", "1.bias", "4.weight", "4.bias")


def conv_net(seed: int = 0, sharpness: float = 8.0) -> nn.Sequential:
    """Confident enough (``sharpness``) that some samples are reliable and some are not."""
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, CHANNELS, 1, bias=False), nn.BatchNorm2d(CHANNELS, eps=EPS), nn.ReLU(),
        nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False), nn.BatchNorm2d(CHANNELS, eps=EPS), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, CLASSES),
    ).double().eval()  # fmt: skip
    for parameter in net.parameters():
        parameter.data.copy_(torch.rand(parameter.shape, generator=generator).double() * 2 - 0.7)
    net.state_dict()["8.weight"].mul_(sharpness)
    return net


def batch(images: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(1.0, 2.0, (images, 3, 2, 2)))


def affine(net: nn.Module) -> np.ndarray:
    return np.concatenate([net.state_dict()[name].numpy() for name in NAMES])


def numpy_entropy(net: nn.Sequential, theta: np.ndarray, images: np.ndarray) -> np.ndarray:
    state, x = net.state_dict(), images
    for i, (gamma, beta) in zip((1, 4), theta.reshape(2, 2, CHANNELS), strict=True):
        x = np.einsum("oc,bchw->bohw", state[f"{i - 1}.weight"].numpy()[:, :, 0, 0], x)
        mean, var = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
        x = np.maximum((x - mean) / np.sqrt(var + EPS) * gamma[:, None, None] + beta[:, None, None], 0)
    p = np.exp(x.mean((2, 3)) @ state["8.weight"].numpy().T + state["8.bias"].numpy())
    p = p / p.sum(1, keepdims=True)
    return np.asarray(-(p * np.log(p)).sum(1))


def gradient(loss: Callable[[np.ndarray], float], theta: np.ndarray, step: float = 1e-6) -> np.ndarray:
    eye = np.eye(len(theta)) * step
    return np.array([(loss(theta + towards) - loss(theta - towards)) / (2 * step) for towards in eye])


@dataclass
class NumpySar:
    """Algorithm 1. trained: how many of the parameters, from the input on."""

    settings: SarSettings
    trained: int = 4 * CHANNELS
    net: nn.Sequential = field(default_factory=conv_net)
    mean_loss: float | None = None
    first: list[int] = field(default_factory=list)
    second: list[int] = field(default_factory=list)
    recovered: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.theta = self.source = affine(self.net)
        self.velocity = np.zeros_like(self.theta)
        self.mask = np.arange(len(self.theta)) < self.trained

    def step(self, images: np.ndarray) -> None:
        s = self.settings
        e_0 = s.e_margin * math.log(CLASSES)
        reliable = numpy_entropy(self.net, self.theta, images) < e_0
        self.first.append(int(reliable.sum()))
        if not reliable.any():
            return

        def loss_over(kept: np.ndarray) -> Callable[[np.ndarray], float]:
            return lambda theta: float(numpy_entropy(self.net, theta, images)[kept].mean())

        g = gradient(loss_over(reliable), self.theta) * self.mask
        above = self.theta + s.rho * g / np.linalg.norm(g)
        still = reliable & (numpy_entropy(self.net, above, images) < e_0)
        self.second.append(int(still.sum()))
        if not still.any():
            return
        loss = loss_over(still)
        lr = s.lr * min(1, len(images) / 32)
        self.velocity = 0.9 * self.velocity + gradient(loss, above) * self.mask
        self.theta = self.theta - lr * self.velocity
        value = loss(above)
        self.mean_loss = value if self.mean_loss is None else 0.9 * self.mean_loss + 0.1 * value
        self.recovered.append(self.mean_loss < s.reset_entropy)
        if self.recovered[-1]:
            self.theta, self.velocity, self.mean_loss = self.source, np.zeros_like(self.theta), None


def test_steps_equal_the_algorithm_written_in_numpy() -> None:
    settings = SarSettings(lr=0.2, rho=0.3, e_margin=0.5, reset_entropy=0.0)
    net, twin = conv_net(), NumpySar(settings)
    sar = Sar(net, settings, 0)
    for seed, images in enumerate((8, 8, 40, 8)):
        sar.predict(batch(images, seed))
        twin.step(batch(images, seed).numpy())
        np.testing.assert_allclose(affine(net), twin.theta, rtol=1e-6, atol=1e-7)
    assert sar.mean_loss == pytest.approx(twin.mean_loss, rel=1e-6)
    # the stream is one on which both filters matter
    assert any(count < images for count, images in zip(twin.first, (8, 8, 40, 8), strict=True))
    assert any(0 < second < first for first, second in zip(twin.first, twin.second, strict=True))
    assert np.abs(twin.theta - twin.source).max() > 1e-2


def test_collapse_brings_the_source_back_and_forgets_momentum_and_mean() -> None:
    settings = SarSettings(lr=0.5, e_margin=0.5, reset_entropy=0.43)
    net, twin = conv_net(), NumpySar(settings)
    sar = Sar(net, settings, 0)
    for seed in range(8):
        sar.predict(batch(8, seed))
        twin.step(batch(8, seed).numpy())
        np.testing.assert_allclose(affine(net), twin.theta, rtol=1e-5, atol=1e-6)
        if twin.recovered[-1]:
            np.testing.assert_array_equal(affine(net), twin.source)
    # a recovery with steps before and after it
    assert True in twin.recovered[1:-1]
    assert False in twin.recovered[twin.recovered.index(True) :]


def test_parameters_return_exactly_when_the_climb_leaves_no_reliable_sample() -> None:
    images, net = batch(8), conv_net()
    least = numpy_entropy(conv_net(), affine(net), images.numpy()).min()
    margin = (least + 1e-9) / math.log(CLASSES)  # the most confident sample alone; uphill it is not reliable any more
    sar = Sar(net, SarSettings(e_margin=margin, lr=0.5), 0)
    sar.predict(images)
    np.testing.assert_array_equal(affine(net), affine(conv_net()))
    assert sar.mean_loss is None


@pytest.mark.parametrize(("images", "share"), [(1, 1 / 32), (8, 8 / 32), (32, 1.0), (64, 1.0)])
def test_a_batch_below_32_images_gets_its_share_of_the_learning_rate(images: int, share: float) -> None:
    sar = Sar(conv_net(), SarSettings(lr=0.5, e_margin=1, reset_entropy=0.0), 0)
    sar.predict(batch(images))
    assert sar.optimiser.param_groups[0]["lr"] == pytest.approx(0.5 * share)


def test_the_moving_mean_of_the_loss_and_the_recovery_by_hand() -> None:
    sar = Sar(conv_net(), SarSettings(reset_entropy=0.2), 0)
    sar._recover(0.3)
    assert sar.mean_loss == 0.3  # begins with the first loss
    sar._recover(0.1)
    assert sar.mean_loss == pytest.approx(0.9 * 0.3 + 0.1 * 0.1)
    sar.mean_loss = 0.21
    with torch.no_grad():
        sar.trained[0].add_(1)
    sar._recover(0.05)  # 0.9 * 0.21 + 0.1 * 0.05 = 0.194
    assert sar.mean_loss is None
    assert torch.equal(sar.trained[0], sar.source[0])


def test_a_batch_without_a_reliable_sample_changes_nothing() -> None:
    net = conv_net(sharpness=0.01)
    sar = Sar(net, SarSettings(lr=0.5), 0)
    for _ in range(2):
        sar.predict(batch(8))
    np.testing.assert_array_equal(affine(net), affine(conv_net(sharpness=0.01)))
    assert sar.mean_loss is None


def test_the_top_share_of_norm_layers_is_frozen() -> None:
    settings = SarSettings(lr=0.2, e_margin=0.5, reset_entropy=0.0, frozen_top=0.5)
    net, twin = conv_net(), NumpySar(settings, trained=2 * CHANNELS)
    sar = Sar(net, settings, 0)
    for seed in range(3):
        sar.predict(batch(8, seed))
        twin.step(batch(8, seed).numpy())
    np.testing.assert_allclose(affine(net), twin.theta, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(affine(net)[2 * CHANNELS :], twin.source[2 * CHANNELS :])
    assert np.abs(affine(net) - twin.source).max() > 1e-2


def test_as_many_layers_as_published_are_frozen_in_a_network_of_53() -> None:
    sar = Sar(nn.Sequential(*(nn.BatchNorm1d(1) for _ in range(53))), SarSettings(), 0)
    trainable = [name for name, parameter in sar.model.named_parameters() if parameter.requires_grad]
    assert len(sar.trained) == 2 * 43
    assert trainable == [f"{i}.{role}" for i in range(43) for role in ("weight", "bias")]


def test_published_numbers_are_the_defaults() -> None:
    s = SarSettings()
    assert (s.lr, s.momentum, s.rho, s.e_margin, s.reset_entropy, s.mean_share) == (0.00025, 0.9, 0.05, 0.4, 0.2, 0.1)


def test_the_answer_is_that_of_the_forward_before_the_step() -> None:
    sar = Sar(conv_net(), SarSettings(e_margin=1, lr=1, reset_entropy=0.0), 0)
    bn = BatchNorm(conv_net(), BatchNormSettings(), 0)
    first = sar.predict(batch(40))
    assert torch.equal(first, bn.predict(batch(40)))
    assert not torch.allclose(sar.predict(batch(40)), first, atol=1e-3)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm([4, 2, 2])])
@pytest.mark.parametrize("images", [1, 7])
def test_answers_are_probabilities_for_any_norm_and_batch_size(norm: nn.Module, images: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), norm, nn.Flatten(), nn.Linear(16, CLASSES)).eval()
    sar = Sar(net, SarSettings(e_margin=1, reset_entropy=0.0, lr=0.1), 0)
    before = [parameter.clone() for parameter in sar.trained]
    with torch.no_grad():
        answer = sar.predict(batch(images).float())
    assert answer.shape == (images, CLASSES)
    assert answer.dtype == torch.float32
    assert not answer.requires_grad
    torch.testing.assert_close(answer.sum(1), torch.ones(images))
    assert any(not torch.equal(now, then) for now, then in zip(sar.trained, before, strict=True))


def test_one_value_per_channel_is_no_error_and_stays_finite() -> None:
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, CLASSES)).eval()
    sar = Sar(net, SarSettings(e_margin=1), 0)
    for seed in range(3):
        answer = sar.predict(batch(1, seed).float()[:, :, :1, :1])
        torch.testing.assert_close(answer.sum(1), torch.ones(1))
    assert all(torch.isfinite(parameter).all() for parameter in net.parameters())


def test_a_model_without_norm_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match="'sar'"):
        Sar(nn.Sequential(nn.Linear(2, 2)), SarSettings(), 0)


@pytest.mark.parametrize("values", [{"rho": -1}, {"e_margin": 0}, {"frozen_top": 1}, {"reset_entropy": -0.1}])
def test_settings_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(values, SarSettings)
