"""Batch renormalisation against plain numpy in float64, gradients against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cema.cloud.adapt.norm import (
    MOMENTUM,
    BatchRenorm,
    Impl,
    Start,
    Targets,
    adaptable,
    affine_parameters,
    follow_statistics,
    norm_train,
)

EPS = 1e-3
RNG = np.random.default_rng(7)
X = RNG.normal(0.5, 2.0, (6, 3, 2, 2))
GAMMA, BETA = RNG.uniform(0.5, 1.5, 3), RNG.normal(size=3)
MEAN, VAR = RNG.normal(size=3), RNG.uniform(0.5, 2.0, 3)
UPSTREAM = RNG.normal(size=X.shape)


def per_channel(value_C: np.ndarray) -> np.ndarray:
    return value_C.reshape(1, -1, 1, 1)


def numpy_forward(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, r: np.ndarray, d: np.ndarray) -> np.ndarray:
    mu, sd = x.mean((0, 2, 3)), np.sqrt(x.var((0, 2, 3)) + EPS)
    x_hat = (x - per_channel(mu)) / per_channel(sd) * per_channel(r) + per_channel(d)
    return per_channel(gamma) * x_hat + per_channel(beta)


def numpy_correction(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mu, sd = x.mean((0, 2, 3)), np.sqrt(x.var((0, 2, 3)) + EPS)
    running_sd = np.sqrt(VAR + EPS)
    return sd / running_sd, (mu - MEAN) / running_sd


def finite_difference(function: object, at: np.ndarray, step: float = 1e-5) -> np.ndarray:
    gradient = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        up, down = at.copy(), at.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (function(up) - function(down)) / (2 * step)  # type: ignore[operator]
    return gradient


def layer(impl: Impl, start: Start = "source") -> BatchRenorm:
    source = nn.BatchNorm2d(3, eps=EPS).double()
    source.load_state_dict(
        {
            "weight": torch.tensor(GAMMA),
            "bias": torch.tensor(BETA),
            "running_mean": torch.tensor(MEAN),
            "running_var": torch.tensor(VAR),
            "num_batches_tracked": torch.tensor(1),
        }
    )
    return BatchRenorm(source, impl, start).train()


@pytest.mark.parametrize("impl", ["textbook", "native", "fused"])
class TestBatchRenorm:
    def test_train_mode_value_is_normalisation_by_running_statistics(self, impl: Impl) -> None:
        out = layer(impl)(torch.tensor(X)).detach().numpy()
        by_running = per_channel(GAMMA) * (X - per_channel(MEAN)) / per_channel(np.sqrt(VAR + EPS)) + per_channel(BETA)
        np.testing.assert_allclose(out, by_running, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(out, numpy_forward(X, GAMMA, BETA, *numpy_correction(X)), rtol=1e-9, atol=1e-9)

    def test_gradients_see_the_batch_statistics_but_not_the_correction(self, impl: Impl) -> None:
        norm, x = layer(impl), torch.tensor(X, requires_grad=True)
        (norm(x) * torch.tensor(UPSTREAM)).sum().backward()
        r, d = numpy_correction(X)
        loss = lambda x, g, b: float((numpy_forward(x, g, b, r, d) * UPSTREAM).sum())  # noqa: E731
        assert x.grad is not None
        assert norm.weight.grad is not None
        assert norm.bias.grad is not None
        np.testing.assert_allclose(x.grad, finite_difference(lambda v: loss(v, GAMMA, BETA), X), atol=1e-7)
        np.testing.assert_allclose(norm.weight.grad, finite_difference(lambda v: loss(X, v, BETA), GAMMA), atol=1e-7)
        np.testing.assert_allclose(norm.bias.grad, finite_difference(lambda v: loss(X, GAMMA, v), BETA), atol=1e-7)

    def test_running_statistics_move_by_a_tenth_with_unbiased_variance(self, impl: Impl) -> None:
        norm = layer(impl)
        norm(torch.tensor(X))
        flat = X.transpose(1, 0, 2, 3).reshape(3, -1)
        np.testing.assert_allclose(norm.running_mean, MEAN + MOMENTUM * (flat.mean(1) - MEAN))
        np.testing.assert_allclose(norm.running_var, VAR + MOMENTUM * (flat.var(1, ddof=1) - VAR))

    def test_first_batch_start_takes_the_first_batch_for_its_statistics(self, impl: Impl) -> None:
        norm = layer(impl, "first_batch")
        norm(torch.tensor(X))
        flat = X.transpose(1, 0, 2, 3).reshape(3, -1)
        np.testing.assert_allclose(norm.running_mean, flat.mean(1))
        np.testing.assert_allclose(norm.running_var, flat.var(1, ddof=1))
        moved = norm.running_mean.clone()
        norm(torch.tensor(X) + 1)
        np.testing.assert_allclose(norm.running_mean, moved + MOMENTUM)

    def test_eval_mode_changes_nothing(self, impl: Impl) -> None:
        norm = layer(impl).eval()
        norm(torch.tensor(X))
        np.testing.assert_array_equal(norm.running_mean, MEAN)


def test_native_and_textbook_agree_in_float32_over_many_steps() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4))
    twins = [adaptable(net, "textbook"), adaptable(net, "native")]
    for twin in twins:
        norm_train(twin, True)
        optimiser = torch.optim.SGD(affine_parameters(twin), lr=0.01, momentum=0.9)
        generator = torch.Generator().manual_seed(1)
        for _ in range(5):
            images = torch.randn(16, 3, 8, 8, generator=generator)
            optimiser.zero_grad()
            twin(images).square().mean().backward()
            optimiser.step()
    for (name, a), (_, b) in zip(twins[0].state_dict().items(), twins[1].state_dict().items(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5, msg=name)


def test_only_norm_weights_and_biases_are_trainable_and_the_original_is_untouched() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.Dropout(0.5))
    net.train()
    twin = adaptable(net)
    trainable = {name for name, p in twin.named_parameters() if p.requires_grad}
    assert trainable == {"1.weight", "1.bias", "2.weight", "2.bias"}
    norm_train(twin, True)
    assert not twin[3].training  # type: ignore[index]
    assert type(net[1]) is nn.BatchNorm2d
    assert all(p.requires_grad for p in net.parameters())
    assert [key for key in twin.state_dict() if key.endswith("running_mean")] == ["1.running_mean"]


class TestTargets:
    """Where the batch statistics come from that the running ones follow (ADR 9)."""

    @staticmethod
    def stack(depth: int, targets: Targets) -> nn.Module:
        """Norm layers alone, statistics of a source with mean 0 and variance 1."""
        return adaptable(nn.Sequential(*(nn.BatchNorm2d(3, eps=1e-12) for _ in range(depth))).double(), targets=targets)

    @staticmethod
    def move(model: nn.Module, x: torch.Tensor) -> None:
        norm_train(model, True)
        model(x)
        norm_train(model, False)
        follow_statistics(model, x)

    def test_each_layer_follows_what_the_layers_before_it_leave(self) -> None:
        x = torch.tensor(X)
        model = self.stack(2, "batch")
        self.move(model, x)
        mean, var = X.mean((0, 2, 3)), X.var((0, 2, 3))
        unbiased = len(X) * 4 / (len(X) * 4 - 1)
        np.testing.assert_allclose(model[0].running_mean, MOMENTUM * mean, rtol=1e-9)  # type: ignore[index]
        np.testing.assert_allclose(model[0].running_var, 0.9 + MOMENTUM * var * unbiased, rtol=1e-9)  # type: ignore[index]
        np.testing.assert_allclose(model[1].running_mean, np.zeros(3), atol=1e-9)  # type: ignore[index]
        np.testing.assert_allclose(model[1].running_var, np.full(3, 0.9 + 0.1 * unbiased), rtol=1e-9)  # type: ignore[index]

    @pytest.mark.parametrize(("targets", "lowest", "highest"), [("batch", 2.0, 2.4), ("renorm", 0.0, 0.2)])
    def test_a_deep_stack_under_a_shift_of_scale_overshoots_with_targets_of_the_same_forward(
        self, targets: Targets, lowest: float, highest: float
    ) -> None:
        x = torch.tensor(3.0 * (X - X.mean((0, 2, 3), keepdims=True)) / X.std((0, 2, 3), keepdims=True))
        model = self.stack(30, targets)
        self.move(model, x)
        assert lowest < float(model(x).detach().std()) < highest  # 3 before, 1 when it has settled

    def test_follow_statistics_leaves_layers_with_published_targets_alone(self) -> None:
        model = self.stack(2, "renorm")
        follow_statistics(model, torch.tensor(X))
        np.testing.assert_array_equal(model[0].running_mean, np.zeros(3))  # type: ignore[index]
