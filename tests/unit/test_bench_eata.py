"""``eta`` and ``eata`` against plain numpy in float64: filters, weights, moving mean, Fisher information, steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from cema.bench.methods import METHODS, OnDevice
from cema.bench.methods.bn import BatchNorm, BatchNormSettings
from cema.bench.methods.eata import FISHER_BATCH, Eata, EataSettings, Eta, EtaSettings
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


def numpy_probabilities(net: nn.Sequential, theta: np.ndarray, images: np.ndarray) -> np.ndarray:
    state, x = net.state_dict(), images
    for i, (gamma, beta) in zip((1, 4), theta.reshape(2, 2, CHANNELS), strict=True):
        x = np.einsum("oc,bchw->bohw", state[f"{i - 1}.weight"].numpy()[:, :, 0, 0], x)
        mean, var = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
        x = np.maximum((x - mean) / np.sqrt(var + EPS) * gamma[:, None, None] + beta[:, None, None], 0)
    exponentials = np.exp(x.mean((2, 3)) @ state["8.weight"].numpy().T + state["8.bias"].numpy())
    return np.asarray(exponentials / exponentials.sum(1, keepdims=True))


def entropy(p: np.ndarray) -> np.ndarray:
    return np.asarray(-(p * np.log(p)).sum(1))


def gradient(loss: Callable[[np.ndarray], float], theta: np.ndarray, step: float = 1e-6) -> np.ndarray:
    eye = np.eye(len(theta)) * step
    return np.array([(loss(theta + towards) - loss(theta - towards)) / (2 * step) for towards in eye])


@dataclass
class NumpyEta:
    """The published equations; ``fisher`` [P] and ``beta`` make it EATA."""

    e_margin: float
    d_margin: float
    lr: float
    beta: float = 0.0
    net: nn.Sequential = field(default_factory=conv_net)
    fisher: np.ndarray | float = 0.0
    mean: np.ndarray | None = None
    reliable: list[int] = field(default_factory=list)
    used: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.theta = self.source = affine(self.net)
        self.velocity = np.zeros_like(self.theta)

    def step(self, images: np.ndarray) -> None:
        e_0 = self.e_margin * math.log(CLASSES)
        p = numpy_probabilities(self.net, self.theta, images)
        kept = entropy(p) < e_0
        self.reliable.append(int(kept.sum()))
        if self.mean is not None:
            cosine = p @ self.mean / np.linalg.norm(p, axis=1) / np.linalg.norm(self.mean)
            kept = kept & (np.abs(cosine) < self.d_margin)
        self.used.append(int(kept.sum()))
        if not kept.any():
            return
        new = p[kept].mean(0)
        self.mean = new if self.mean is None else 0.9 * self.mean + 0.1 * new
        weight = 1 / np.exp(entropy(p)[kept] - e_0)

        def loss(theta: np.ndarray) -> float:
            entropies = entropy(numpy_probabilities(self.net, theta, images))[kept]
            anchor = self.beta * (self.fisher * (theta - self.source) ** 2).sum()
            return float((weight * entropies).mean() + anchor)

        self.velocity = 0.9 * self.velocity + gradient(loss, self.theta)
        self.theta = self.theta - self.lr * self.velocity


def numpy_fisher(images: np.ndarray, sizes: list[int]) -> np.ndarray:
    net = conv_net()
    theta, squares, start = affine(net), [], 0
    for size in sizes:
        part = images[start : start + size]
        label = numpy_probabilities(net, theta, part).argmax(1)

        def loss(at: np.ndarray, part: np.ndarray = part, label: np.ndarray = label) -> float:
            return float(-np.log(numpy_probabilities(net, at, part)[np.arange(len(part)), label]).mean())

        squares.append(gradient(loss, theta) ** 2)
        start += size
    return np.asarray(np.mean(squares, 0))


def test_eta_steps_equal_the_equations_written_in_numpy() -> None:
    net, twin = conv_net(), NumpyEta(0.5, 0.9, lr=0.05)
    eta = Eta(net, EtaSettings(e_margin=0.5, d_margin=0.9, lr=0.05), 0)
    for seed in range(5):
        eta.predict(batch(8, seed))
        twin.step(batch(8, seed).numpy())
        np.testing.assert_allclose(affine(net), twin.theta, rtol=1e-6, atol=1e-7)
    assert eta.mean_K is not None
    assert twin.mean is not None
    np.testing.assert_allclose(eta.mean_K, twin.mean, rtol=1e-6)
    # the stream is one on which both filters matter
    assert any(0 < count < 8 for count in twin.reliable)
    assert any(0 < used < reliable for used, reliable in zip(twin.used, twin.reliable, strict=True))
    assert np.abs(twin.theta - twin.source).max() > 1e-2


def test_fisher_information_is_the_mean_squared_gradient_of_the_pseudo_label_loss() -> None:
    images = batch(FISHER_BATCH + 10)
    eata = Eata(conv_net(), EataSettings(fisher_samples=FISHER_BATCH + 6), 0)
    eata.prepare(images)
    found = np.concatenate([fisher.numpy() for fisher in eata.fisher])
    np.testing.assert_allclose(found, numpy_fisher(images.numpy(), [FISHER_BATCH, 6]), rtol=1e-5, atol=1e-9)
    np.testing.assert_array_equal(affine(eata.model), affine(conv_net()))


def test_eata_steps_equal_the_equations_written_in_numpy() -> None:
    net, clean = conv_net(), batch(20, 99)
    eata = Eata(net, EataSettings(e_margin=0.5, d_margin=0.9, lr=0.05, fisher_alpha=50.0), 0)
    twin = NumpyEta(0.5, 0.9, lr=0.05, beta=50.0, fisher=numpy_fisher(clean.numpy(), [20]))
    eata.prepare(clean)
    for seed in range(5):
        eata.predict(batch(8, seed))
        twin.step(batch(8, seed).numpy())
        np.testing.assert_allclose(affine(net), twin.theta, rtol=1e-5, atol=1e-6)


def test_the_anchor_keeps_parameters_nearer_to_the_source_and_weight_zero_is_eta() -> None:
    moved = {}
    for alpha in (0.0, 20.0):
        net = conv_net()
        eata = Eata(net, EataSettings(e_margin=1, d_margin=1, lr=0.05, fisher_alpha=alpha), 0)
        eata.prepare(batch(20, 99))
        for seed in range(6):
            eata.predict(batch(8, seed))
        moved[alpha] = affine(net)
    net = conv_net()
    eta = Eta(net, EtaSettings(e_margin=1, d_margin=1, lr=0.05), 0)
    for seed in range(6):
        eta.predict(batch(8, seed))
    np.testing.assert_array_equal(moved[0.0], affine(net))
    source = affine(conv_net())
    assert np.linalg.norm(moved[20.0] - source) < 0.9 * np.linalg.norm(moved[0.0] - source)


def test_a_batch_without_a_reliable_sample_changes_nothing() -> None:
    net = conv_net(sharpness=0.01)
    eta = Eta(net, EtaSettings(), 0)
    eta.predict(batch(8))
    np.testing.assert_array_equal(affine(net), affine(conv_net(sharpness=0.01)))
    assert eta.mean_K is None


def test_redundant_samples_neither_step_nor_move_the_mean() -> None:
    net = conv_net()
    eta = Eta(net, EtaSettings(e_margin=1, d_margin=1e-6, lr=0.05), 0)
    eta.predict(batch(8, 0))  # nothing to compare with yet: used
    assert eta.mean_K is not None
    after_first, mean = affine(net).copy(), eta.mean_K.clone()
    eta.predict(batch(8, 1))
    np.testing.assert_array_equal(affine(net), after_first)
    assert torch.equal(eta.mean_K, mean)


def test_the_answer_is_that_of_the_forward_before_the_step() -> None:
    eta = Eta(conv_net(), EtaSettings(e_margin=1, d_margin=1, lr=0.5), 0)
    bn = BatchNorm(conv_net(), BatchNormSettings(), 0)
    first = eta.predict(batch(8))
    assert torch.equal(first, bn.predict(batch(8)))
    assert not torch.allclose(eta.predict(batch(8)), first, atol=1e-3)


def test_published_numbers_for_cifar_are_the_defaults() -> None:
    s = EataSettings()
    assert (s.lr, s.momentum, s.e_margin, s.d_margin, s.mean_share) == (0.005, 0.9, 0.4, 0.4, 0.1)
    assert (s.fisher_alpha, s.fisher_samples, Eata.prepare_images) == (1.0, 2000, 2000)


def test_many_classes_get_the_published_numbers_for_imagenet() -> None:
    for name in ("eta", "eata"):
        entry = METHODS[name]
        assert isinstance(entry, OnDevice)
        s = msgspec.convert(entry.many_classes, EtaSettings if name == "eta" else EataSettings)
        assert (s.lr, s.momentum, s.e_margin, s.d_margin, s.mean_share) == (0.00025, 0.9, 0.4, 0.05, 0.1)
        if isinstance(s, EataSettings):
            assert (s.fisher_alpha, s.fisher_samples) == (2000.0, 2000)


def test_a_sample_weighs_more_the_further_it_is_below_the_margin() -> None:
    """Eq. 2 and 3 by hand, on two samples of two classes whose logits are gamma times theirs."""
    net = nn.Sequential(nn.Flatten(), nn.LayerNorm(2, eps=0), nn.Linear(2, 2)).double().eval()
    net[2].weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))  # type: ignore[union-attr,operator]
    net[2].bias.data.copy_(torch.tensor([2.0, 0.0]))  # type: ignore[union-attr,operator]
    images = torch.tensor([[3.0, 1.0], [1.0, 3.0]]).double().view(2, 2, 1, 1)  # normalised: (1, -1), (-1, 1)
    eta = Eta(net, EtaSettings(e_margin=1, d_margin=1, lr=0.1), 0)
    eta.predict(images)
    # logits (2 + gamma z, 0): with p = sigmoid(l), dH/dl = -l p (1 - p), so dL/dgamma_0 = -mean of w l p (1 - p) z
    slope = 0.0
    for z in (1.0, -1.0):
        logit = 2 + z
        p = 1 / (1 + math.exp(-logit))
        weight = math.exp(math.log(2) + p * math.log(p) + (1 - p) * math.log(1 - p))
        slope -= weight * logit * p * (1 - p) * z / 2
    assert net[1].weight[0].item() == pytest.approx(1 - 0.1 * slope, rel=1e-9)  # type: ignore[union-attr,index]
    assert net[1].weight[1].item() == 1.0  # type: ignore[union-attr,index]


def test_eata_without_clean_pictures_is_refused() -> None:
    eata = Eata(conv_net(), EataSettings(), 0)
    with pytest.raises(ConfigError, match="was not given clean pictures") as caught:
        eata.predict(batch(2))
    assert "prepare" in caught.value.hint
    with pytest.raises(ConfigError, match="got none"):
        eata.prepare(batch(0))


def test_a_model_without_norm_layers_is_refused_by_name() -> None:
    for method, settings, name in ((Eta, EtaSettings(), "'eta'"), (Eata, EataSettings(), "'eata'")):
        with pytest.raises(ConfigError, match=name):
            method(nn.Sequential(nn.Linear(2, 2)), settings, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm([4, 2, 2])])
@pytest.mark.parametrize("images", [1, 7])
def test_answers_are_probabilities_for_any_norm_and_batch_size(norm: nn.Module, images: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), norm, nn.Flatten(), nn.Linear(16, CLASSES)).eval()
    eata = Eata(net, EataSettings(e_margin=1, d_margin=1), 0)
    eata.prepare(batch(9, 5).float())
    before = [parameter.clone() for parameter in eata.trained]
    with torch.no_grad():
        answer = eata.predict(batch(images).float())
    assert answer.shape == (images, CLASSES)
    assert answer.dtype == torch.float32
    assert not answer.requires_grad
    torch.testing.assert_close(answer.sum(1), torch.ones(images))
    assert any(not torch.equal(now, then) for now, then in zip(eata.trained, before, strict=True))


@pytest.mark.parametrize("values", [{"e_margin": 0}, {"d_margin": 2}, {"fisher_alpha": -1}, {"fisher_samples": 0}])
def test_settings_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(values, EataSettings)
