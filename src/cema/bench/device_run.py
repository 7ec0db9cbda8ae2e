"""A method that needs no cloud, run on each device alone: torch forward, perhaps backward, no bytes."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cema.bench.answer import Answer
from cema.bench.memory_probe import MemoryProbe
from cema.bench.methods.base import DeviceMethod
from cema.types import Uint8Array
from cema.wire.messages import Preprocess
from cema.wire.preprocess import preprocess


class DeviceRun:
    """See ``cema.bench.answer.Run``. methods: one per device, each with a model of its own."""

    def __init__(self, methods: Sequence[DeviceMethod], preprocessing: Preprocess) -> None:
        self.methods, self.preprocessing = list(methods), preprocessing
        self.probe = MemoryProbe()

    def step(self, batches: Sequence[Uint8Array | None]) -> list[Answer | None]:
        return [
            None if images is None else self._predict(method, images)
            for method, images in zip(self.methods, batches, strict=True)
        ]

    def learn(self, labels: Sequence[NDArray[np.int64] | None]) -> None:
        for method, labels_B in zip(self.methods, labels, strict=True):
            if labels_B is not None:
                with self.probe.side("edge"):
                    method.learn(torch.from_numpy(labels_B))

    def _predict(self, method: DeviceMethod, images_BHWC: Uint8Array) -> Answer:
        with self.probe.side("edge"):
            started = time.perf_counter()
            images_BCHW = torch.from_numpy(preprocess(list(images_BHWC), self.preprocessing))
            probabilities_BK = method.predict(images_BCHW).detach().numpy()
            return Answer(probabilities_BK, edge_s=time.perf_counter() - started)


def own_copy(model: nn.Module) -> nn.Module:
    """For a method to change."""
    return copy.deepcopy(model).eval()
