"""``lame`` against the paper's equations written out in numpy, number by number."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from cema.bench.methods.lame import Lame, LameSettings, knn_affinity, laplacian_adjusted, rbf_affinity
from cema.cloud.adapt.base import read_options
from cema.errors import ConfigError


def tiny_net(classes: int = 5) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes)
    ).eval()


def images(count: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def softmax(logits: np.ndarray) -> np.ndarray:
    exponents: np.ndarray = np.exp(logits - logits.max(-1, keepdims=True))
    result: np.ndarray = exponents / exponents.sum(-1, keepdims=True)
    return result


def plain_affinity(kind: str, features: np.ndarray, k: int) -> np.ndarray:
    unit = [f / np.sqrt((f**2).sum()) for f in features]
    n = len(unit)
    distance = np.array([[np.sqrt(((a - b) ** 2).sum()) for b in unit] for a in unit])
    w = np.zeros((n, n))
    if kind == "knn":
        for i in range(n):
            others = sorted((j for j in range(n) if j != i), key=lambda j: distance[i, j])
            for j in others[:k]:
                w[i, j] = 1
        return w
    width = np.mean([sorted(row)[min(k, n) - 1] for row in distance])
    w[:] = np.exp(-(distance**2) / (2 * width**2))
    return w


def plain_lame(features: np.ndarray, logits: np.ndarray, kind: str, k: int) -> np.ndarray:
    q, w = softmax(logits), plain_affinity(kind, features, k)
    z = q.copy()
    for _ in range(3000):
        new = np.zeros_like(z)
        for i in range(len(z)):
            new[i] = q[i] * np.exp(sum(w[i, j] * z[j] for j in range(len(z))))
            new[i] /= new[i].sum()
        if np.abs(new - z).max() < 1e-14:
            break
        z = new
    return z


@pytest.mark.parametrize("kind", ["knn", "rbf"])
@pytest.mark.parametrize(("count", "k"), [(9, 5), (9, 2), (4, 5), (2, 3)])
def test_answers_are_the_fixed_point_of_the_papers_update(kind: str, count: int, k: int) -> None:
    model, x = tiny_net(), images(count)
    with torch.no_grad():
        features, logits = model[:-1](x).double().numpy(), model(x).double().numpy()
    method = Lame(model, LameSettings(affinity=kind, neighbours=k, max_steps=1000), 0)  # type: ignore[arg-type]
    answer = method.predict(x)
    assert answer.dtype == torch.float32
    np.testing.assert_allclose(answer.numpy(), plain_lame(features, logits, kind, k), atol=2e-3)
    assert np.abs(answer.numpy() - softmax(logits)).max() > 0.02  # it did something


def test_one_step_by_hand() -> None:
    q = np.array([[0.5, 0.5], [0.8, 0.2]])
    z = laplacian_adjusted(torch.from_numpy(np.log(q)), torch.tensor([[0.0, 1.0], [0.0, 0.0]]).double(), 1, 0.0)
    pulled = 0.5 * math.exp(0.8) / (0.5 * math.exp(0.8) + 0.5 * math.exp(0.2))
    np.testing.assert_allclose(z.numpy(), [[pulled, 1 - pulled], [0.8, 0.2]], rtol=1e-12)


def test_the_iteration_ends_when_the_energy_rests_or_the_steps_are_used_up() -> None:
    log_q = torch.from_numpy(np.log(np.array([[0.4, 0.6], [0.7, 0.3], [0.55, 0.45]])))
    w = torch.ones(3, 3).double() - torch.eye(3)
    rest = laplacian_adjusted(log_q, w, 1000, 0.0)
    assert torch.allclose(laplacian_adjusted(log_q, w, 1000, 1e-8), rest, atol=1e-3)
    one, two = laplacian_adjusted(log_q, w, 1, 1e-8), laplacian_adjusted(log_q, w, 2, 1e-8)
    assert not torch.allclose(one, two, atol=1e-3)
    assert torch.equal(laplacian_adjusted(log_q, w, 1000, 1e9), two)  # the second energy is the first to compare


def test_a_doubtful_picture_follows_its_neighbours() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        model.get_parameter("1.weight").copy_(torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 2.0]]))
    x = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.1, 0.0], [0.3, 1.0, 0.35]]).view(3, 3, 1, 1)
    alone = model(x).softmax(1)
    answer = Lame(model, LameSettings(neighbours=2), 0).predict(x)
    assert alone[2].argmax() == 1
    assert answer[2].argmax() == 0


@pytest.mark.parametrize("kind", ["knn", "rbf"])
def test_one_picture_alone_is_answered(kind: str) -> None:
    model, x = tiny_net(classes=2), images(1)
    answer = Lame(model, LameSettings(affinity=kind), 0).predict(x)  # type: ignore[arg-type]
    assert torch.isfinite(answer).all()
    if kind == "knn":
        torch.testing.assert_close(answer, model(x).softmax(1).detach())


def test_equal_pictures_are_each_others_neighbours_not_their_own() -> None:
    equal = torch.ones(3, 4).double()
    assert torch.equal(knn_affinity(equal, 2), torch.ones(3, 3).double() - torch.eye(3))
    assert torch.equal(rbf_affinity(equal, 2), torch.ones(3, 3).double())


def test_nothing_is_remembered() -> None:
    x = images(6)
    method = Lame(tiny_net(), LameSettings(), 0)
    first = method.predict(x)
    method.predict(images(6, seed=2) * 5)
    assert torch.equal(method.predict(x), first)


def test_batch_statistics_are_a_setting() -> None:
    """They make the answer independent of the contrast of the pictures."""
    x = images(6)
    settings = LameSettings(neighbours=1)
    plain, contrasted = (Lame(tiny_net(), settings, 0).predict(factor * x) for factor in (1, 4))
    assert not torch.allclose(plain, contrasted, atol=1e-2)
    settings = LameSettings(neighbours=1, batch_statistics=True)
    plain, contrasted = (Lame(tiny_net(), settings, 0).predict(factor * x) for factor in (1, 4))
    torch.testing.assert_close(plain, contrasted, rtol=1e-2, atol=1e-3)


def test_settings_have_ranges() -> None:
    assert read_options(LameSettings, "lame", {"affinity": "rbf", "neighbours": 3}) == LameSettings(
        affinity="rbf", neighbours=3
    )
    for wrong in ({"affinity": "linear"}, {"neighbours": 0}, {"max_steps": 0}, {"unknown": 1}):
        with pytest.raises(ConfigError):
            read_options(LameSettings, "lame", wrong)
    with pytest.raises(AttributeError):
        LameSettings().neighbours = 2  # type: ignore[misc]


def test_published_numbers_are_the_defaults() -> None:
    s = LameSettings()
    assert (s.affinity, s.neighbours, s.max_steps, s.tolerance, s.batch_statistics) == ("knn", 5, 100, 1e-8, False)
