"""``bn``, ``bn-alpha`` and ``bn-ema`` against plain numpy in float64, and what ``norms`` does to a model's layers."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from cema.bench.methods.bn import BatchNorm, BatchNormSettings
from cema.bench.methods.bn_alpha import BatchNormAlpha, BatchNormAlphaSettings
from cema.bench.methods.bn_ema import BatchNormEma, BatchNormEmaSettings
from cema.bench.methods.norms import ByBatch, by_batch, train_affine
from cema.errors import ConfigError

EPS, CLASSES = 1e-3, 5
NORMS = (1, 4)
Moments = tuple[np.ndarray, np.ndarray]


def conv_net(seed: int = 0) -> nn.Sequential:
    """conv - norm - relu - conv - norm - relu - mean - linear, float64, statistics far from any batch's."""
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4, eps=EPS), nn.ReLU(),
        nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4, eps=EPS), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES),
    ).double().eval()  # fmt: skip
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator).double() + (0.5 if "var" in name else -0.5))
    return net


def batch(images: int, seed: int = 0, side: int = 2) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(1.0, 2.0, (images, 3, side, side)))


def moments(net: nn.Module, layer: int) -> Moments:
    state = net.state_dict()
    return state[f"{layer}.running_mean"].numpy().copy(), state[f"{layer}.running_var"].numpy().copy()


def numpy_answer(net: nn.Sequential, images: torch.Tensor, choose: Callable[[int, Moments], Moments]) -> np.ndarray:
    """Probabilities, with the mean and variance of norm i by ``choose(i, biased moments of its input)``."""
    state = {name: value.numpy() for name, value in net.state_dict().items()}
    x = images.numpy()
    for i in NORMS:
        x = np.einsum("oc,bchw->bohw", state[f"{i - 1}.weight"][:, :, 0, 0], x)
        mean, var = choose(i, (x.mean((0, 2, 3)), x.var((0, 2, 3))))
        scale = state[f"{i}.weight"] / np.sqrt(var + EPS)
        x = np.maximum((x - mean[:, None, None]) * scale[:, None, None] + state[f"{i}.bias"][:, None, None], 0)
    logits = x.mean((2, 3)) @ state["8.weight"].T + state["8.bias"]
    exponentials = np.exp(logits)
    return np.asarray(exponentials / exponentials.sum(1, keepdims=True))


def test_bn_normalises_every_layer_by_the_present_batch_and_remembers_nothing() -> None:
    method = BatchNorm(conv_net(), BatchNormSettings(), 0)
    for images, seed in [(6, 0), (3, 1), (1, 2), (6, 0)]:
        expected = numpy_answer(conv_net(), batch(images, seed), lambda i, measured: measured)
        np.testing.assert_allclose(method.predict(batch(images, seed)), expected, rtol=1e-6)


@pytest.mark.parametrize("prior", [0.0, 3.0, 16.0])
def test_bn_alpha_mixes_by_images_over_images_plus_prior_and_keeps_the_source(prior: float) -> None:
    net = conv_net()
    source = {i: moments(net, i) for i in NORMS}
    method = BatchNormAlpha(net, BatchNormAlphaSettings(prior_samples=prior), 0)
    for images, seed in [(6, 0), (1, 1), (6, 0)]:

        def mix(i: int, measured: Moments, n: int = images) -> Moments:
            mean, var = ((prior * s + n * b) / (prior + n) for s, b in zip(source[i], measured, strict=True))
            return mean, var

        expected = numpy_answer(conv_net(), batch(images, seed), mix)
        np.testing.assert_allclose(method.predict(batch(images, seed)), expected, rtol=1e-6)


def test_bn_alpha_takes_sixteen_images_for_the_source_unless_told_otherwise() -> None:
    assert BatchNormAlphaSettings().prior_samples == 16


def test_bn_ema_moves_each_layer_before_it_normalises_and_the_next_sees_the_result() -> None:
    net = conv_net()
    running = {i: moments(net, i) for i in NORMS}
    method = BatchNormEma(net, BatchNormEmaSettings(), 0)
    for images, seed in [(6, 0), (1, 1), (1, 2), (4, 3)]:

        def move(i: int, measured: Moments, values: int = images * 4) -> Moments:
            mean, var = running[i]
            running[i] = 0.9 * mean + 0.1 * measured[0], 0.9 * var + 0.1 * measured[1] * values / (values - 1)
            return running[i]

        expected = numpy_answer(conv_net(), batch(images, seed), move)
        np.testing.assert_allclose(method.predict(batch(images, seed)), expected, rtol=1e-6)
    for i in NORMS:
        np.testing.assert_allclose(moments(net, i), running[i], rtol=1e-12)


def test_bn_ema_corrects_a_shift_once_however_deep_the_chain() -> None:
    depth, shift = 20, 2.0
    chain = nn.Sequential(*(nn.BatchNorm1d(1, eps=1e-15, affine=False) for _ in range(depth))).double().eval()
    method = BatchNormEma(chain, BatchNormEmaSettings(momentum=0.1), 0)
    x = torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64) + shift  # unbiased variance 1
    with torch.no_grad():
        left = np.array([float(method.model(x).mean()) for _ in range(30)])
    # each layer leaves 0.9 of what reaches it; behind stale layers twenty tenths at once would leave -shift next
    assert left[0] == pytest.approx(shift * 0.9**depth)
    assert np.abs(left[1:]).max() <= left[0] * (1 + 1e-6)


def test_one_value_per_channel_gives_the_bias_in_bn_and_leaves_the_variance_in_bn_ema() -> None:
    bias = torch.tensor([0.5, -0.5, 1.0])

    def net() -> nn.Sequential:
        layer = nn.BatchNorm1d(3)
        layer.bias.data.copy_(bias)
        return nn.Sequential(nn.Flatten(), layer).eval()

    image = torch.tensor([[[[5.0]], [[-3.0]], [[2.0]]]])
    torch.testing.assert_close(BatchNorm(net(), BatchNormSettings(), 0).predict(image)[0], bias.softmax(0))
    ema, alpha = net(), net()
    BatchNormEma(ema, BatchNormEmaSettings(), 0).predict(image)
    np.testing.assert_allclose(moments(ema, 1), ([0.5, -0.3, 0.2], [1, 1, 1]), rtol=1e-6)
    BatchNormAlpha(alpha, BatchNormAlphaSettings(prior_samples=1), 0).predict(image)
    np.testing.assert_allclose(moments(alpha, 1), ([2.5, -1.5, 1], [0.5, 0.5, 0.5]), rtol=1e-6)


def test_layers_without_source_statistics_start_from_the_first_batch() -> None:
    x = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 + 1
    expected = ((x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()).softmax(1)
    nets = [nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False).double()).eval() for _ in range(3)]
    ema = BatchNormEma(nets[0], BatchNormEmaSettings(), 0)
    for method in (
        ema,
        BatchNormAlpha(nets[1], BatchNormAlphaSettings(), 0),
        BatchNorm(nets[2], BatchNormSettings(), 0),
    ):
        np.testing.assert_allclose(method.predict(x), expected.float(), rtol=1e-6)
    ema.predict(x + 1)
    np.testing.assert_allclose(moments(nets[0], 0)[0], x.mean(0) + 0.1)


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 4), nn.LayerNorm([4, 2, 2])])
def test_models_without_batch_norm_are_left_as_they_are(norm: nn.Module) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), norm, nn.Flatten(), nn.Linear(16, CLASSES)).eval()
    images = batch(1).float()
    with torch.no_grad():
        expected = net(images).softmax(1)
    for method in (
        BatchNorm(net, BatchNormSettings(), 0),
        BatchNormAlpha(net, BatchNormAlphaSettings(), 0),
        BatchNormEma(net, BatchNormEmaSettings(), 0),
    ):
        assert torch.equal(method.predict(images), expected)


@pytest.mark.parametrize("images", [1, 7])
def test_answers_are_probabilities_without_gradient(images: int) -> None:
    for method in (
        BatchNorm(conv_net().float(), BatchNormSettings(), 0),
        BatchNormAlpha(conv_net().float(), BatchNormAlphaSettings(), 0),
        BatchNormEma(conv_net().float(), BatchNormEmaSettings(), 0),
    ):
        answer = method.predict(batch(images).float())
        assert answer.shape == (images, CLASSES)
        assert answer.dtype == torch.float32
        assert not answer.requires_grad
        assert method.where == "forward"
        torch.testing.assert_close(answer.sum(1), torch.ones(images))


@pytest.mark.parametrize(
    ("kind", "values"), [(BatchNormAlphaSettings, {"prior_samples": -1}), (BatchNormEmaSettings, {"momentum": 0})]
)
def test_settings_out_of_range_are_refused(kind: type[msgspec.Struct], values: dict[str, float]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(values, kind)


class TestByBatch:
    def test_keeps_names_and_the_same_parameters_in_eval_mode(self) -> None:
        net = conv_net()
        weight = net[1].weight
        replaced = by_batch(net)
        assert replaced is net
        assert isinstance(net[1], ByBatch)
        assert net[1].weight is weight
        assert not any(module.training for module in net.modules())
        assert {name for name, _ in net.named_parameters()} == {name for name, _ in conv_net().named_parameters()}

    def test_replaces_a_layer_used_twice_by_one_layer(self) -> None:
        shared = nn.BatchNorm1d(2)
        net = by_batch(nn.Sequential(shared, nn.Sequential(shared), shared))
        assert isinstance(net, nn.Sequential)
        assert isinstance(net[0], ByBatch)
        assert net[0] is net[2] is net[1][0]  # type: ignore[index]
        assert len(train_affine(net, "tent")) == 2

    def test_replaces_a_model_that_is_a_batch_norm(self) -> None:
        assert isinstance(by_batch(nn.BatchNorm1d(2)), ByBatch)

    def test_gradient_flows_through_the_statistics(self) -> None:
        layer = ByBatch(nn.BatchNorm1d(2, affine=False).double())
        x = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(layer, (x,))

    def test_gradient_of_a_single_value_is_zero(self) -> None:
        x = torch.tensor([[3.0, -2.0]], requires_grad=True)
        ByBatch(nn.BatchNorm1d(2))(x).square().sum().backward()
        assert x.grad is not None
        assert torch.equal(x.grad, torch.zeros(1, 2))


def test_a_model_without_norm_parameters_cannot_be_trained() -> None:
    with pytest.raises(ConfigError, match="'tent' trains weights and biases of norm layers") as caught:
        train_affine(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False)), "tent")
    assert "use a model with" in caught.value.hint


def test_only_norm_weights_and_biases_are_made_trainable() -> None:
    net = nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4), nn.BatchNorm1d(4), nn.GroupNorm(2, 4))
    assert len(train_affine(net, "tent")) == 6
    trainable = [name for name, parameter in net.named_parameters() if parameter.requires_grad]
    assert trainable == ["1.weight", "1.bias", "2.weight", "2.bias", "3.weight", "3.bias"]
