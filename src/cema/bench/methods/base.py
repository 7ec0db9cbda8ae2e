"""What the benchmark asks of a method that lives on the device alone: answer a batch, and adapt as it likes.

Methods get preprocessed pictures and a torch model of their own; the cloud-edge methods are run by the simulator
instead (bench/simulate.py), which sends real bytes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import msgspec
import torch
from torch import nn

from cema.bench.rows import Where


class DeviceMethod(ABC):
    """One method at work on one device. Subclasses set ``Settings`` to a frozen msgspec struct with defaults.

    model: in eval mode, the method's own copy; it may be changed. settings: an instance of ``Settings``.
    seed: for methods that draw.
    """

    Settings: type[msgspec.Struct]
    where: ClassVar[Where] = "backward"
    """What the method asks of the device: ``forward`` passes only, or back-propagation (``backward``)."""
    prepare_images: ClassVar[int] = 0
    """Clean pictures from outside the stream that ``prepare`` wants before it begins; 0 = none."""

    @abstractmethod
    def __init__(self, model: nn.Module, settings: Any, seed: int) -> None: ...

    @abstractmethod
    def predict(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Probabilities float32 [B, K] for one batch in stream order, B >= 1. Adaptation happens in here too."""

    def prepare(self, clean_BCHW: torch.Tensor) -> None:  # noqa: B027  # most have nothing to prepare
        """Called once before the stream with at most ``prepare_images`` pictures, for methods that ask for them."""

    def learn(self, labels_B: torch.Tensor) -> None:  # noqa: B027  # most may not see labels
        """The true labels, int64 [B], of the batch last predicted: for reference methods alone; others ignore them."""
