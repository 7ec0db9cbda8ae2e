"""``bn-ema``: running statistics that follow the stream. Forward passes only; works at a batch size of one.

The moving average of Ioffe & Szegedy (ICML 2015, arXiv 1502.03167), kept up at test time.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec
import torch
from msgspec import Meta
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cema.bench.methods.base import DeviceMethod
from cema.bench.methods.norms import Measured, Statistics, normalise_by, probabilities, running_statistics
from cema.bench.rows import Where


class BatchNormEmaSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The method's numbers."""

    momentum: Annotated[float, Meta(gt=0, le=1)] = 0.1
    """Share of the present batch; 0.1 is torch's for batch norm. A smaller one suits smaller batches."""


class BatchNormEma(DeviceMethod):
    """From the source's statistics on, in every layer and for every batch:

        mu <- (1 - m) mu + m mu_b,   var <- (1 - m) var + m var_b,   y = gamma (x - mu) / sqrt(var + eps) + beta

    var_b unbiased, as torch keeps running variances. A layer moves first and then normalises by what it moved to, in
    the one forward that also answers: the next layer measures inputs that are corrected already. Measured behind
    layers that still normalise by the old statistics, every layer of a deep network corrects for the same shift: in a
    chain of 20 layers a shift of 1 is answered by -1 after one batch, here by 0.12 and then never more. (What the
    later layers took over of it fades as the earlier ones catch up: a small ripple remains for some 1 / m batches.)

    One value per channel says nothing about the variance, which then stays. A batch norm without source statistics
    starts from its first batch; a model without batch norm is left as it is.
    """

    Settings = BatchNormEmaSettings
    where: ClassVar[Where] = "forward"

    def __init__(self, model: nn.Module, settings: BatchNormEmaSettings, seed: int) -> None:
        self.model, self.settings = model, settings
        normalise_by(model, self._move)

    @torch.no_grad()
    def predict(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return probabilities(self.model(images_BCHW))

    def _move(self, layer: _BatchNorm, batch: Measured) -> Statistics:
        running = running_statistics(layer)
        if running is None:
            return batch.mean, batch.var
        mean_C, var_C = running
        mean_C = torch.lerp(mean_C, batch.mean, self.settings.momentum)
        if batch.values > 1:
            unbiased_C = batch.var * (batch.values / (batch.values - 1))
            var_C = torch.lerp(var_C, unbiased_C, self.settings.momentum)
        return mean_C, var_C
