"""``bn-alpha``: the source's statistics as a prior, mixed with those of the present batch. Forward passes only.

Schneider et al., "Improving robustness against common corruptions by covariate shift adaptation", NeurIPS 2020,
section 3, arXiv 2006.16971.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec
import torch
from msgspec import Meta
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cema.bench.methods.base import DeviceMethod
from cema.bench.methods.norms import Measured, Statistics, batch_norms, normalise_by, probabilities, running_statistics
from cema.bench.rows import Where


class BatchNormAlphaSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The method's numbers."""

    prior_samples: Annotated[float, Meta(ge=0)] = 16.0
    """N: the images that the source's statistics count for; 0 is ``bn``. 16 is the paper's choice for small batches."""


class BatchNormAlpha(DeviceMethod):
    """With a batch of n images and a prior worth N, in every layer (the paper's pseudo sample size):

        mu = (1 - alpha) mu_s + alpha mu_b,   var = (1 - alpha) var_s + alpha var_b,   alpha = n / (n + N)

    mu_b, var_b (biased) of the layer's input in this very forward. A batch norm without source statistics has no
    prior and takes the batch's; a model without batch norm is left as it is.
    """

    Settings = BatchNormAlphaSettings
    where: ClassVar[Where] = "forward"

    def __init__(self, model: nn.Module, settings: BatchNormAlphaSettings, seed: int) -> None:
        self.model, self.settings = model, settings
        self.source: dict[_BatchNorm, Statistics | None] = {
            layer: running_statistics(layer) for layer in batch_norms(model)
        }
        normalise_by(model, self._mix)

    @torch.no_grad()
    def predict(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return probabilities(self.model(images_BCHW))

    def _mix(self, layer: _BatchNorm, batch: Measured) -> Statistics:
        source = self.source[layer]
        if source is None:
            return batch.mean, batch.var
        alpha = batch.images / (batch.images + self.settings.prior_samples)
        return torch.lerp(source[0], batch.mean, alpha), torch.lerp(source[1], batch.var, alpha)
