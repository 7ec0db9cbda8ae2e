"""bfloat16 for adapt steps, where the processor multiplies in it: half the memory traffic, twice the products a second.

Weights, norm parameters, statistics and losses stay float32; only activations and the products of convolutions and
matrices are rounded (torch's autocast). A processor without such instructions would emulate them, slowly.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

Precision = Literal["float32", "bfloat16", "auto"]
_NATIVE = ("avx512_bf16", "amx_bf16", "bf16")
"""What ``torch.cpu.get_capabilities`` calls bfloat16 products in hardware, on x86 and on Arm."""


def has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware, as far as torch can tell."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name) for name in _NATIVE)


def is_reduced(precision: Precision) -> bool:
    """Whether steps run in bfloat16. ``auto``: where the hardware has it."""
    return precision == "bfloat16" or (precision == "auto" and has_bfloat16())


class InFloat32(nn.Module):
    """A layer that computes in float32 amid bfloat16; its answer has the type of what it was given."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            output: torch.Tensor = self.layer(input.float())
        return output.to(input.dtype)


def spare_slow_layers(model: nn.Module) -> None:
    """Let strided grouped convolutions compute in float32, in place: backward through one in bfloat16 has no fast code
    on x86 (132 instead of 9.5 ms for 32 x 96 x 112 x 112, torch 2.13)."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d) and child.groups > 1 and max(child.stride) > 1:
                setattr(parent, name, InFloat32(child))
