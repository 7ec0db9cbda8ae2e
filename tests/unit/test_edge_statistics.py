"""A device's own norm statistics: what a plain running average in torch gives, and what the cloud's rule gives."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cema.cloud.adapt.blended import Blended
from cema.cloud.export import build_bundle
from cema.cloud.norms import read_parameters, write_parameters
from cema.edge.measuring import MeasuringSession, statistics_of
from cema.edge.memory import ClassMemory, pixel_style
from cema.edge.session import EdgeSession
from cema.edge.statistics import LocalStatistics, StatisticsSettings
from cema.types import Float32Array, NormParameters, Uint8Array
from cema.wire.blend import BLEND, diversity, log_ratio, shares, shift_size, trust
from cema.wire.bundle import Bundle
from cema.wire.messages import Preprocess
from cema.wire.preprocess import normalise

RECIPE = Preprocess(size=(16, 16))
CLASSES = ["a", "b", "c", "d", "e"]
LAYERS = 4


def scenes(count: int, seed: int) -> Uint8Array:
    """Smooth pictures of middling light, each another."""
    coarse = torch.rand((count, 3, 4, 4), generator=torch.Generator().manual_seed(seed)) * 120 + 60
    fine = nn.functional.interpolate(coarse, (16, 16), mode="bilinear", align_corners=True)
    return fine.permute(0, 2, 3, 1).to(torch.uint8).contiguous().numpy()


def darkened(images: Uint8Array) -> Uint8Array:
    return images // np.uint8(4)


def noisy(images: Uint8Array) -> Uint8Array:
    noise = np.random.default_rng(0).normal(0, 40, images.shape)
    return np.clip(images + noise, 0, 255).astype(np.uint8)


def in_torch(images: Uint8Array) -> torch.Tensor:
    return torch.from_numpy(normalise(images, RECIPE))


@pytest.fixture(scope="module")
def module() -> nn.Module:
    """Trained, as far as statistics go, on scenes."""
    torch.manual_seed(0)
    norms = [nn.BatchNorm2d(8, momentum=None) for _ in range(LAYERS)]
    blocks = [part for norm in norms for part in (nn.LazyConv2d(8, 3, padding=1, bias=False), norm, nn.ReLU())]
    built = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(len(CLASSES)))
    with torch.no_grad():
        built.train()(in_torch(scenes(512, 100)))
        built[-1].bias -= built.eval()(in_torch(noisy(scenes(64, 100)))).mean(0)  # so that it tells classes apart
    return built


@pytest.fixture(scope="module")
def bundle(module: nn.Module) -> Bundle:
    return build_bundle(module, name="net", preprocess=RECIPE, classes=CLASSES)


@pytest.fixture(scope="module")
def measuring(bundle: Bundle) -> MeasuringSession:
    return MeasuringSession(bundle, threads=1)


@pytest.fixture
def weights(bundle: Bundle) -> NormParameters:
    """As an update brings them: other weights and biases, and statistics that are to be ignored."""
    rng = np.random.default_rng(5)
    return {
        name: (value + rng.uniform(0, 0.5, value.shape)).astype(np.float32)
        for name, value in bundle.source_parameters().items()
    }


def statistics(measuring: MeasuringSession, **settings: int) -> LocalStatistics:
    return LocalStatistics(measuring, len(CLASSES), np.random.default_rng(0), StatisticsSettings(**settings))


def even(count: int) -> list[int]:
    return [index % len(CLASSES) for index in range(count)]


def show(own: LocalStatistics, images: Uint8Array, labels: list[int] | None = None) -> None:
    own.arrive(images)
    own.take_in(images, even(len(images)) if labels is None else labels)


class Plain:
    """Running average per layer, in torch: no graph, and nothing of the edge's arithmetic."""

    def __init__(self, module: nn.Module, weights: NormParameters) -> None:
        self.module, source = copy.deepcopy(module), read_parameters(module)
        write_parameters(self.module, {**weights, **{k: v for k, v in source.items() if "running" in k}})
        self.norms = [layer for layer in self.module.modules() if isinstance(layer, _BatchNorm)]
        self.source = [(layer.running_mean.clone(), layer.running_var.clone()) for layer in self.norms]
        self.pool: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.rounds, self.shift = 0, 0.0

    @torch.no_grad()
    def measure(self, images: Uint8Array, of: int, share_L: Float32Array, keep: bool = True) -> torch.Tensor:
        """of: pictures in the memory."""
        weight, pool, ratios, noises = max(1 / (self.rounds + 1), len(images) / of), [], [], []
        x = in_torch(images)
        for part in self.module:
            if isinstance(part, _BatchNorm):
                index = len(pool)
                measured = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
                spread_BC = ((x - measured[0][:, None, None]) ** 2).mean((2, 3))
                noises.append((weight * spread_BC.var(0, unbiased=False) / len(x) / measured[1] ** 2).numpy())
                old = self.pool[index] if self.pool else measured
                pool.append(tuple(o + weight * (m - o) for o, m in zip(old, measured, strict=True)))
                ratios.append(log_ratio(pool[-1][1].numpy(), self.source[index][1].numpy()))
                for buffer, source, value in zip(
                    (part.running_mean, part.running_var), self.source[index], pool[-1], strict=True
                ):
                    buffer.copy_(source + float(share_L[index]) * (value - source))
            x = part(x)
        self.shift = shift_size(ratios, noises)
        if keep:
            self.pool, self.rounds = pool, self.rounds + 1
        return x

    def refresh(self, memory: ClassMemory, measured: int, size: int, first: bool) -> None:
        pictures, n, shown = memory.pictures(measured), len(memory), diversity(memory.counts(), len(CLASSES))
        if first:
            glimpse = self.measure(pictures[:size], n, shares(n, 1.0, shown, LAYERS), keep=False)
            shown = max(shown, diversity(glimpse.argmax(1).unique(return_counts=True)[1].numpy(), len(CLASSES)))
        share_L = shares(n, trust(self.shift), shown, LAYERS)
        for start in range(0, len(pictures), size):
            self.measure(pictures[start : start + size], n, share_L)

    def statistics(self) -> NormParameters:
        return {name: value for name, value in read_parameters(self.module).items() if "running" in name}


def assert_close(found: NormParameters, expected: NormParameters) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize(("measured", "size"), [(32, 32), (32, 8), (32, 7), (16, 8), (16, 1)])
def test_measuring_in_chunks_is_a_running_average_that_source_and_share_blend(
    measured: int, size: int, module: nn.Module, measuring: MeasuringSession, weights: NormParameters
) -> None:
    own = statistics(measuring, measured=measured, pixels_max=size * 16 * 16)
    plain, memory = Plain(module, weights), ClassMemory(own.settings.memory, len(CLASSES))
    for turn in range(3):
        images, labels = noisy(scenes(12, turn)), even(12) if turn else [3] * 12
        show(own, images, labels)
        own.refresh(weights)
        memory.add(list(images), pixel_style(images), labels)
        plain.refresh(memory, measured, size, first=turn == 0)
        assert_close(own.latest, plain.statistics())
        assert own.shift == pytest.approx(plain.shift, rel=1e-3, abs=1e-5)
    source = measuring.bundle.source_parameters()
    assert max(np.abs(value - source[name]).max() for name, value in own.latest.items()) > 0.05


def test_equal_chunks_that_hold_everything_are_averaged(measuring: MeasuringSession, module: nn.Module) -> None:
    own, images, source = statistics(measuring, pixels_max=8 * 16 * 16), noisy(scenes(24, 3)), read_parameters(module)
    show(own, images)
    own.refresh(source)
    memory = ClassMemory(own.settings.memory, len(CLASSES))
    memory.add(list(images), pixel_style(images), even(24))
    with torch.no_grad():
        chunks = module[0](in_torch(memory.pictures(memory.places))).unflatten(0, (3, 8))
    for name, measured in (
        ("1.running_mean", chunks.mean((0, 1, 3, 4))),
        ("1.running_var", chunks.var((1, 3, 4), unbiased=False).mean(0)),
    ):
        share_C = (own.latest[name] - source[name]) / (measured.numpy() - source[name])
        np.testing.assert_allclose(share_C, share_C.mean(), rtol=0.02)
        assert 0.25 * 0.75 * BLEND.share_max < share_C.mean() <= 0.751 * BLEND.share_max  # 24 / (24 + 8)


@pytest.mark.parametrize("turned", [np.copy, darkened, noisy])
def test_edge_and_cloud_follow_the_same_pictures_alike(
    turned: Callable[[Uint8Array], Uint8Array], module: nn.Module, measuring: MeasuringSession, weights: NormParameters
) -> None:
    own, images = statistics(measuring, pixels_max=32 * 16 * 16), turned(scenes(24, 7))
    show(own, images)
    own.refresh(weights)
    share_L = shares(24, own.trusted(), diversity(np.bincount(even(24)), len(CLASSES)), LAYERS)
    own.refresh(weights)
    source = measuring.bundle.source_parameters()
    twin = copy.deepcopy(module)
    write_parameters(twin, {**weights, **statistics_of(source, measuring.layers)})
    unmoved = twin(in_torch(images)).detach()
    followed = Blended(twin, torch.contiguous_format).follow(in_torch(images), share_L)
    assert_close(own.latest, statistics_of(read_parameters(twin), measuring.layers))
    session = EdgeSession(measuring.bundle, own.in_use(weights, None), 0, threads=1)
    np.testing.assert_allclose(session.logits(images), followed.logits_BK, rtol=1e-4, atol=1e-4)
    assert (followed.logits_BK - unmoved).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("turned", "least", "most"),
    [(np.copy, 0, BLEND.trust_least + 0.05), (darkened, 0.9, 1), (noisy, 0.9, 1)],
    ids=["clean", "dark", "noisy"],
)
def test_a_clean_stream_moves_statistics_little_and_a_shifted_one_far(
    turned: Callable[[Uint8Array], Uint8Array], least: float, most: float, module: nn.Module,
    measuring: MeasuringSession,
) -> None:  # fmt: skip
    own, images, source = statistics(measuring), turned(scenes(32, 7)), read_parameters(module)
    assert own.trusted() == 1
    show(own, images)
    own.refresh(source)
    in_full = Plain(module, source)
    in_full.measure(images, 32, np.array([1, 0, 0, 0], np.float32))
    way = in_full.statistics()["1.running_mean"] - source["1.running_mean"]
    share = float((own.latest["1.running_mean"] - source["1.running_mean"]) @ way / (way @ way))
    allowed = BLEND.share_max * 32 / (32 + BLEND.evidence)
    assert least * allowed <= share * 1.001 <= most * allowed * 1.01
    assert own.trusted() < 0.05 if most < 1 else own.trusted() > 0.9


def test_statistics_among_the_weights_do_not_matter(measuring: MeasuringSession, weights: NormParameters) -> None:
    results = []
    for factor in (1, 7):
        own = statistics(measuring, pixels_max=8 * 16 * 16)
        show(own, noisy(scenes(24, 1)))
        own.refresh({name: value * np.float32(factor if "running" in name else 1) for name, value in weights.items()})
        results.append(own.latest)
    for name, value in results[0].items():
        np.testing.assert_array_equal(value, results[1][name])


def test_before_the_first_look_statistics_are_the_sources(measuring: MeasuringSession) -> None:
    own, source = statistics(measuring), measuring.bundle.source_parameters()
    show(own, darkened(scenes(16, 0)))
    assert own.shift is None
    assert_close(own.latest, statistics_of(source, measuring.layers))


def test_weights_are_used_in_their_own_domain_and_everywhere_if_they_have_none(
    measuring: MeasuringSession, weights: NormParameters
) -> None:
    own, source = statistics(measuring), measuring.bundle.source_parameters()
    show(own, darkened(scenes(16, 0)))
    own.refresh(source)
    for domain, expected in ((None, weights), (own.domain, weights), (own.domain + 1, source), (0, source)):
        used = own.in_use(weights, domain)
        assert used.keys() == source.keys()
        for name, value in used.items():
            np.testing.assert_array_equal(value, own.latest.get(name, expected[name]))
