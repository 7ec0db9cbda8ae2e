"""The torch side of the ``tiny_bundle`` fixture."""

from __future__ import annotations

import torch
from torch import nn


class TinyNet(nn.Module):
    """Norm parameters named as in the ``tiny_bundle`` fixture."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv, self.bn, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)
        self.eval()

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.bn(self.conv(images_BCHW))).mean((2, 3)))
