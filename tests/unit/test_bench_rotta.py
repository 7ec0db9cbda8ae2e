"""``rotta`` against plain numpy in float64: the memory, the robust normalisation, and whole updates."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from torch import nn

from cema.bench.methods.cotta_augment import Augment
from cema.bench.methods.rotta import RobustNorm, Rotta, RottaSettings, robust
from cema.bench.methods.rotta_memory import Memory
from cema.cloud.adapt.base import read_options
from cema.errors import ConfigError

CLASSES, HIDDEN, EPS, PIXELS = 3, 4, 1e-5, 48


def linear_net() -> nn.Sequential:
    """Two batch norms with statistics of their own: the second sees what the first does to its batch."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(PIXELS, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU(),
        nn.Linear(HIDDEN, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES),
    )  # fmt: skip
    for layer in (net[2], net[5]):
        layer.get_buffer("running_mean").normal_(0, 0.3)
        layer.get_buffer("running_var").uniform_(0.3, 0.8)
    return net.double().eval()


def conv_net(classes: int = CLASSES) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes)
    ).eval()


def images(count: int, side: int = 4, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def softmax(logits: np.ndarray) -> np.ndarray:
    exponents: np.ndarray = np.exp(logits - logits.max(1, keepdims=True))
    result: np.ndarray = exponents / exponents.sum(1, keepdims=True)
    return result


class PlainMemory:
    """One list of dicts in order of arrival, every rule spelled out."""

    def __init__(self, n: int, classes: int) -> None:
        self.n, self.classes = n, classes
        self.items: list[dict[str, float]] = []

    def score(self, item: dict[str, float]) -> float:
        return 1 / (1 + math.exp(-item["age"] / self.n)) + item["entropy"] / math.log(self.classes)

    def add(self, key: int, label: int, entropy: float) -> None:
        new = {"key": key, "label": label, "entropy": entropy, "age": 0}
        count = [sum(item["label"] == k for item in self.items) for k in range(self.classes)]
        if count[label] < self.n / self.classes and len(self.items) < self.n:
            self.items.append(new)
        else:
            if count[label] < self.n / self.classes:
                candidates = [item for item in self.items if count[int(item["label"])] == max(count)]
            else:
                candidates = [item for item in self.items if item["label"] == label]
            worst = max(candidates, key=self.score)
            if self.score(worst) > self.score(new):
                self.items.remove(worst)
                self.items.append(new)
        for item in self.items:
            item["age"] += 1


def contents(memory: Memory) -> set[tuple[int, int, int]]:
    return {(int(item.image[0, 0, 0]), item.label, item.age) for item in memory.all()}


def picture(key: int) -> torch.Tensor:
    return torch.full((3, 1, 1), float(key))


@pytest.mark.parametrize(("capacity", "classes"), [(8, 3), (64, 10), (4, 7), (5, 2)])
def test_the_memory_keeps_what_the_papers_algorithm_keeps(capacity: int, classes: int) -> None:
    rng = np.random.default_rng(0)
    memory, plain = Memory(capacity, classes, 1.0, 1.0), PlainMemory(capacity, classes)
    for key in range(6 * capacity):
        # runs of a class, as on the streams that the method was made for
        label = int(key // 5 % classes) if key % 2 else int(rng.integers(classes))
        entropy = float(rng.uniform(0, math.log(classes)))
        memory.add(picture(key), label, entropy)
        plain.add(key, label, entropy)
        assert contents(memory) == {(int(i["key"]), int(i["label"]), int(i["age"])) for i in plain.items}
        assert len(memory) <= capacity
    assert {item.label for item in memory.all()} == set(range(classes)) or capacity < classes


def test_a_class_that_has_its_share_replaces_its_own_worst() -> None:
    memory = Memory(4, 2, 1.0, 1.0)
    for key, entropy in enumerate((0.1, 0.6, 0.2)):
        memory.add(picture(key), 0, entropy)
    # two of class 0 fill its share: the third came in place of the uncertain one
    assert [int(item.image[0, 0, 0]) for item in memory.all()] == [0, 2]
    memory.add(picture(3), 0, 0.69)
    assert [int(item.image[0, 0, 0]) for item in memory.all()] == [0, 2]  # worse than all: stays out


def test_a_rare_class_takes_the_place_of_the_largest() -> None:
    memory = Memory(3, 2, 1.0, 1.0)  # a share of 1.5: two are in before it is full
    for key, label in enumerate((0, 0, 1)):
        memory.add(picture(key), label, 0.3)
    memory.add(picture(3), 1, 0.1)
    assert contents(memory) == {(1, 0, 3), (2, 1, 2), (3, 1, 1)}


def test_score_weighs_age_and_uncertainty() -> None:
    memory = Memory(10, 4, 2.0, 3.0)
    memory.add(picture(0), 1, 0.5)
    memory.add(picture(1), 2, 0.0)
    (item,) = memory.items[1]
    assert item.age == 2
    assert memory.score(item) == pytest.approx(2 / (1 + math.exp(-0.2)) + 3 * 0.5 / math.log(4))


def test_a_memory_of_one_class_does_not_divide_by_zero() -> None:
    memory = Memory(2, 1, 1.0, 1.0)
    for key in range(4):
        memory.add(picture(key), 0, 0.0)
    assert len(memory) == 2


class PlainNet:
    """``linear_net`` with theta = gamma, beta, gamma, beta and statistics of its own."""

    def __init__(self, net: nn.Sequential, alpha: float) -> None:
        self.state = {name: value.detach().numpy().copy() for name, value in net.state_dict().items()}
        self.linear = [(self.state[f"{i}.weight"], self.state[f"{i}.bias"]) for i in (1, 4, 7)]
        self.statistics = [(self.state[f"{i}.running_mean"], self.state[f"{i}.running_var"]) for i in (2, 5)]
        self.theta = np.concatenate([np.ones(HIDDEN), np.zeros(HIDDEN)] * 2)
        self.alpha = alpha

    def forward(self, x: np.ndarray, theta: np.ndarray, train: bool, keep: bool = False) -> np.ndarray:
        for layer, (gamma, beta) in enumerate(theta.reshape(2, 2, HIDDEN)):
            weight, bias = self.linear[layer]
            x = x @ weight.T + bias
            mean, var = self.statistics[layer]
            if train:
                mean = (1 - self.alpha) * mean + self.alpha * x.mean(0)
                var = (1 - self.alpha) * var + self.alpha * x.var(0)
                if keep:
                    self.statistics[layer] = (mean, var)
            x = np.maximum((x - mean) / np.sqrt(var + EPS) * gamma + beta, 0)
        return softmax(x @ self.linear[2][0].T + self.linear[2][1])


def by_differences(student: PlainNet, view: np.ndarray, target: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Gradient of the loss in the student's parameters, by central differences."""

    def loss(theta: np.ndarray) -> float:
        return float((weight * -(target * np.log(student.forward(view, theta, train=True))).sum(1)).mean())

    gradient = np.zeros_like(student.theta)
    for i, nudge in enumerate(np.eye(len(gradient)) * 1e-6):
        gradient[i] = (loss(student.theta + nudge) - loss(student.theta - nudge)) / 2e-6
    return gradient


def assert_alike(pairs: Iterable[tuple[nn.Module, PlainNet]]) -> None:
    for network, plain in pairs:
        norms = [layer for layer in network.modules() if isinstance(layer, RobustNorm)]
        theta = np.concatenate([np.concatenate([n.weight.detach(), n.bias.detach()]) for n in norms])
        np.testing.assert_allclose(theta, plain.theta, atol=1e-5)
        for norm, (mean, var) in zip(norms, plain.statistics, strict=True):
            np.testing.assert_allclose(norm.get_buffer("running_mean"), mean, atol=1e-6)
            np.testing.assert_allclose(norm.get_buffer("running_var"), var, atol=1e-6)


def test_answers_and_updates_follow_the_equations() -> None:
    settings = RottaSettings(lr=0.01, statistics_rate=0.3, teacher_rate=0.2, capacity=8, update_every=6)
    net = linear_net()
    teacher, student = PlainNet(net, 0.3), PlainNet(net, 0.3)
    memory = PlainMemory(8, CLASSES)
    stream: list[np.ndarray] = []
    m, v, t = np.zeros(4 * HIDDEN), np.zeros(4 * HIDDEN), 0
    augment = Augment(torch.Generator().manual_seed(3))
    method = Rotta(net, settings, 3)
    for step in range(9):
        batch = images(4, seed=step).double()
        x = batch.flatten(1).numpy()
        p = teacher.forward(x, teacher.theta, train=False)
        np.testing.assert_allclose(method.predict(batch).numpy(), p, atol=1e-6)
        for image, p_K in zip(x, p, strict=True):
            memory.add(len(stream), int(p_K.argmax()), float(-(p_K * np.log(p_K)).sum()))
            stream.append(image)
            if len(stream) % 6:
                continue
            t += 1
            held = sorted(memory.items, key=lambda item: item["label"])
            age = np.array([item["age"] / 8 for item in held])
            inputs = np.stack([stream[int(item["key"])] for item in held])
            view = augment(torch.from_numpy(inputs).view(-1, 3, 4, 4)).flatten(1).numpy()
            target = teacher.forward(inputs, teacher.theta, train=True, keep=True)
            weight = np.exp(-age) / (1 + np.exp(-age))

            gradient = by_differences(student, view, target, weight)
            student.forward(view, student.theta, train=True, keep=True)
            m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
            student.theta = student.theta - 0.01 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
            teacher.theta = 0.8 * teacher.theta + 0.2 * student.theta
    assert t == 6
    assert_alike(((method.teacher, teacher), (method.student, student)))
    assert np.abs(student.theta - PlainNet(linear_net(), 0.3).theta).max() > 0.02


def test_only_batch_norms_are_trained() -> None:
    method = Rotta(conv_net(), RottaSettings(capacity=4, update_every=4), 0)
    trained = {name for name, parameter in method.student.named_parameters() if parameter.requires_grad}
    assert trained == {"1.weight", "1.bias"}
    assert not any(parameter.requires_grad for parameter in method.teacher.parameters())
    source = conv_net().state_dict()
    method.predict(images(8, side=8))
    for name, value in method.student.state_dict().items():
        moves = name in {"1.weight", "1.bias", "1.running_mean", "1.running_var"}
        assert torch.equal(value, source[name]) != moves, name


def test_the_teacher_answers_by_source_statistics_until_the_first_update() -> None:
    x = images(6, side=8)
    method = Rotta(conv_net(), RottaSettings(update_every=12), 0)
    expected = conv_net()(x).softmax(1).detach()
    torch.testing.assert_close(method.predict(x), expected)
    torch.testing.assert_close(method.predict(x), expected)
    assert not torch.allclose(method.predict(x), expected, atol=1e-4)


def test_answers_of_small_batches_equal_those_of_one_batch_between_updates() -> None:
    x = images(8, side=8)
    whole, singly = (Rotta(conv_net(), RottaSettings(update_every=8, capacity=8), 0) for _ in range(2))
    first = whole.predict(x)
    torch.testing.assert_close(torch.cat([singly.predict(image) for image in x.chunk(8)]), first)
    torch.testing.assert_close(singly.predict(x), whole.predict(x))
    assert not torch.allclose(whole.predict(x), first, atol=1e-4)


def test_robust_norm_of_one_value_per_channel() -> None:
    layer = nn.BatchNorm2d(2)
    norm = RobustNorm(layer, 0.05).train()
    out = norm(torch.tensor([1.0, -3.0]).view(1, 2, 1, 1))
    assert norm.running_mean is not None
    np.testing.assert_allclose(norm.running_mean, [0.05, -0.15], rtol=1e-6)
    expected = [(1 - 0.05) / math.sqrt(0.95 + 1e-5), (-3 + 0.15) / math.sqrt(0.95 + 1e-5)]
    np.testing.assert_allclose(out.detach().flatten(), expected, rtol=1e-6)
    assert torch.equal(layer.running_mean, torch.zeros(2))  # type: ignore[arg-type]


def test_batches_of_one_image_and_two_classes() -> None:
    method = Rotta(conv_net(classes=2), RottaSettings(update_every=1, capacity=1), 0)
    for seed in range(4):
        answer = method.predict(images(1, side=8, seed=seed))
        assert answer.shape == (1, 2)
        assert answer.dtype == torch.float32
        assert torch.isfinite(answer).all()


def test_a_seed_gives_one_result_and_another_seed_another() -> None:
    def run(seed: int) -> torch.Tensor:
        method = Rotta(conv_net(), RottaSettings(update_every=4, capacity=8, lr=0.05, teacher_rate=0.5), seed)
        torch.manual_seed(torch.seed() % 7)  # the global generator must not matter
        return torch.cat([method.predict(images(4, side=8, seed=step)) for step in range(3)])

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))


def test_models_without_statistics_are_refused() -> None:
    with pytest.raises(ConfigError, match="the model has none"):
        Rotta(nn.Sequential(nn.Flatten(), nn.Linear(3, 2)), RottaSettings(), 0)
    with pytest.raises(ConfigError, match="running statistics"):
        robust(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)), 0.05)
    assert isinstance(robust(nn.BatchNorm1d(3), 0.05), RobustNorm)


def test_settings_have_ranges() -> None:
    assert read_options(RottaSettings, "rotta", {"capacity": 32}).capacity == 32
    published = RottaSettings()
    assert (published.lr, published.statistics_rate, published.teacher_rate) == (0.001, 0.05, 0.001)
    assert (published.capacity, published.update_every, published.lambda_t, published.lambda_u) == (64, 64, 1.0, 1.0)
    for wrong in ({"capacity": 0}, {"statistics_rate": 0}, {"lambda_t": -1}, {"nu": 0.1}):
        with pytest.raises(ConfigError):
            read_options(RottaSettings, "rotta", wrong)
