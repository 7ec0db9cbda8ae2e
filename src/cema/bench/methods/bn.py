"""``bn``: every batch norm uses the statistics of the present batch alone. Forward passes only, nothing remembered.

Schneider et al., "Improving robustness against common corruptions by covariate shift adaptation", NeurIPS 2020
(full adaptation, N = 0), arXiv 2006.16971; Nado et al., "Evaluating prediction-time batch normalization for
robustness under covariate shift", 2020, arXiv 2006.10963.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec
import torch
from torch import nn

from cema.bench.methods.base import DeviceMethod
from cema.bench.methods.norms import by_batch, probabilities
from cema.bench.rows import Where


class BatchNormSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """There is nothing to set."""


class BatchNorm(DeviceMethod):
    """Each batch norm normalises by its input's own moments, biased variance:

        y = gamma (x - mu_b) / sqrt(var_b + eps) + beta

    One image gives the moments of one image, and where a channel has one value per image the output is beta: the
    method collapses on small batches, and on batches of one class. Without batch norm it equals ``source``.
    """

    Settings = BatchNormSettings
    where: ClassVar[Where] = "forward"

    def __init__(self, model: nn.Module, settings: Any, seed: int) -> None:
        self.model = by_batch(model)

    @torch.no_grad()
    def predict(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return probabilities(self.model(images_BCHW))
