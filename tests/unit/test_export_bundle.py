"""What an exported bundle promises, and which models are refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from cema.cloud import export
from cema.cloud.export import build_bundle, check_parity
from cema.cloud.norms import read_parameters
from cema.errors import ExportError
from cema.wire.bundle import Bundle, decode_bundle, encode_bundle
from cema.wire.messages import Preprocess

RECIPE = Preprocess(size=(16, 16))
CLASSES = ["a", "b", "c", "d", "e"]


def net(*norms: nn.Module, classes: int = 5) -> nn.Sequential:
    """Convolution and norm layer in turns, then a linear head; untouched norm layers are all equal, a trap."""
    torch.manual_seed(0)
    blocks = [part for norm in norms for part in (nn.LazyConv2d(8, 3, padding=1, bias=False), norm, nn.ReLU())]
    module = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(classes))
    module.eval()(torch.zeros(1, 3, 16, 16))
    return module


def export_net(module: nn.Module, classes: Sequence[str] = CLASSES) -> Bundle:
    return build_bundle(module, name="net", preprocess=RECIPE, classes=classes)


KINDS: dict[str, Callable[[], nn.Sequential]] = {
    "batch_norm": lambda: net(nn.BatchNorm2d(8), nn.BatchNorm2d(8)),
    "layer_norm": lambda: net(nn.LayerNorm([8, 16, 16]), nn.LayerNorm([8, 16, 16])),
    "group_norm": lambda: net(nn.GroupNorm(2, 8), nn.GroupNorm(4, 8)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_norm_tensor_is_patchable_by_itself(kind: str) -> None:
    module = KINDS[kind]()
    bundle = decode_bundle(encode_bundle(export_net(module)))
    source = bundle.source_parameters()
    assert list(source) == list(read_parameters(module))
    assert {tensor.kind for tensor in bundle.manifest.norm} == {kind}
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (2, 16, 16, 3), np.uint8)
    before = export.open_session(bundle, source).run(None, {"images": images})[0]
    changes = {name: rng.uniform(0, 1, value.shape).astype(np.float32) for name, value in source.items()}
    for name, value in source.items():
        after = export.open_session(bundle, {**source, name: value + changes[name]}).run(None, {"images": images})[0]
        assert np.abs(after - before).max() > 1e-3, name


def test_norm_values_are_external_and_everything_else_is_inside() -> None:
    module = KINDS["batch_norm"]()
    bundle = export_net(module)
    tensors = {tensor.name: tensor for tensor in onnx.load_from_string(bundle.model).graph.initializer}
    names = {tensor.initializer for tensor in bundle.manifest.norm}
    for name, tensor in tensors.items():
        assert (tensor.data_location == onnx.TensorProto.EXTERNAL) == (name in names)
    assert not any(tensors[name].raw_data for name in names)
    assert len(bundle.norm) == sum(4 * value.size for value in read_parameters(module).values())


def test_the_same_model_gives_the_same_bytes() -> None:
    assert encode_bundle(export_net(KINDS["group_norm"]())) == encode_bundle(export_net(KINDS["group_norm"]()))


def test_the_bundle_tells_nothing_about_the_machine_that_made_it() -> None:
    assert b".py" not in export_net(KINDS["batch_norm"]()).model


def test_the_callers_model_is_left_alone() -> None:
    module = KINDS["batch_norm"]().train()
    module[0].weight.requires_grad_(False)
    state = {key: value.clone() for key, value in module.state_dict().items()}
    gradients = [p.requires_grad for p in module.parameters()]
    export_net(module)
    assert module.training
    assert module[1].training
    assert [p.requires_grad for p in module.parameters()] == gradients
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize("norm", [None, nn.GroupNorm(2, 8, affine=False), nn.LayerNorm(16, elementwise_affine=False)])
def test_a_model_with_nothing_to_adapt_is_refused(norm: nn.Module | None) -> None:
    with pytest.raises(ExportError, match="at least one norm layer with parameters"):
        export_net(net(norm or nn.Identity()))


def test_a_norm_layer_that_serves_two_places_is_refused() -> None:
    with pytest.raises(ExportError, match=r"expected norm\.weight to feed one node, got 2"):
        export_net(Forked("shared"), CLASSES[:3])


def test_a_norm_layer_with_two_names_is_refused() -> None:
    shared = nn.BatchNorm2d(8)
    with pytest.raises(ExportError, match=r"such as 1\.weight") as caught:
        export_net(net(shared, shared))
    assert "share none under two names" in caught.value.hint


def test_a_norm_layer_that_forward_does_not_use_is_refused() -> None:
    module = KINDS["batch_norm"]()
    module.register_module("unused", nn.BatchNorm2d(3))
    module.forward = nn.Sequential(*list(module)[:-1]).forward  # type: ignore[method-assign]
    with pytest.raises(ExportError, match=r"4 are not, such as unused\.weight"):
        export_net(module)


def test_another_number_of_classes_is_refused() -> None:
    with pytest.raises(ExportError, match=r"expected logits \[1, 4\] for 4 classes, got \[1, 5\]"):
        export_net(KINDS["batch_norm"](), CLASSES[:4])


def test_an_output_that_is_not_a_row_of_logits_is_refused() -> None:
    with pytest.raises(ExportError, match=r"expected logits \[1, 5\].*got \[1, 8, 16, 16\]"):
        export_net(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)))


class Forked(nn.Module):
    """Its way depends on the values, or it has two outputs, knows one batch size only, or uses its norm layer twice."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.norm, self.kind = nn.BatchNorm2d(3), kind

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        y: torch.Tensor = self.norm(x).mean((2, 3))
        if self.kind == "shared":
            twice: torch.Tensor = self.norm(self.norm(x).relu()).mean((2, 3))
            return twice
        if self.kind == "two":
            return y, y + 1
        if self.kind == "values" and y.sum() > 0:
            return y + 1
        return y.reshape(2, 3) if self.kind == "batch" else y


@pytest.mark.parametrize(("kind", "reason"), [("two", "one output"), ("values", "exported"), ("batch", "exported")])
def test_a_forward_that_is_not_images_to_logits_is_refused(kind: str, reason: str) -> None:
    with pytest.raises(ExportError, match=reason) as caught:
        export_net(Forked(kind), CLASSES[:3])
    assert caught.value.hint


def test_parity_notices_a_bundle_of_another_model() -> None:
    bundle = export_net(KINDS["batch_norm"]())
    other = KINDS["batch_norm"]()
    with torch.no_grad():
        next(other.parameters()).add_(0.01)
    with pytest.raises(ExportError, match="expected ONNX Runtime within"):
        check_parity(other, bundle)
