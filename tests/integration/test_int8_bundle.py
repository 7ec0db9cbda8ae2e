"""A bundle in int8 is the same model: its norm parameters are swapped as before, and do what they did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from PIL import Image
from torch import nn

from cema.cloud.calibration import PICTURES
from cema.cloud.export import build_bundle
from cema.cloud.int8 import check_origin, quantised, relative_error
from cema.cloud.models import digits, load_model
from cema.edge.session import EdgeSession
from cema.errors import ExportError
from cema.types import NormParameters, Uint8Array
from cema.wire.bundle import Bundle, decode_bundle, encode_bundle
from cema.wire.messages import Preprocess

SIZE_PX = 16
RECIPE = Preprocess(size=(SIZE_PX, SIZE_PX))


@pytest.fixture(scope="module")
def pictures() -> Uint8Array:
    return digits.digit_images()[0][digits.split().train][:PICTURES]


@pytest.fixture(scope="module")
def exact() -> Bundle:
    loaded = load_model("digits-edge")
    assert loaded.preprocess is not None
    assert loaded.classes is not None
    return build_bundle(loaded.module, name="digits-edge", preprocess=loaded.preprocess, classes=loaded.classes)


@pytest.fixture(scope="module")
def coarse(exact: Bundle, pictures: Uint8Array) -> Bundle:
    return decode_bundle(encode_bundle(quantised(exact, pictures)[0]))


class Residual(nn.Module):
    """What networks are made of: strides, groups, a shortcut that is sliced and padded, ReLU6, a pool, a convolution
    with neither norm nor activation, linear layers. norm: makes the norm of so many channels behind the first layer."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), norm(8)
        self.wide, self.wide_norm = nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=2, bias=False), nn.BatchNorm2d(16)
        self.plain = nn.Conv2d(16, 16, 1)
        self.head = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 5))
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.relu6(self.norm(self.first(x)))
        y = self.wide_norm(self.wide(x))
        x = nn.functional.relu(y + nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)))
        x = self.plain(nn.functional.max_pool2d(x, 2))
        logits: torch.Tensor = self.head(x.mean((2, 3)))
        return logits


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch_norm": nn.BatchNorm2d,
    "group_norm": lambda channels: nn.GroupNorm(2, channels),
}


def photos(count: int = 64, seed: int = 0) -> Uint8Array:
    """Smooth pictures, each of another colour."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (count, 4, 4, 3), np.uint8)
    return np.stack([np.asarray(Image.fromarray(image).resize((SIZE_PX, SIZE_PX))) for image in small])


def residual(norm: str = "batch_norm", input_type: str = "uint8") -> Bundle:
    module = Residual(NORMS[norm])
    return build_bundle(module, name="net", preprocess=RECIPE, classes=list("abcde"), input_type=input_type)


def optimised(bundle: Bundle, folder: Path) -> Counter[str]:
    """Operations that ONNX Runtime really runs."""
    options, source = ort.SessionOptions(), bundle.source_parameters()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    values = [ort.OrtValue.ortvalue_from_numpy(source[tensor.name].copy()) for tensor in bundle.manifest.norm]
    options.add_external_initializers([tensor.initializer for tensor in bundle.manifest.norm], values)
    ort.InferenceSession(bundle.model, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


def other(source: NormParameters, seed: int) -> NormParameters:
    """Norm parameters that make another model: some gammas negative, one zero."""
    rng = np.random.default_rng(seed)
    changed = {}
    for name, value in source.items():
        factor = rng.uniform(0.7, 1.3, value.shape)
        changed[name] = (value * factor).astype(np.float32)
        if name.endswith("weight"):
            changed[name][0], changed[name][1] = 0.0, -changed[name][1]
        elif name.endswith("bias"):
            changed[name] += rng.normal(0, 0.2, value.shape).astype(np.float32)
    return changed


def test_labels_stay_and_the_norm_table_too(exact: Bundle, coarse: Bundle) -> None:
    images, labels = digits.digit_images()
    rows = digits.split().stream
    right = [
        (EdgeSession(bundle, bundle.source_parameters(), 0).predict(images[rows]).label_B == labels[rows]).mean()
        for bundle in (exact, coarse)
    ]
    assert right[1] >= right[0] - 0.01
    assert coarse.manifest.norm == exact.manifest.norm
    assert coarse.norm == exact.norm
    assert coarse.manifest.precision == "int8"
    assert coarse.manifest.fingerprint != exact.manifest.fingerprint
    assert len(coarse.model) < len(exact.model) / 2


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_swapped_parameters_do_to_int8_what_they_do_to_float(
    seed: int, exact: Bundle, coarse: Bundle, pictures: Uint8Array
) -> None:
    source = exact.source_parameters()
    changed = other(source, seed)
    before, after = (
        [EdgeSession(bundle, parameters, 1).logits(pictures) for bundle in (exact, coarse)]
        for parameters in (source, changed)
    )
    assert relative_error(before[0], after[0]) > 0.3  # another model indeed
    assert relative_error(after[0], after[1]) < 0.15
    assert relative_error(after[0] - before[0], after[1] - before[1]) < 0.15


def test_every_norm_tensor_alone_changes_the_answers(coarse: Bundle, pictures: Uint8Array) -> None:
    source = coarse.source_parameters()
    before = EdgeSession(coarse, source, 0).logits(pictures[:8])
    for name, value in source.items():
        after = EdgeSession(coarse, {**source, name: value * 2 + 1}, 1).logits(pictures[:8])
        assert np.abs(after - before).max() > 0.05, name


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("input_type", ["uint8", "float32"])
def test_layers_of_all_sorts_follow_the_float_model(norm: str, input_type: str) -> None:
    bundle, images = residual(norm, input_type), photos()
    made, fidelity = quantised(bundle, images)
    assert fidelity.agreement >= 0.9
    source = bundle.source_parameters()
    for parameters in (source, other(source, 3)):
        one, two = (EdgeSession(each, parameters, 0).logits(photos(seed=1)) for each in (bundle, made))
        assert relative_error(one, two) < 0.15


def test_an_activation_that_ends_in_float_stays() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 5), nn.ReLU(),
    ).eval()  # fmt: skip
    bundle = build_bundle(module, name="net", preprocess=RECIPE, classes=list("abcde"))
    made, _ = quantised(bundle, photos())
    exact, coarse = (EdgeSession(each, each.source_parameters(), 0).logits(photos(seed=1)) for each in (bundle, made))
    assert (exact == 0).any()
    assert coarse.min() == 0
    assert relative_error(exact, coarse) < 0.1


def test_onnx_runtime_computes_in_integers(tmp_path: Path) -> None:
    found = optimised(quantised(residual(), photos())[0], tmp_path)
    assert (found["QLinearConv"], found["QLinearAdd"], found["QGemm"]) == (2, 1, 2)
    assert found["Conv"] + found["FusedConv"] == 1  # the one that reads the picture
    assert not {"BatchNormalization", "Sqrt", "Gemm"} & found.keys()


def test_the_same_model_and_pictures_give_the_same_bytes(exact: Bundle, coarse: Bundle, pictures: Uint8Array) -> None:
    assert encode_bundle(quantised(exact, pictures)[0]) == encode_bundle(coarse)


def test_a_model_that_int8_would_spoil_is_refused_with_figures() -> None:
    module = Residual(nn.BatchNorm2d)
    with torch.no_grad():
        module.norm.bias[0] = 3e4  # type: ignore[operator]  # one channel's range swallows all others'
        module.first.weight[:, 0] *= 1e-3
    module.forward = nn.Sequential(  # type: ignore[method-assign]
        module.first, module.norm, nn.Conv2d(8, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).forward
    module.wide_norm = nn.Identity()
    bundle = build_bundle(module, name="net", preprocess=RECIPE, classes=list("abcde"))
    with pytest.raises(ExportError, match=r"got \d.*%") as caught:
        quantised(bundle, photos())
    assert "without --int8" in caught.value.hint


def test_a_model_without_layers_to_quantise_is_refused() -> None:
    module = nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    bundle = build_bundle(module, name="net", preprocess=RECIPE, classes=list("abc"))
    with pytest.raises(ExportError, match="to quantise, got none"):
        quantised(bundle, photos())


def test_its_origin_is_told_from_another_models(coarse: Bundle) -> None:
    module = load_model("digits-edge").module
    check_origin(module, coarse)
    with torch.no_grad():
        next(module.parameters()).normal_()
    with pytest.raises(ExportError, match="of torch's"):
        check_origin(module, coarse)
