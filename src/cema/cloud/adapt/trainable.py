"""A model whose norm parameters are trained: its optimiser, and everything that must survive a crash."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from cema.cloud.adapt.base import State
from cema.cloud.adapt.norm import BatchRenorm, affine_parameters, memory_format
from cema.cloud.adapt.precision import spare_slow_layers
from cema.cloud.norms import read_parameters, write_parameters
from cema.types import NormParameters

_MOMENTUM_KEY = "momentum_buffer"


class Trainable:
    """An adaptable model (adapt/norm.py) with SGD on its norm weights and biases. reduced: forward and backward in
    bfloat16 (adapt/precision.py)."""

    def __init__(self, model: nn.Module, lr: float, momentum: float, *, reduced: bool = False) -> None:
        if reduced:
            spare_slow_layers(model)
        self.model, self.reduced = model, reduced
        self.layout = memory_format(model)
        self.trained = affine_parameters(model)
        self.optimiser = torch.optim.SGD(self.trained, lr=lr, momentum=momentum)

    def descend(self, loss: torch.Tensor) -> float:
        """One step of gradient descent; returns the loss."""
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        return float(loss.detach())

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """float32 [B, K], with gradient where that is on."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.reduced):
            logits_BK: torch.Tensor = self.model(images_BCHW.contiguous(memory_format=self.layout))
        return logits_BK.float()

    @torch.no_grad()
    def logits(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Forward by running statistics in float32, as a device computes it, [B, K]."""
        logits_BK: torch.Tensor = self.model(images_BCHW.contiguous(memory_format=self.layout))
        return logits_BK

    def parameters(self) -> NormParameters:
        return read_parameters(self.model)

    def state(self, prefix: str) -> State:
        """Norm parameters, statistics, momentum and whether the statistics have started, by prefixed name."""
        state = {f"{prefix}{name}": value for name, value in self.parameters().items()}
        for index, parameter in enumerate(self.trained):
            buffer = self.optimiser.state.get(parameter, {}).get(_MOMENTUM_KEY)
            if buffer is not None:
                state[f"{prefix}momentum.{index}"] = buffer.detach().numpy().copy()
        started = [float(module.started) for module in self._renorms()]
        return {**state, f"{prefix}started": np.asarray(started, np.float32)}

    def load_state(self, state: State, prefix: str) -> None:
        own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        write_parameters(self.model, own)
        for module, started in zip(self._renorms(), own["started"], strict=True):
            module.started.fill_(bool(started))
        self.optimiser.state.clear()
        for index, parameter in enumerate(self.trained):
            if f"momentum.{index}" in own:
                buffer = torch.from_numpy(np.array(own[f"momentum.{index}"], np.float32))
                self.optimiser.state[parameter] = {_MOMENTUM_KEY: buffer}

    def _renorms(self) -> list[BatchRenorm]:
        return [module for module in self.model.modules() if isinstance(module, BatchRenorm)]
