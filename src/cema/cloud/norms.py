"""Which tensors of a torch model are norm parameters: the one list that export, adaptation and updates agree on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from cema.types import Float32Array, NormParameters

AFFINE_ROLES = ("weight", "bias")
STATISTIC_ROLES = ("running_mean", "running_var")


@dataclass(frozen=True)
class NormLayer:
    """One norm layer. name: as in ``named_modules``. kind: batch_norm | layer_norm | group_norm. eps: of the layer."""

    name: str
    module: nn.Module
    kind: str
    eps: float

    def tensors(self) -> dict[str, torch.Tensor]:
        """Its patchable tensors by role, those that exist: weight, bias, running_mean, running_var."""
        found = {role: getattr(self.module, role, None) for role in (*AFFINE_ROLES, *STATISTIC_ROLES)}
        return {role: value for role, value in found.items() if isinstance(value, torch.Tensor)}


def norm_layers(model: nn.Module) -> list[NormLayer]:
    """All norm layers with something to patch, in the model's order. Layers that share a module appear once."""
    layers = [
        NormLayer(name, module, kind, float(module.eps))
        for name, module in model.named_modules()
        if (kind := _kind(module)) is not None
    ]
    return [layer for layer in layers if layer.tensors()]


def read_parameters(model: nn.Module) -> NormParameters:
    """Copies of all norm tensors, float32 by torch name (``layer1.0.bn1.running_mean``)."""
    return {
        f"{layer.name}.{role}" if layer.name else role: tensor.detach().to(torch.float32).cpu().numpy().copy()
        for layer in norm_layers(model)
        for role, tensor in layer.tensors().items()
    }


@torch.no_grad()
def write_parameters(model: nn.Module, parameters: Mapping[str, Float32Array]) -> None:
    """Put norm tensors into the model, in place. Every tensor of the model must be given, with its shape."""
    for layer in norm_layers(model):
        for role, tensor in layer.tensors().items():
            value = parameters[f"{layer.name}.{role}" if layer.name else role]
            tensor.copy_(torch.from_numpy(np.array(value, np.float32)))


def _kind(module: nn.Module) -> str | None:
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return "batch_norm"
    if isinstance(module, nn.LayerNorm):
        return "layer_norm"
    return "group_norm" if isinstance(module, nn.GroupNorm) else None
