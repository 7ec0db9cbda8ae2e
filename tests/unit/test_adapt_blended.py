"""A model whose batch norms follow a batch: how far, layer after layer, and what of it stays as it came."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from cema.cloud.adapt.blended import Blended
from cema.wire.blend import log_ratio, shift_size

COUNT, SIDE = 24, 16


def net(seed: int = 1) -> nn.Sequential:
    torch.manual_seed(seed)
    made = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip
    for norm in norms(made):
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return made.eval()


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def batch(seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(COUNT, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def statistics(model: nn.Module) -> list[torch.Tensor]:
    return [value.clone() for norm in norms(model) for value in (norm.running_mean, norm.running_var)]


def in_train_mode(images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits, and means and biased variances, as torch's own batch norm has them of this batch."""
    model = net()
    pixels: list[int] = []
    for norm in norms(model):
        norm.momentum = 1.0
        norm.register_forward_pre_hook(lambda _, inputs: pixels.append(inputs[0].numel() // inputs[0].shape[1]))
    with torch.no_grad():
        logits = model.train()(images)
    for norm, count in zip(norms(model), pixels, strict=True):
        norm.running_var.mul_((count - 1) / count)
    return logits, statistics(model)


def blended(model: nn.Module) -> Blended:
    return Blended(model, torch.contiguous_format)


def test_shares_of_zero_leave_the_source() -> None:
    model, source = net(), net()
    followed = blended(model).follow(batch(), np.zeros(3, np.float32))
    assert all(map(torch.equal, statistics(model), statistics(source)))
    with torch.no_grad():
        torch.testing.assert_close(followed.logits_BK, source(batch()))


def test_shares_of_one_are_the_batchs_own_statistics_layer_after_layer() -> None:
    model = net()
    followed = blended(model).follow(batch(), np.ones(3, np.float32))
    logits, expected = in_train_mode(batch())
    torch.testing.assert_close(statistics(model), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(followed.logits_BK, logits, rtol=1e-4, atol=1e-4)


def test_each_layer_has_its_own_share_and_the_later_ones_measure_what_it_leaves() -> None:
    model, source = net(), net()
    follower = blended(model)
    follower.follow(batch(), np.array([1, 0, 0], np.float32))
    _, expected = in_train_mode(batch())
    torch.testing.assert_close(statistics(model)[:2], expected[:2], rtol=1e-4, atol=1e-5)
    assert all(map(torch.equal, statistics(model)[2:], statistics(source)[2:]))
    follower.follow(batch(), np.array([0, 0.5, 0], np.float32))
    with torch.no_grad():
        features = source[3](source[2](source[1](source[0](batch()))))  # by the source's first norm, not the batch's
    halfway = (source[4].running_mean + features.mean((0, 2, 3))) / 2
    torch.testing.assert_close(statistics(model)[2], halfway, rtol=1e-4, atol=1e-5)
    assert all(map(torch.equal, statistics(model)[:2], statistics(source)[:2])), "the second time starts anew"


def test_the_shift_is_that_of_the_measured_variances() -> None:
    source, layers = net(), net()
    found = blended(layers).follow(batch(), np.ones(3, np.float32))
    _, measured = in_train_mode(batch())
    ratios = [
        log_ratio(var.numpy(), norm.running_var.numpy())
        for var, norm in zip(measured[1::2], norms(source), strict=True)
    ]
    assert found.shift == pytest.approx(shift_size(ratios), rel=1e-4)
    assert found.shift > 0


def test_the_source_stays_as_it_came_whatever_is_followed_or_done_to_the_copies() -> None:
    model, source = net(), net().state_dict()
    follower = blended(model)
    for seed in range(3):
        follower.follow(batch(seed), np.ones(3, np.float32))
        given = follower.source()
        assert sorted(given) == sorted(name for name in source if name.endswith(("running_mean", "running_var")))
        for name, value in given.items():
            np.testing.assert_array_equal(value, source[name], err_msg=name)
            value[:] = -1.0
    follower.follow(batch(), np.zeros(3, np.float32))
    assert all(map(torch.equal, statistics(model), statistics(net())))


def test_logits_use_what_was_followed_last_and_nothing_but_statistics_moves() -> None:
    model = net()
    follower, before = blended(model), copy.deepcopy(model.state_dict())
    followed = follower.follow(batch(), np.full(3, 0.7, np.float32))
    torch.testing.assert_close(follower.logits(batch()), followed.logits_BK)
    for name, value in model.state_dict().items():
        moved = name.endswith(("running_mean", "running_var"))
        assert torch.equal(value, before[name]) != moved, name


def test_a_forward_that_fails_leaves_no_hook_behind() -> None:
    model = net()
    follower = blended(model)
    with pytest.raises(RuntimeError):
        follower.follow(torch.zeros(2, 5, SIDE, SIDE), np.ones(3, np.float32))
    before = statistics(model)
    follower.logits(batch())
    assert all(map(torch.equal, statistics(model), before))


def test_a_model_without_running_statistics_has_nothing_to_follow() -> None:
    model = nn.Sequential(nn.Flatten(), nn.LayerNorm(3 * SIDE * SIDE), nn.Linear(3 * SIDE * SIDE, 4)).eval()
    follower = blended(model)
    followed = follower.follow(batch(), np.ones(0, np.float32))
    assert (followed.shift, follower.source()) == (0.0, {})
    with torch.no_grad():
        torch.testing.assert_close(followed.logits_BK, model(batch()))
