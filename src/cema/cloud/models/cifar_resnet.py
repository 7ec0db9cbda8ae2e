"""ResNets for 32 px photographs: He et al. 2015 (arXiv 1512.03385), section 4.2.

Three stages of n blocks with 16, 32 and 64 channels, 6n + 2 layers; shortcuts without parameters (option A).
State dict names: ``conv1, bn1, layer{1,2,3}.{i}.{conv1,bn1,conv2,bn2}, linear``.
"""

from __future__ import annotations

import torch
from torch import nn

STAGE_CHANNELS = (16, 32, 64)


class CifarBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut of option A: every second pixel, missing channels are zeros."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.padding = (channels - in_channels) // 2

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        residual = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x_BCHW)))))
        if self.stride != 1:
            x_BCHW = x_BCHW[:, :, :: self.stride, :: self.stride]
        if self.padding:
            x_BCHW = nn.functional.pad(x_BCHW, (0, 0, 0, 0, self.padding, self.padding))
        return torch.relu(residual + x_BCHW)


class CifarResNet(nn.Module):
    """``images_BCHW`` float32 [B, 3, 32, 32] -> ``logits_BK`` float32; ``depth`` = 6n + 2."""

    def __init__(self, depth: int, num_classes: int = 10) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        c1, c2, c3 = STAGE_CHANNELS
        self.conv1 = nn.Conv2d(3, c1, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c1)
        self.layer1 = _stage(c1, c1, blocks, stride=1)
        self.layer2 = _stage(c1, c2, blocks, stride=2)
        self.layer3 = _stage(c2, c3, blocks, stride=2)
        self.linear = nn.Linear(c3, num_classes)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(images_BCHW)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits_BK: torch.Tensor = self.linear(x.mean((2, 3)))
        return logits_BK


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = CifarBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(CifarBlock(channels, channels, 1) for _ in range(blocks - 1)))
