"""The embedded example: scikit-learn's handwritten digits and two small networks whose weights lie beside this file.

The edge network is a plain stack of convolutions, the foundation network is residual and was trained on distorted
pictures; ``scripts/train_digits.py`` makes both. ``split`` keeps what they were trained on apart from what they are
shown later.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from cema.errors import DependencyError
from cema.types import Uint8Array

CLASSES = tuple(str(digit) for digit in range(10))
SIDE_PX = 32
PIXEL_MEAN = 0.31
PIXEL_STD = 0.36
"""Of all training pixels in 0..1, rounded (scripts/train_digits.py prints them)."""

TRAIN_IMAGES = 1000
"""Of 1,797; the other 797 are the stream. Fixed, as the committed weights depend on it."""
SPLIT_SEED = 0
SCAN_MAX = 16
"""Largest value of a pixel in load_digits."""

EDGE_CHANNELS = (16, 24, 32, 48)
FOUNDATION_CHANNELS = (24, 32, 64)


class Split(NamedTuple):
    """Disjoint index sets into ``digit_images``: int64 [1000] and int64 [797]."""

    train: NDArray[np.int64]
    stream: NDArray[np.int64]


def split() -> Split:
    """The same partition always: what the committed weights have seen, and what they have not."""
    order = np.random.default_rng(SPLIT_SEED).permutation(1797)
    return Split(np.sort(order[:TRAIN_IMAGES]), order[TRAIN_IMAGES:])


def digit_images() -> tuple[Uint8Array, NDArray[np.int64]]:
    """All digits: uint8 [1797, 32, 32, 3] (8 px scans enlarged, bicubic) and labels int64 [1797].

    Raises DependencyError without scikit-learn (extra ``bench``).
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise DependencyError(
            f"the digits need {error.name}, which is not installed", hint="pip install 'cema[bench]'"
        ) from error
    scans, labels = load_digits(return_X_y=True)
    grey = np.rint(scans.reshape(-1, 8, 8) * (255 / SCAN_MAX)).astype(np.uint8)
    large = np.stack([_enlarge(scan) for scan in grey])
    return np.repeat(large[..., None], 3, axis=3), labels.astype(np.int64)


class DigitsEdge(nn.Module):
    """Four convolutions with batch norm: ``images_BCHW`` float32 [B, 3, 32, 32] -> ``logits_BK``."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        c1, c2, c3, c4 = EDGE_CHANNELS
        self.conv1, self.bn1 = nn.Conv2d(3, c1, 3, 2, 1, bias=False), nn.BatchNorm2d(c1)
        self.conv2, self.bn2 = nn.Conv2d(c1, c2, 3, 1, 1, bias=False), nn.BatchNorm2d(c2)
        self.conv3, self.bn3 = nn.Conv2d(c2, c3, 3, 2, 1, bias=False), nn.BatchNorm2d(c3)
        self.conv4, self.bn4 = nn.Conv2d(c3, c4, 3, 2, 1, bias=False), nn.BatchNorm2d(c4)
        self.fc = nn.Linear(c4, num_classes)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(images_BCHW)))
        x = torch.relu(self.bn2(self.conv2(x)))
        x = torch.relu(self.bn3(self.conv3(x)))
        x = torch.relu(self.bn4(self.conv4(x)))
        logits_BK: torch.Tensor = self.fc(x.mean((2, 3)))
        return logits_BK


class DigitsBlock(nn.Module):
    """A residual block; where the size changes, its shortcut is a strided 1x1 convolution."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels)
        same = stride == 1 and in_channels == channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        residual = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x_BCHW)))))
        return torch.relu(residual + self.shortcut(x_BCHW))


class DigitsFoundation(nn.Module):
    """Stem and three residual blocks: ``images_BCHW`` float32 [B, 3, 32, 32] -> ``logits_BK``."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        c1, c2, c3 = FOUNDATION_CHANNELS
        self.conv1, self.bn1 = nn.Conv2d(3, c1, 3, 2, 1, bias=False), nn.BatchNorm2d(c1)
        self.layer1 = DigitsBlock(c1, c1, 1)
        self.layer2 = DigitsBlock(c1, c2, 2)
        self.layer3 = DigitsBlock(c2, c3, 2)
        self.fc = nn.Linear(c3, num_classes)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(images_BCHW)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits_BK: torch.Tensor = self.fc(x.mean((2, 3)))
        return logits_BK


def _enlarge(scan_HW: Uint8Array) -> Uint8Array:
    return np.asarray(Image.fromarray(scan_HW).resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC))
