"""ResNets for ImageNet photographs: He et al. 2015 (arXiv 1512.03385), table 1.

Bottlenecks carry the stride in their 3x3 convolution. State dict names are those of torchvision's models
(``conv1, bn1, layer1.0.conv1 .., layer2.0.downsample.{0,1}, fc``), so its weights fit.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

STEM_CHANNELS = 64
STAGE_CHANNELS = (64, 128, 256, 512)
STAGE_BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
BOTTLENECK_FROM_DEPTH = 50


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; the stride is in the first."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _projection(in_channels, channels * self.expansion, stride)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        shortcut = x_BCHW if self.downsample is None else self.downsample(x_BCHW)
        x = torch.relu(self.bn1(self.conv1(x_BCHW)))
        return torch.relu(self.bn2(self.conv2(x)) + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride, 1x1 to four times the channels."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels * self.expansion)
        self.downsample = _projection(in_channels, channels * self.expansion, stride)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        shortcut = x_BCHW if self.downsample is None else self.downsample(x_BCHW)
        x = torch.relu(self.bn1(self.conv1(x_BCHW)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return torch.relu(self.bn3(self.conv3(x)) + shortcut)


class ResNet(nn.Module):
    """``images_BCHW`` float32 [B, 3, H, W] -> ``logits_BK`` float32; depth 18, 50 or 101."""

    def __init__(self, depth: int, num_classes: int = 1000) -> None:
        super().__init__()
        block = Bottleneck if depth >= BOTTLENECK_FROM_DEPTH else BasicBlock
        self.conv1 = nn.Conv2d(3, STEM_CHANNELS, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM_CHANNELS)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        stage = partial(_stage, block)
        c1, c2, c3, c4 = STAGE_CHANNELS
        n1, n2, n3, n4 = STAGE_BLOCKS[depth]
        self.layer1 = stage(STEM_CHANNELS, c1, n1, 1)
        self.layer2 = stage(c1 * block.expansion, c2, n2, 2)
        self.layer3 = stage(c2 * block.expansion, c3, n3, 2)
        self.layer4 = stage(c3 * block.expansion, c4, n4, 2)
        self.fc = nn.Linear(c4 * block.expansion, num_classes)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(torch.relu(self.bn1(self.conv1(images_BCHW))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits_BK: torch.Tensor = self.fc(x.mean((2, 3)))
        return logits_BK


def _stage(
    block: type[BasicBlock] | type[Bottleneck], in_channels: int, channels: int, blocks: int, stride: int
) -> nn.Sequential:
    first = block(in_channels, channels, stride)
    return nn.Sequential(first, *(block(channels * block.expansion, channels, 1) for _ in range(blocks - 1)))


def _projection(in_channels: int, channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
