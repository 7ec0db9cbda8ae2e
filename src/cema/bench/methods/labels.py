"""``labels``: norm parameters trained online with the true labels: what gaps are measured against, no rival.

What a perfect teacher could make of the same few parameters, one step per batch, after the batch was answered.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec
import torch
from msgspec import Meta
from torch import nn
from torch.nn import functional

from cema.bench.methods.base import DeviceMethod
from cema.bench.rows import Where
from cema.cloud.adapt.norm import adaptable, norm_train
from cema.cloud.adapt.trainable import Trainable
from cema.errors import ConfigError


class LabelsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The reference's numbers, tuned by no one: gap figures mean this very run."""

    lr: Annotated[float, Meta(gt=0, le=1)] = 0.01  # SGD on norm weights and biases
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.9


class Labels(DeviceMethod):
    """Per batch: answer by the running statistics, then one SGD step of mean_i CE(g(x_i), y_i) on gamma and beta.

    Running statistics are those of the first batch at the start, as a training forward sets them layer by layer, and
    follow the batches with momentum 0.1; values by the running statistics, gradients through the batch
    (adapt/norm.py). The model that was given stays as it is.
    """

    Settings = LabelsSettings
    where: ClassVar[Where] = "backward"

    def __init__(self, model: nn.Module, settings: LabelsSettings, seed: int) -> None:
        self.edge = Trainable(adaptable(model, "native", "first_batch"), settings.lr, settings.momentum)
        self.started = False
        self._answered_BCHW: torch.Tensor | None = None

    def predict(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        if not self.started:
            norm_train(self.edge.model, True)
            self.edge.logits(images_BCHW)
            norm_train(self.edge.model, False)
            self.started = True
        self._answered_BCHW = images_BCHW
        return self.edge.logits(images_BCHW).softmax(1).float()

    @torch.enable_grad()
    def learn(self, labels_B: torch.Tensor) -> None:
        """Train on the batch last predicted, once. Raises ConfigError when the labels are not those of one batch."""
        images_BCHW, self._answered_BCHW = self._answered_BCHW, None
        expected = 0 if images_BCHW is None else len(images_BCHW)
        if images_BCHW is None or labels_B.shape != (expected,):
            raise ConfigError(
                f"expected the labels of the batch last predicted, int64 [{expected}], got {list(labels_B.shape)}",
                hint="call learn once after each predict, with one label per image",
            )
        norm_train(self.edge.model, True)
        logits_BK = self.edge.model(images_BCHW)
        norm_train(self.edge.model, False)
        self.edge.descend(functional.cross_entropy(logits_BK, labels_B))
