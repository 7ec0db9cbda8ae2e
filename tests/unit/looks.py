"""Pictures of several looks, and a small network that measures them, for tests of what a device makes of them."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from cema.cloud.export import build_bundle
from cema.types import Uint8Array
from cema.wire.bundle import Bundle
from cema.wire.messages import Preprocess

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


def blinds(count: int, seed: int) -> Uint8Array:
    """Stripes that lie."""
    offset = torch.randint(0, 4, (count,), generator=torch.Generator().manual_seed(seed)).numpy()
    rows = (np.arange(SIZE_PX) + offset[:, None]) % 4 < 2
    light = day(count, seed).astype(np.float32) * np.where(rows, 1.0, 0.4)[:, :, None, None]
    return light.astype(np.uint8)


def bars(count: int, seed: int) -> Uint8Array:
    """Stripes that stand: brightness, contrast, gradient and colour are the same."""
    return np.ascontiguousarray(blinds(count, seed).transpose(0, 2, 1, 3))


def small_bundle(classes: list[str]) -> Bundle:
    """Four convolutions with batch norm, not trained."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for channels in (3, 24, 24, 24):
        layers += [nn.Conv2d(channels, 24, 3, padding=1), nn.BatchNorm2d(24, momentum=None), nn.ReLU()]
    module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, len(classes)))
    return build_bundle(module, name="net", preprocess=Preprocess(size=(SIZE_PX, SIZE_PX)), classes=classes)
