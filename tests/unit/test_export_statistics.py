"""The statistics graph of a bundle against torch: what it measures, how it normalises, what else is refused."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import msgspec
import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cema.cloud.export import build_bundle, perturbed
from cema.cloud.norms import write_parameters
from cema.edge.measuring import Measured, MeasuringSession
from cema.edge.session import EdgeSession
from cema.errors import BundleError
from cema.types import Uint8Array
from cema.wire.bundle import Bundle, decode_bundle, encode_bundle, fingerprint, measured_layers
from cema.wire.messages import Preprocess, SharedWeight
from cema.wire.preprocess import normalise

RECIPE = Preprocess(size=(8, 8))
CLASSES = ["a", "b", "c", "d"]
IMAGES = np.random.default_rng(1).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
SHARES = [[0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5], [0.25, 0, 0.75]]


def seasoned(*parts: nn.Module) -> nn.Sequential:
    """A model whose norm layers have values of their own, as after a training."""
    module = nn.Sequential(*parts).eval()
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, _BatchNorm):
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.uniform_(-0.5, 0.5)
                layer.running_mean.uniform_(-0.5, 0.5)
                layer.running_var.uniform_(0.5, 1.5)
    return module


def network() -> nn.Sequential:
    """The third batch norm stands behind a linear layer; of the convolutions, one is small and one is large."""
    torch.manual_seed(0)
    return seasoned(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16, eps=1e-3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 4),
    )  # fmt: skip


def export_net(module: nn.Module, input_type: str = "uint8") -> Bundle:
    return build_bundle(module, name="net", preprocess=RECIPE, classes=CLASSES, input_type=input_type)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return export_net(network())


@pytest.fixture(scope="module")
def measuring(bundle: Bundle) -> MeasuringSession:
    return MeasuringSession(bundle, threads=1)


def measure(session: MeasuringSession, shares: Sequence[float], images: Uint8Array = IMAGES) -> Measured:
    return session.measure(images, session.bundle.source_parameters(), np.array(shares, np.float32))


def norms(module: nn.Module) -> list[_BatchNorm]:
    return [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]


def in_torch(module: nn.Module, images: Uint8Array) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits, and the input of every batch norm."""
    inputs: list[torch.Tensor] = []
    hooks = [layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0])) for layer in norms(module)]
    with torch.no_grad():
        logits = module(torch.from_numpy(normalise(images, RECIPE)))
    for hook in hooks:
        hook.remove()
    return logits, inputs


def blending(module: nn.Module, shares: Sequence[float]) -> nn.Module:
    """Its norms move to source + share (measured - source) just before they normalise."""
    module = copy.deepcopy(module)

    def move(layer: _BatchNorm, given: tuple[torch.Tensor], share: float) -> None:
        axes = [axis for axis in range(given[0].ndim) if axis != 1]
        mean, var = given[0].mean(axes), given[0].var(axes, unbiased=False)
        layer.running_mean += share * (mean - layer.running_mean)
        layer.running_var += share * (var - layer.running_var)

    for layer, share in zip(norms(module), shares, strict=True):
        layer.register_forward_pre_hook(lambda layer, given, share=share: move(layer, given, share))
    return module


def assert_same(measured: Measured, logits: torch.Tensor, inputs: list[torch.Tensor]) -> None:
    np.testing.assert_allclose(measured.logits_BK, logits, rtol=1e-4, atol=1e-4)
    assert len(measured.layers) == len(inputs)
    for moments, x in zip(measured.layers, inputs, strict=True):
        pixels_BCP = x.numpy().astype(np.float64).reshape(len(x), x.shape[1], -1)
        np.testing.assert_allclose(moments.first_BC, pixels_BCP.mean(axis=2), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(moments.second_BC, (pixels_BCP**2).mean(axis=2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 5])
def test_with_no_share_the_logits_are_those_of_the_ordinary_session(
    batch: int, bundle: Bundle, measuring: MeasuringSession
) -> None:
    outputs = []
    for parameters in (bundle.source_parameters(), perturbed(bundle.source_parameters(), np.random.default_rng(2))):
        expected = EdgeSession(bundle, parameters, 0, threads=1).logits(IMAGES[:batch])
        found = measuring.measure(IMAGES[:batch], parameters, np.zeros(3, np.float32))
        np.testing.assert_allclose(found.logits_BK, expected, rtol=1e-4, atol=1e-4)
        outputs.append(expected)
    assert np.abs(outputs[0] - outputs[1]).max() > 0.05


@pytest.mark.parametrize("batch", [1, 5])
def test_the_moments_are_those_of_each_norm_layers_input(batch: int, measuring: MeasuringSession) -> None:
    assert_same(measure(measuring, [0, 0, 0], IMAGES[:batch]), *in_torch(network(), IMAGES[:batch]))


def test_with_full_shares_each_layer_measures_what_a_training_forward_gives_it(measuring: MeasuringSession) -> None:
    trained = network().train()  # normalises by the batch's mean and biased variance
    measured = measure(measuring, [1, 1, 1])
    assert_same(measured, *in_torch(trained, IMAGES))
    unmoved = measure(measuring, [0, 0, 0])
    assert np.abs(measured.layers[2].first_BC - unmoved.layers[2].first_BC).max() > 0.1


@pytest.mark.parametrize("shares", SHARES)
def test_a_share_blends_mean_and_variance_linearly(shares: list[float], measuring: MeasuringSession) -> None:
    assert_same(measure(measuring, shares), *in_torch(blending(network(), shares), IMAGES))


def test_the_blend_starts_at_the_statistics_that_are_given(bundle: Bundle, measuring: MeasuringSession) -> None:
    other, shares = perturbed(bundle.source_parameters(), np.random.default_rng(3)), [0.5, 0.25, 0.75]
    module = network()
    write_parameters(module, other)
    measured = measuring.measure(IMAGES, other, np.array(shares, np.float32))
    assert_same(measured, *in_torch(blending(module, shares), IMAGES))


def test_where_nothing_varies_rounding_does_no_harm() -> None:
    torch.manual_seed(0)
    module = seasoned(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    with torch.no_grad():
        module[0].weight *= 1000  # its square is far above what float32 resolves beside epsilon
    session = MeasuringSession(export_net(module), threads=1)
    for grey in range(0, 256, 15):
        measured = measure(session, [1], np.full((3, 8, 8, 3), grey, np.uint8))
        assert np.isfinite(measured.logits_BK).all()


def test_layers_are_described_by_the_names_of_the_norm_table(bundle: Bundle) -> None:
    assert bundle.measures
    layers = measured_layers(bundle.manifest.norm)
    assert [layer.weight for layer in layers] == ["1.weight", "4.weight", "9.weight"]
    names = [name for layer in layers for name in (layer.weight, layer.bias, layer.mean, layer.var)]
    assert names == [tensor.name for tensor in bundle.manifest.norm]


def test_a_model_with_layer_norms_alone_has_no_statistics_graph() -> None:
    bundle = export_net(nn.Sequential(nn.LayerNorm([3, 8, 8]), nn.Flatten(), nn.Linear(192, 4)))
    assert bundle.statistics == b""
    assert bundle.manifest.statistics is msgspec.UNSET
    assert not bundle.measures
    assert decode_bundle(encode_bundle(bundle)) == bundle
    with pytest.raises(BundleError, match="has no statistics graph"):
        MeasuringSession(bundle)


@pytest.mark.parametrize("factor", [1, 2])
def test_norm_layers_that_are_no_batch_norms_take_the_weights_that_are_given(factor: float) -> None:
    torch.manual_seed(0)
    bundle = export_net(
        seasoned(
            nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
        )
    )  # fmt: skip
    source = bundle.source_parameters()
    parameters = {**source, "1.weight": source["1.weight"] * np.float32(factor)}
    found = MeasuringSession(bundle, threads=1).measure(IMAGES, parameters, np.zeros(1, np.float32))
    expected = EdgeSession(bundle, parameters, 0, threads=1).logits(IMAGES)
    np.testing.assert_allclose(found.logits_BK, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("input_type", ["uint8", "float32"])
def test_a_norm_layer_may_come_first(input_type: str) -> None:
    torch.manual_seed(0)
    module = seasoned(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    session = MeasuringSession(export_net(module, input_type), threads=1)
    assert_same(measure(session, [0.5]), *in_torch(blending(module, [0.5]), IMAGES))


def test_large_weights_are_not_stored_twice() -> None:
    torch.manual_seed(0)
    module = seasoned(
        nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.BatchNorm2d(64),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4),
    )  # fmt: skip
    bundle = export_net(module)
    assert len(bundle.statistics) < len(bundle.model) / 10
    for weight in (module[0].weight, module[3].weight):
        assert weight.detach().numpy().tobytes() in bundle.model
        assert weight.detach().numpy().tobytes() not in bundle.statistics
    assert_same(measure(MeasuringSession(bundle, threads=1), [0, 1]), *in_torch(blending(module, [0, 1]), IMAGES))


def test_norm_values_are_no_part_of_the_graph(bundle: Bundle) -> None:
    graph = onnx.load_from_string(bundle.statistics).graph
    names = {tensor.name for tensor in bundle.manifest.norm}
    assert names <= {value.name for value in graph.input}
    assert not names & {tensor.name for tensor in graph.initializer}


def test_a_bundle_comes_back_as_it_was_and_measures_the_same(bundle: Bundle, measuring: MeasuringSession) -> None:
    again = decode_bundle(encode_bundle(bundle))
    assert again == bundle
    before, after = measure(measuring, [0.5, 0, 1]), measure(MeasuringSession(again, threads=1), [0.5, 0, 1])
    np.testing.assert_array_equal(before.logits_BK, after.logits_BK)


def test_the_same_model_gives_the_same_statistics_graph(bundle: Bundle) -> None:
    assert encode_bundle(export_net(network())) == encode_bundle(bundle)


def test_what_cannot_run_is_a_bundle_error(bundle: Bundle, measuring: MeasuringSession) -> None:
    with pytest.raises(BundleError, match=r"runs on \[2, 9, 8, 3\]"):
        measure(measuring, [0, 0, 0], np.zeros((2, 9, 8, 3), np.uint8))
    with pytest.raises(BundleError, match="statistics graph that ONNX Runtime"):
        MeasuringSession(Bundle(bundle.manifest, bundle.model, bundle.norm, b"junk"))


def described(bundle: Bundle) -> list[SharedWeight]:
    found = bundle.manifest.statistics
    assert isinstance(found, list)
    return found


def forged(bundle: Bundle, description: list[SharedWeight] | msgspec.UnsetType, graph: bytes) -> bytes:
    """Another graph, or another description, under the fingerprint that goes with it."""
    old = bundle.manifest
    mark = fingerprint(bundle.model, bundle.norm, old.preprocess, old.classes, old.norm, graph)
    manifest = msgspec.structs.replace(old, statistics=description, fingerprint=mark)
    return encode_bundle(Bundle(manifest, bundle.model, bundle.norm, graph))


def with_weight(bundle: Bundle, **change: object) -> bytes:
    """The first shared weight is described in another way."""
    first, *others = described(bundle)
    return forged(bundle, [msgspec.structs.replace(first, **change), *others], bundle.statistics)


def test_a_graph_without_its_description_and_the_reverse_are_refused(bundle: Bundle) -> None:
    assert decode_bundle(forged(bundle, described(bundle), bundle.statistics)) == bundle
    for wrong in (forged(bundle, msgspec.UNSET, bundle.statistics), forged(bundle, described(bundle), b"")):
        with pytest.raises(BundleError, match="its description, or neither"):
            decode_bundle(wrong)


def test_a_graph_with_other_bytes_is_refused(bundle: Bundle) -> None:
    for wrong in (bundle.statistics + b"\0", bundle.statistics[:-1], b"\1" + bundle.statistics[1:]):
        with pytest.raises(BundleError, match="fingerprint"):
            decode_bundle(encode_bundle(Bundle(bundle.manifest, bundle.model, bundle.norm, wrong)))


def test_layers_are_the_batch_norms_that_have_all_four_tensors(bundle: Bundle) -> None:
    norm = bundle.manifest.norm
    layers = measured_layers(norm)
    assert layers[0] == ("1.weight", "1.bias", "1.running_mean", "1.running_var")
    assert measured_layers([tensor for tensor in norm if tensor.name != "1.bias"]) == layers[1:]


@pytest.mark.parametrize(
    "change", [{"offset": -4}, {"offset": 1 << 40}, {"shape": (1 << 30, 4)}, {"shape": (0, 8)}, {"shape": (-1, -1)}]
)
def test_a_shared_weight_outside_the_model_is_refused(change: dict[str, object], bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"inside model\.onnx"):
        decode_bundle(with_weight(bundle, **change))


def test_a_shared_weight_may_end_where_the_model_ends_and_no_byte_later(bundle: Bundle) -> None:
    last = len(bundle.model) - 4 * int(np.prod(described(bundle)[0].shape))
    assert decode_bundle(with_weight(bundle, offset=last)).statistics == bundle.statistics
    with pytest.raises(BundleError, match=r"inside model\.onnx"):
        decode_bundle(with_weight(bundle, offset=last + 1))
