"""Pictures of several looks, for tests of what a device makes of them."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from cema.types import Uint8Array

SIZE_PX = 16


def day(count: int, seed: int) -> Uint8Array:
    """Pictures of middling light with structures of all sizes, each another."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros((count, 3, SIZE_PX, SIZE_PX))
    for cells in (2, 4, 8, SIZE_PX):
        part = torch.rand((count, 3, cells, cells), generator=generator) * 40
        images += nn.functional.interpolate(part, (SIZE_PX, SIZE_PX), mode="bilinear", align_corners=True)
    return (images + 40).permute(0, 2, 3, 1).to(torch.uint8).contiguous().numpy()


def night(count: int, seed: int) -> Uint8Array:
    return day(count, seed) // np.uint8(4)


def snowfall(count: int, seed: int) -> Uint8Array:
    noise = np.random.default_rng(seed).normal(0, 40, (count, SIZE_PX, SIZE_PX, 3))
    return np.clip(day(count, seed) + noise, 0, 255).astype(np.uint8)
