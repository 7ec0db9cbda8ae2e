"""A model whose batch norms follow a batch of pictures, as a device's follow its stream (wire/blend.py).

Layer by layer within one forward: each layer measures its input, blends that with the source's statistics, normalises
by the blend, and only then does the next one measure.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cema.cloud.adapt.precision import spare_slow_layers
from cema.types import Float32Array
from cema.wire.blend import log_ratio, shift_size


class Followed(NamedTuple):
    """logits_BK: of that forward, float32. shift: ``cema.wire.blend.shift_size``; 0 without batch norms."""

    logits_BK: torch.Tensor
    shift: float


class Blended:
    """Moves the running statistics of ``model``'s batch norms, in place; nothing else of it changes. reduced: forward
    in bfloat16, statistics in float32."""

    def __init__(self, model: nn.Module, layout: torch.memory_format, *, reduced: bool = False) -> None:
        if reduced:
            spare_slow_layers(model)
        self.model, self.layout, self.reduced = model, layout, reduced
        found = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
        self.layers = {name: layer for name, layer in found.items() if layer.running_mean is not None}
        self._source = {name: _statistics(layer) for name, layer in self.layers.items()}

    @torch.no_grad()
    def logits(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Forward by the present statistics, float32 [B, K]."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.reduced):
            logits_BK: torch.Tensor = self.model(images_BCHW.contiguous(memory_format=self.layout))
        return logits_BK.float()

    def follow(self, images_BCHW: torch.Tensor, share_L: Float32Array) -> Followed:
        """Take over source + share (measured - source) in every layer, in one forward. share_L: by layer, 0..1."""
        measured: dict[str, Float32Array] = {}
        hooks = [
            layer.register_forward_pre_hook(self._measuring(name, float(share), measured))
            for (name, layer), share in zip(self.layers.items(), share_L, strict=True)
        ]
        try:
            logits_BK = self.logits(images_BCHW)
        finally:
            for hook in hooks:
                hook.remove()
        ratios = [log_ratio(measured[name], self._source[name][1].numpy()) for name in self.layers if name in measured]
        return Followed(logits_BK, shift_size(ratios) if ratios else 0.0)

    def source(self) -> dict[str, Float32Array]:
        """Running means and variances as the model came, by torch name."""
        return {
            f"{name}.{role}": value.numpy().copy()
            for name, pair in self._source.items()
            for role, value in zip(("running_mean", "running_var"), pair, strict=True)
        }

    def _measuring(self, name: str, share: float, measured: dict[str, Float32Array]) -> Any:
        source_mean_C, source_var_C = self._source[name]

        def hook(layer: _BatchNorm, inputs: tuple[torch.Tensor, ...]) -> None:
            assert layer.running_mean is not None
            assert layer.running_var is not None
            # the empty statistics say that sums are float32 though the input may be bfloat16
            mean_C, var_C = torch.batch_norm_update_stats(
                inputs[0], torch.zeros_like(source_mean_C), torch.zeros_like(source_var_C), 0.0
            )
            measured[name] = var_C.numpy()
            layer.running_mean.copy_(torch.lerp(source_mean_C, mean_C, share))
            layer.running_var.copy_(torch.lerp(source_var_C, var_C, share))

        return hook


def _statistics(layer: _BatchNorm) -> tuple[torch.Tensor, torch.Tensor]:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    return layer.running_mean.detach().clone(), layer.running_var.detach().clone()
