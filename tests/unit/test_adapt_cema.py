"""``cema`` and ``cema-lite``: what a step changes, what it forgets, and its numbers against plain autograd in float32.

The reference writes batch norm out by hand (adapt/norm.py's equations); only the rule that the edge shares, shares and
trust of wire/blend.py, is the product's own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from cema.cloud.adapt import create_adapter
from cema.cloud.adapt.base import State
from cema.cloud.adapt.cema import Cema, CemaLite
from cema.errors import ConfigError
from cema.wire.blend import diversity, log_ratio, shares, shift_size, trust

CLASSES, SIDE = 4, 16
EXACT = {"precision": "float32"}
Normalise = Callable[[int, torch.Tensor], torch.Tensor]


class Net(nn.Module):
    """Three convolutions with batch norm; its running statistics are those of clean pictures."""

    def __init__(self, seed: int, width: int = 6) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.convs = nn.ModuleList(nn.Conv2d(3 if i == 0 else width, width, 3, padding=1, bias=False) for i in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, momentum=None) for _ in range(3))
        self.fc = nn.Linear(width, CLASSES)
        with torch.no_grad():
            for norm in self.norms:
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.normal_()
            logits = self.train()(pictures(seed=99, count=256, contrast=1.0))
            scale = 3 / logits.std(0)  # sure enough that the weights h differ between pictures, and of all classes
            self.fc.weight.mul_(scale[:, None])
            self.fc.bias.sub_(logits.mean(0)).mul_(scale)
        self.eval()

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return self.through(images_BCHW, lambda index, x: self.norms[index](x))

    def through(self, x: torch.Tensor, normalise: Normalise) -> torch.Tensor:
        for index, conv in enumerate(self.convs):
            x = torch.relu(normalise(index, conv(x)))
        return self.fc(x.mean((2, 3)))


class LayerNormNet(nn.Module):
    """No running statistics at all."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 3, 2), nn.LayerNorm([8, 7, 7]), nn.Linear(8, CLASSES)
        self.eval()

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.norm(self.conv(images_BCHW))).mean((2, 3)))


def pictures(seed: int, count: int = 16, contrast: float = 0.8) -> torch.Tensor:
    """Each of its own colour and lit from one side, so that a picture and its mirror image differ."""
    generator = torch.Generator().manual_seed(seed)
    colour, slope = torch.randn(2, count, 3, 1, 1, generator=generator)
    noise = torch.randn(count, 3, SIDE, SIDE, generator=generator)
    return contrast * (noise + colour + torch.linspace(-1, 1, SIDE) * slope)


def spread(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance, [C] each."""
    mean_C = x.mean((0, 2, 3))
    return mean_C, ((x - mean_C[:, None, None]) ** 2).mean((0, 2, 3))


class Reference:
    """One model, everything written out: statistics that follow, batch renormalisation, SGD with momentum."""

    def __init__(self, net: Net) -> None:
        self.net = copy.deepcopy(net).requires_grad_(False)
        self.affine = [(norm.weight.detach().clone(), norm.bias.detach().clone()) for norm in net.norms]
        self.source = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in net.norms]
        self.used = list(self.source)
        self.momentum = [torch.zeros_like(value) for pair in self.affine for value in pair]

    def scaled(self, index: int, x: torch.Tensor, mean_C: torch.Tensor, sd_C: torch.Tensor) -> torch.Tensor:
        weight_C, bias_C = self.affine[index]
        return (x - mean_C[:, None, None]) / sd_C[:, None, None] * weight_C[:, None, None] + bias_C[:, None, None]

    def by_used(self, index: int, x: torch.Tensor) -> torch.Tensor:
        mean_C, var_C = self.used[index]
        return self.scaled(index, x, mean_C, (var_C + self.net.norms[index].eps).sqrt())

    def follow(self, images: torch.Tensor, share_L: np.ndarray) -> tuple[torch.Tensor, float]:
        """(logits, shift): each layer measures what comes out of the corrected layers before it."""
        ratios = []

        def blended(index: int, x: torch.Tensor) -> torch.Tensor:
            measured, share = spread(x), float(share_L[index])
            self.used[index] = tuple(s + share * (m - s) for s, m in zip(self.source[index], measured, strict=True))
            ratios.append(log_ratio(measured[1].numpy(), self.source[index][1].numpy()))
            return self.by_used(index, x)

        with torch.no_grad():
            return self.net.through(images, blended), shift_size(ratios)

    def renormalised(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """gamma ((x - mu_b) / sd_b * r + d) + beta; r and d have no gradient."""
        (mean_C, var_C), (used_mean_C, used_var_C), eps = spread(x), self.used[index], self.net.norms[index].eps
        sd_C, used_sd_C = (var_C + eps).sqrt(), (used_var_C + eps).sqrt()
        r_C, d_C = (sd_C / used_sd_C).detach(), ((mean_C - used_mean_C) / used_sd_C).detach()
        weight_C, bias_C = self.affine[index]
        normal = (x - mean_C[:, None, None]) / sd_C[:, None, None] * r_C[:, None, None] + d_C[:, None, None]
        return weight_C[:, None, None] * normal + bias_C[:, None, None]

    def descend(self, loss_of: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, lr: float) -> float:
        trained = [value.requires_grad_(True) for pair in self.affine for value in pair]
        loss = loss_of(self.net.through(images, self.renormalised))
        gradients = torch.autograd.grad(loss, trained)
        for value, gradient, velocity in zip(trained, gradients, self.momentum, strict=True):
            velocity.mul_(0.9).add_(gradient)
            value.requires_grad_(False).sub_(lr * velocity)
        return float(loss.detach())


def entropy(p: torch.Tensor) -> torch.Tensor:
    return -(p * p.log()).sum(1)


def shown(scores: torch.Tensor) -> float:
    return diversity(np.unique(scores.argmax(1).numpy(), return_counts=True)[1], CLASSES)


def over_mirror(logits: torch.Tensor) -> torch.Tensor:
    straight, mirrored = logits.softmax(1).chunk(2)
    return (straight + mirrored) / 2


def reference_step(student: Reference, teacher: Reference | None, images: torch.Tensor, lr: float) -> dict[str, float]:
    count, layers = len(images), len(student.source)
    logits, shift = student.follow(images, shares(count, 1.0, 1.0, layers))
    trusted = trust(shift)
    student.follow(images, shares(count, trusted, shown(logits), layers))
    both = torch.cat([images, images.flip(3)])
    soft = over_mirror(student.net.through(both, student.by_used))
    if teacher is not None:
        told, _ = teacher.follow(both, shares(count, trusted, shown(soft), len(teacher.source)))
        soft = (over_mirror(told) + soft) / 2
    e_max = 0.4 * math.log(CLASSES)

    def loss_of(logits: torch.Tensor) -> torch.Tensor:
        p = logits.softmax(1)
        h_s, h_q = (e_max - entropy(p)).exp().detach(), (e_max - entropy(soft)).exp()
        kl, ce = (soft * (soft.log() - p.log())).sum(1), -p[torch.arange(count), soft.argmax(1)].log()
        return 3 * (h_s * entropy(p)).mean() + 3 * (h_q * kl).mean() + (h_q * ce).mean()

    return {"edge_loss": student.descend(loss_of, images, lr * trusted), "trust": trusted}


@pytest.mark.parametrize(("options", "lr"), [({}, 0.0025), ({"edge_lr": 0.05}, 0.05)])
@pytest.mark.parametrize("method", ["cema", "cema-lite"])
def test_steps_equal_the_equations_written_out(method: str, options: dict[str, float], lr: float) -> None:
    edge, foundation = Net(1), Net(2, width=9)
    adapter = create_adapter(method, edge, foundation, {**EXACT, **options})
    student, teacher = Reference(edge), Reference(foundation) if method == "cema" else None
    for number, replayed in enumerate([None, pictures(10, count=24), pictures(11, count=8)]):
        uploads = pictures(number)
        images = uploads if replayed is None else torch.cat([uploads, replayed])
        expected = reference_step(student, teacher, images, lr)
        assert 0.01 < expected["trust"] < 0.999, "the learning rate shall be scaled in this test"
        assert adapter.step(uploads, replayed) == pytest.approx(expected, rel=1e-4)
    published = adapter.edge_parameters()
    for index, norm in enumerate(edge.norms):
        for role, value in zip(("weight", "bias"), student.affine[index], strict=True):
            before = getattr(norm, role).detach().numpy()
            moved, expected_move = published[f"norms.{index}.{role}"] - before, value.numpy() - before
            furthest = float(np.abs(expected_move).max())
            assert furthest > lr / 10, "or the comparison would say nothing"
            np.testing.assert_allclose(moved, expected_move, rtol=0, atol=3e-4 * furthest + 3e-7)
    answered = student.net.through(images, student.by_used)
    np.testing.assert_allclose(adapter.edge_logits(images), answered, rtol=1e-4, atol=1e-4)


def assert_same(state: State, expected: State) -> None:
    assert state.keys() == expected.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def learned(method: str = "cema", steps: int = 2) -> Cema:
    adapter = create_adapter(method, Net(1), Net(2), EXACT)
    for number in range(steps):
        assert adapter.step(pictures(number), None) is not None
    assert isinstance(adapter, Cema)
    return adapter


@pytest.mark.parametrize("steps", [0, 2])
def test_too_few_images_change_nothing(steps: int) -> None:
    adapter = learned(steps=steps)
    before = adapter.state()
    assert adapter.step(pictures(7, count=15), None) is None
    assert adapter.step(pictures(7, count=8), pictures(8, count=7)) is None
    assert_same(adapter.state(), before)
    assert adapter.replay_step(pictures(7, count=64)) is None
    assert_same(adapter.state(), before)
    assert adapter.step(pictures(7, count=8), pictures(8, count=8)) is not None, "replay counts"
    easy = create_adapter("cema-lite", Net(1), None, {**EXACT, "least_images": 4})
    assert [easy.step(pictures(0, count=count), None) is None for count in (3, 4)] == [True, False]


def test_a_step_changes_norm_weights_and_biases_and_publishes_the_sources_statistics() -> None:
    edge, foundation = Net(1), Net(2)
    before = [copy.deepcopy(net.state_dict()) for net in (edge, foundation)]
    adapter = create_adapter("cema", edge, foundation, EXACT)
    assert isinstance(adapter, Cema)
    assert adapter.teacher is not None
    adapter.step(pictures(0), None)
    published = adapter.edge_parameters()
    for name, value in edge.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            np.testing.assert_array_equal(published[name], value, err_msg=name)
        elif name.startswith("norms") and not name.endswith("num_batches_tracked"):
            assert not np.array_equal(published[name], value), name
    for name, value in adapter.edge.model.named_parameters():
        assert torch.equal(value, edge.get_parameter(name)) == (not name.startswith("norms")), name
    for name, value in adapter.teacher.model.named_parameters():
        assert torch.equal(value, foundation.get_parameter(name)), name
    for net, unchanged in zip((edge, foundation), before, strict=True):
        assert all(torch.equal(value, unchanged[name]) for name, value in net.state_dict().items())


def test_all_forgotten_is_the_source_without_momentum_and_learns_as_a_fresh_one() -> None:
    adapter, fresh = learned(), learned(steps=0)
    for each in (adapter, fresh):  # there may be nothing to forget yet
        each.forget(1.0)
    assert_same(adapter.edge_parameters(), fresh.edge_parameters())
    momentum = {name: value for name, value in adapter.state().items() if "momentum" in name}
    assert len(momentum) == 6
    assert all(not value.any() for value in momentum.values())
    assert adapter.step(pictures(5), None) == fresh.step(pictures(5), None)
    assert_same(adapter.state(), fresh.state())


def test_a_quarter_forgotten_is_a_quarter_of_the_way_to_the_source() -> None:
    adapter, source = learned(), Net(1).state_dict()
    before = adapter.state()
    adapter.forget(0.25)
    after = adapter.state()
    for name, value in adapter.edge_parameters().items():
        if name.endswith(("weight", "bias")):
            expected = before[f"edge.{name}"] + 0.25 * (source[name].numpy() - before[f"edge.{name}"])
            np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-7, err_msg=name)
    for name in (name for name in before if "momentum" in name):
        np.testing.assert_allclose(after[name], 0.75 * before[name], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("method", ["cema", "cema-lite"])
def test_adapters_with_the_same_state_make_the_same_steps_to_the_bit(method: str) -> None:
    straight, resumed = learned(method), learned(method, steps=0)
    resumed.load_state(straight.state())
    assert torch.equal(resumed.edge_logits(pictures(3)), straight.edge_logits(pictures(3)))
    for adapter in (straight, resumed):
        adapter.forget(0.5)
    assert straight.step(pictures(3), pictures(4)) == resumed.step(pictures(3), pictures(4))
    assert_same(resumed.state(), straight.state())


def test_a_model_without_batch_norm_learns_at_full_trust() -> None:
    edge = LayerNormNet(1)
    adapter = create_adapter("cema", edge, Net(2), EXACT)
    metrics = adapter.step(pictures(0), None)
    assert metrics is not None
    assert metrics["trust"] == 1.0
    assert not np.array_equal(adapter.edge_parameters()["norm.weight"], edge.norm.weight.detach())
    losses = [adapter.step(pictures(0), None) for _ in range(20)]
    assert losses[-1]["edge_loss"] < metrics["edge_loss"]  # type: ignore[index]


def test_only_cema_lite_does_without_a_foundation_model() -> None:
    with pytest.raises(ConfigError, match="foundation") as caught:
        create_adapter("cema", Net(1), None, {})
    assert "cema-lite" in caught.value.hint
    assert isinstance(create_adapter("cema-lite", Net(1), None, {}), CemaLite)


@pytest.mark.parametrize("method", ["cema", "cema-lite"])
@pytest.mark.parametrize("options", [{"foundation_lr": 0.1}, {"edge_lr": -1.0}, {"least_images": 0}, {"momentum": 1.0}])
def test_wrong_options_are_refused_by_name(method: str, options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))) as caught:
        create_adapter(method, Net(1), Net(2), options)
    assert f"'{method}'" in caught.value.message
