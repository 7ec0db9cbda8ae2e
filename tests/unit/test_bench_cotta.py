"""``cotta`` against plain numpy in float64 (gradients by finite differences, Adam written out); its views by hand."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from torch import nn

from cema.bench.methods import METHODS, OnDevice
from cema.bench.methods.cotta import Cotta, CottaSettings
from cema.bench.methods.cotta_augment import Augment, AugmentStrength, blend, blur, grey, move, turn_hue
from cema.cloud.adapt.base import read_options
from cema.errors import ConfigError

CLASSES, FEATURES, EPS = 3, 4, 1e-5
NO_CHANGE = AugmentStrength(
    brightness=0, contrast=0, saturation=0, hue=0, gamma=0, rotation=0, shift=0, scale=0, blur=0, mirror=0, noise=0
)
UNIT = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def linear_net() -> nn.Sequential:
    """Without a bias before the batch norm: its gradient is zero, and Adam would step by the rounding error's sign."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(12, FEATURES, bias=False), nn.BatchNorm1d(FEATURES), nn.ReLU(),
        nn.Linear(FEATURES, CLASSES),
    )  # fmt: skip
    return net.double().eval()


def conv_net(classes: int = CLASSES) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes)
    ).eval()


def images(count: int, side: int = 8, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def pixels(count: int = 2, side: int = 8) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def softmax(logits: np.ndarray) -> np.ndarray:
    exponents: np.ndarray = np.exp(logits - logits.max(1, keepdims=True))
    result: np.ndarray = exponents / exponents.sum(1, keepdims=True)
    return result


def forward(theta: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Probabilities of ``linear_net`` with the batch's statistics; theta in the order of its parameters."""
    first, gamma, beta, last, bias = np.split(theta, np.cumsum([12 * FEATURES, FEATURES, FEATURES, FEATURES * CLASSES]))
    hidden = x @ first.reshape(FEATURES, 12).T
    normalised = (hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + EPS) * gamma + beta
    return softmax(np.maximum(normalised, 0) @ last.reshape(CLASSES, FEATURES).T + bias)


def parameters(net: nn.Module) -> np.ndarray:
    return np.concatenate([p.detach().numpy().ravel() for p in net.parameters()])


def test_teacher_student_and_answers_follow_the_equations() -> None:
    net = linear_net()
    theta = parameters(net)
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    method = Cotta(net, CottaSettings(lr=0.01, teacher_momentum=0.8, threshold=0.0, restore=0.0), 0)
    # student and teacher apart from the start: where they agree the gradient is zero, and Adam steps by rounding errors
    with torch.no_grad():
        for parameter in method.teacher.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(9)))
    teacher = parameters(method.teacher)
    for t in range(1, 5):
        batch = images(10, side=2, seed=t).double()
        x = batch.flatten(1).numpy()
        target = forward(teacher, x)
        np.testing.assert_allclose(method.predict(batch).numpy(), target, atol=1e-6)
        gradient = np.zeros_like(theta)
        for i, step in enumerate(np.eye(len(theta)) * 1e-6):
            up, down = (-(target * np.log(forward(theta + s, x))).sum(1).mean() for s in (step, -step))
            gradient[i] = (up - down) / 2e-6
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        theta = theta - 0.01 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        teacher = 0.8 * teacher + 0.2 * theta
        np.testing.assert_allclose(parameters(method.student), theta, atol=1e-6)
        np.testing.assert_allclose(parameters(method.teacher), teacher, atol=1e-6)
    assert np.abs(theta - parameters(method.source)).min() > 1e-4  # everything is trained


def test_views_are_averaged_when_the_source_is_in_doubt_and_only_then() -> None:
    x, count = images(6), 4
    confidence = float(Cotta(conv_net(), CottaSettings(), 0).source(x).softmax(1).amax(1).mean())
    sure = Cotta(conv_net(), CottaSettings(threshold=confidence - 0.001, augmentations=count), 0)
    doubtful = Cotta(conv_net(), CottaSettings(threshold=confidence + 0.001, augmentations=count), 0)
    with torch.no_grad():
        plain = sure.teacher(x).softmax(1)
        augment = Augment(torch.Generator().manual_seed(0))
        averaged = (sum(sure.teacher(augment(x)) for _ in range(count)) / count).softmax(1)
    torch.testing.assert_close(sure.predict(x), plain)
    torch.testing.assert_close(doubtful.predict(x), averaged)
    assert not torch.allclose(plain, averaged, atol=1e-3)


def test_batch_statistics_are_those_of_the_batch() -> None:
    x = images(6)
    settings = CottaSettings(threshold=0.0)
    plain, contrasted = (Cotta(conv_net(), settings, 0).predict(factor * x) for factor in (1, 4))
    torch.testing.assert_close(plain, contrasted, rtol=1e-2, atol=1e-3)
    assert not torch.allclose(conv_net()(x).softmax(1), conv_net()(4 * x).softmax(1), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(("restore", "low", "high"), [(0.0, 0.0, 0.0), (0.3, 0.2, 0.4), (1.0, 1.0, 1.0)])
def test_a_share_of_the_numbers_falls_back_to_the_source(restore: float, low: float, high: float) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 20), nn.Linear(20, 3)).eval()
    source = parameters(net)
    method = Cotta(net, CottaSettings(threshold=0.0, restore=restore), 5)
    method._learn(images(4, side=4), torch.tensor([[3.0, 0.0, -1.0]]).expand(4, 3))
    moved = parameters(method.student) != source
    method._restore()
    back = parameters(method.student) == source
    assert moved.mean() > 0.95
    assert low <= back[moved].mean() <= high


def test_a_seed_gives_one_result_and_another_seed_another() -> None:
    def run(seed: int) -> torch.Tensor:
        method = Cotta(conv_net(), CottaSettings(threshold=1.0, augmentations=2, restore=0.2), seed)
        torch.manual_seed(seed + torch.seed() % 7)  # the global generator must not matter
        return torch.cat([method.predict(images(4, seed=step)) for step in range(3)])

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))


def test_batches_of_one_image_and_two_classes() -> None:
    method = Cotta(conv_net(classes=2), CottaSettings(augmentations=2), 0)
    for seed in range(3):
        answer = method.predict(images(1, seed=seed))
        assert answer.shape == (1, 2)
        assert answer.dtype == torch.float32
        assert torch.isfinite(answer).all()


def test_many_classes_get_the_published_threshold_and_share_for_imagenet() -> None:
    entry = METHODS["cotta"]
    assert isinstance(entry, OnDevice)
    s = read_options(CottaSettings, "cotta", entry.many_classes)
    assert (s.threshold, s.restore, s.teacher_momentum, s.augmentations) == (0.1, 0.001, 0.999, 32)
    published = CottaSettings()
    assert (published.threshold, published.restore) == (0.92, 0.01)


def test_views_have_the_strengths_of_the_released_code() -> None:
    """In its terms: ranges of factors, degrees, and parts of a side that was padded to twice its length."""
    s = AugmentStrength()
    reach = {"brightness": s.brightness, "contrast": s.contrast, "saturation": s.saturation, "gamma": s.gamma}
    ranges = {name: (round(1 - r, 9), round(1 + r, 9)) for name, r in reach.items()}
    assert ranges == {"brightness": (0.6, 1.4), "contrast": (0.7, 1.3), "saturation": (0.5, 1.5), "gamma": (0.7, 1.3)}
    assert (s.hue, s.rotation, s.shift, s.scale) == (0.06, 15.0, 2 * 1 / 16, 0.1)
    assert (s.blur, s.mirror, s.noise) == (0.5, 0.5, 0.005)


def test_settings_have_ranges() -> None:
    settings = read_options(CottaSettings, "cotta", {"threshold": 0.72, "augmentations": 8})
    assert (settings.lr, settings.teacher_momentum, settings.threshold, settings.restore) == (0.001, 0.999, 0.72, 0.01)
    for wrong in ({"threshold": 1.1}, {"augmentations": 0}, {"restore": -0.1}, {"views": 3}):
        with pytest.raises(ConfigError):
            read_options(CottaSettings, "cotta", wrong)


def test_a_view_without_strength_is_the_picture() -> None:
    x = (pixels() - 0.4) / 0.2
    augment = Augment(torch.Generator().manual_seed(0), (0.4,) * 3, (0.2,) * 3, NO_CHANGE)
    torch.testing.assert_close(augment(x), x, rtol=1e-6, atol=1e-6)


def test_views_differ_stay_pixels_and_repeat_with_the_seed() -> None:
    x = (pixels(3, 16) - 0.4) / 0.2
    views = [Augment(torch.Generator().manual_seed(seed), (0.4,) * 3, (0.2,) * 3)(x) for seed in (0, 0, 1)]
    assert torch.equal(views[0], views[1])
    assert not torch.allclose(views[0], views[2], atol=0.1)
    back = views[0] * 0.2 + 0.4
    assert -1e-6 <= back.min() <= back.max() <= 1 + 1e-6
    assert views[0].shape == x.shape


def test_draws_cover_their_ranges() -> None:
    """Brightness alone on grey 0.5: factors 0.6..1.4 uniformly."""
    strength = AugmentStrength(
        contrast=0, saturation=0, hue=0, gamma=0, rotation=0, shift=0, scale=0, blur=0, mirror=0, noise=0
    )
    augment = Augment(torch.Generator().manual_seed(0), strength=strength, **UNIT)
    factors = np.array([float(augment(torch.full((1, 3, 1, 1), 0.5)).mean()) / 0.5 for _ in range(200)])
    assert 0.6 <= factors.min() < 0.62
    assert 1.38 < factors.max() <= 1.4
    assert abs(factors.mean() - 1) < 0.05


def test_mirror_and_noise_have_their_strength() -> None:
    x = pixels(1, 4)
    only = dict.fromkeys(AugmentStrength.__struct_fields__, 0.0)
    augment = Augment(torch.Generator().manual_seed(0), strength=AugmentStrength(**{**only, "mirror": 0.5}), **UNIT)
    mirrored = [torch.allclose(augment(x), x.flip(3), atol=1e-6) for _ in range(100)]
    assert 30 < sum(mirrored) < 70
    augment = Augment(torch.Generator().manual_seed(0), strength=AugmentStrength(**{**only, "noise": 0.005}), **UNIT)
    flat = torch.full((1, 3, 64, 64), 0.5, dtype=torch.float64)
    assert abs(float((augment(flat) - flat).std()) - 0.005) < 2e-4


@pytest.mark.parametrize("turns", [-0.4, -0.06, 0.0, 0.03, 0.5])
def test_hue_turns_as_in_the_standard_library(turns: float) -> None:
    x = torch.cat([pixels(1, 4), torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.3)]).double()
    result = turn_hue(x, turns)
    for colour, turned in zip(
        x.permute(0, 2, 3, 1).reshape(-1, 3).tolist(), result.permute(0, 2, 3, 1).reshape(-1, 3).tolist(), strict=True
    ):
        hue, saturation, value = colorsys.rgb_to_hsv(*colour)
        np.testing.assert_allclose(turned, colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value), atol=1e-9)


def test_blending_moves_away_from_grey_and_clips() -> None:
    x = torch.tensor([0.2, 0.6, 0.9]).view(1, 3, 1, 1).double()
    luma = 0.2989 * 0.2 + 0.587 * 0.6 + 0.114 * 0.9
    np.testing.assert_allclose(grey(x).item(), luma)
    expected = [luma + 1.5 * (c - luma) for c in (0.2, 0.6, 0.9)]
    assert expected[2] > 1
    np.testing.assert_allclose(blend(x, grey(x), 1.5).flatten(), [*expected[:2], 1.0])


@pytest.mark.parametrize("degrees", [90.0, -90.0, 180.0])
def test_turning_by_right_angles_is_exact(degrees: float) -> None:
    x = pixels(2, 5)
    turned = move(x, degrees, 1.0, (0.0, 0.0))
    candidates = [torch.rot90(x, k, (2, 3)) for k in ((1, 3) if abs(degrees) == 90 else (2,))]
    assert any(torch.allclose(turned, candidate, atol=1e-6) for candidate in candidates)
    torch.testing.assert_close(move(turned, -degrees, 1.0, (0.0, 0.0)), x, rtol=1e-6, atol=1e-6)


def test_shifting_and_enlarging_pictures_that_are_not_square() -> None:
    x = torch.rand(1, 3, 4, 8, generator=torch.Generator().manual_seed(0))
    shifted = move(x, 0.0, 1.0, (0.25, -0.25))  # 2 px to the right, 1 px up
    torch.testing.assert_close(shifted[..., :3, 2:], x[..., 1:, :6])
    torch.testing.assert_close(shifted[..., :3, :2], x[..., 1:, :1].expand(1, 3, 3, 2))  # the border goes on
    ramp = torch.arange(8.0).view(1, 1, 1, 8).expand(1, 3, 4, 8)
    steps = move(ramp, 0.0, 1.25, (0.0, 0.0)).diff(dim=3)
    torch.testing.assert_close(steps, torch.full_like(steps, 0.8))
    turned = move(ramp, 30.0, 1.0, (0.0, 0.0))[0, 0, 1:3, 3:5]  # inside: a plane of slope 1 px per px, turned
    slope = torch.stack([turned.diff(dim=1).mean(), turned.diff(dim=0).mean().abs()])
    torch.testing.assert_close(slope, torch.tensor([3**0.5 / 2, 0.5]), rtol=1e-4, atol=1e-4)


def test_blurring_by_a_gaussian_of_five_taps() -> None:
    point = torch.zeros(1, 3, 9, 9, dtype=torch.float64)
    point[..., 4, 4] = 1
    weights = np.exp(-(np.arange(-2, 3) ** 2) / (2 * 0.5**2))
    weights /= weights.sum()
    spread = blur(point, 0.5)[0, 1].numpy()
    np.testing.assert_allclose(spread[2:7, 2:7], np.outer(weights, weights), atol=1e-12)
    np.testing.assert_allclose(spread.sum(), 1)
    flat = torch.full((1, 3, 2, 2), 0.7, dtype=torch.float64)  # smaller than the kernel
    torch.testing.assert_close(blur(flat, 0.5), flat)
    torch.testing.assert_close(blur(point, 0.001), point)
