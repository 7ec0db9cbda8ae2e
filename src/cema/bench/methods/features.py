"""What a network knows just before it answers: the input of its last linear layer, for methods that work on features.

One forward pass gives both, whatever the architecture calls its layers; nothing stays behind in the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cema.errors import ConfigError

_TOLERANCE = 1e-5
"""Of the check that the last linear layer gives the answer, absolute and relative: the same sum, rounded in float32."""


@dataclass(frozen=True)
class Captured:
    """One forward pass. classifier: the last linear layer that ran. features: its input, [B, D]. logits: [B, K]."""

    classifier: nn.Linear
    features: torch.Tensor
    logits: torch.Tensor


def capture(model: nn.Module, images_BCHW: torch.Tensor) -> Captured:
    """Run ``model`` once on float32 [B, 3, H, W], B >= 1.

    Raises ConfigError when the output is not what a last linear layer made of features [B, D].
    """
    calls: list[tuple[nn.Linear, torch.Tensor]] = []

    def note(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(layer, nn.Linear)
        calls.append((layer, inputs[0]))

    linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    hooks = [layer.register_forward_pre_hook(note) for layer in linear]
    try:
        logits_BK = model(images_BCHW)
    finally:
        for hook in hooks:
            hook.remove()
    if not calls:
        raise _no_classifier("no nn.Linear in its forward pass")
    classifier, features_BD = calls[-1]
    if features_BD.dim() != 2:
        raise _no_classifier(f"a last nn.Linear on an input of shape {list(features_BD.shape)}")
    with torch.no_grad():
        answer_BK = nn.functional.linear(features_BD, classifier.weight, classifier.bias)
    if answer_BK.shape != logits_BK.shape or not torch.allclose(
        answer_BK, logits_BK, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True
    ):
        raise _no_classifier("something after its last nn.Linear that changes the output")
    return Captured(classifier, features_BD, logits_BK)


def _no_classifier(found: str) -> ConfigError:
    return ConfigError(
        f"expected a model that ends in a linear layer (nn.Linear) on features [B, D], got {found}",
        hint="use a model that returns the logits of its last nn.Linear, or a method that needs no features",
    )
