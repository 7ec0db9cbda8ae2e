"""What the device methods do to a model's norm layers: choose the statistics, pick the parameters that are trained.

Two ways to leave the source's running statistics: ``by_batch`` (the batch alone, with gradient through it) and
``normalise_by`` (a rule that sets a layer's statistics from its input just before it normalises, without gradient).
In both every layer sees what the layers before it made of *this* batch, so none corrects a shift twice.
Layer and group norms have no statistics of a batch: of them only weight and bias can be adapted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cema.cloud.adapt.norm import affine_parameters
from cema.errors import ConfigError


@dataclass(frozen=True)
class Measured:
    """Statistics of one layer's input [B, C, ...]. mean, var: [C] each, the variance biased (divided by ``values``).

    images: B. values: per channel, B x H x W in an image model.
    """

    mean: torch.Tensor
    var: torch.Tensor
    images: int
    values: int


Statistics = tuple[torch.Tensor, torch.Tensor]
"""Mean and variance of a layer, each [C]."""
Rule = Callable[[_BatchNorm, Measured], Statistics]
"""From a layer, whose running statistics are those of the batch before, to the statistics that it normalises by now."""


class ByBatch(_BatchNorm):
    """Takes the place of a batch norm and normalises by the present batch, whatever the mode; nothing is remembered.

    A single value per channel is its own mean: the output is the bias, the gradient zero (torch's layer raises).
    """

    def __init__(self, layer: _BatchNorm) -> None:
        super().__init__(layer.num_features, layer.eps, affine=False, track_running_stats=False)
        self.weight, self.bias, self.affine = layer.weight, layer.bias, layer.affine
        self.train(layer.training)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        cudnn = torch.backends.cudnn.enabled
        return torch.batch_norm(input, self.weight, self.bias, None, None, True, 0.0, self.eps, cudnn)


def by_batch(model: nn.Module) -> nn.Module:
    """``model`` with every batch norm replaced by ``ByBatch``, weights and biases kept (the same tensors), in place.

    A layer that the model uses in two places stays one layer.
    """
    replaced = {layer: ByBatch(layer) for layer in batch_norms(model)}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, _BatchNorm):
            if not name:
                return replaced[module]
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, replaced[module])
    return model


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The batch norms, in the model's order."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def running_statistics(layer: _BatchNorm) -> Statistics | None:
    """Running mean and variance of a layer, the tensors themselves, if it has any."""
    if layer.running_mean is None or layer.running_var is None:
        return None
    return layer.running_mean, layer.running_var


def normalise_by(model: nn.Module, rule: Rule) -> None:
    """From now on each batch norm of ``model`` (in eval mode) asks ``rule`` for its statistics, layer after layer.

    They are left in ``running_mean`` and ``running_var``.
    """

    @torch.no_grad()
    def measure(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(layer, _BatchNorm)
        (x,) = inputs
        # three times as fast as var_mean; the variance is the biased one
        mean_C, var_C = torch.batch_norm_update_stats(x, None, None, 0.0)
        measured = Measured(mean_C, var_C, x.shape[0], x.numel() // x.shape[1])
        layer.running_mean, layer.running_var = rule(layer, measured)

    for layer in batch_norms(model):
        layer.register_forward_pre_hook(measure)


def train_affine(model: nn.Module, method: str) -> list[nn.Parameter]:
    """The weights and biases of all norm layers, made the only trainable tensors of ``model``.

    Raises ConfigError when there are none: ``method`` then has nothing to adapt.
    """
    model.requires_grad_(False)
    trained = affine_parameters(model)
    if not trained:
        raise ConfigError(
            f"method {method!r} trains weights and biases of norm layers, and the model has none",
            hint="use a model with batch, layer or group norm, or a method without gradients",
        )
    for parameter in trained:
        parameter.requires_grad_(True)
    return trained


def descend(loss: torch.Tensor, optimiser: torch.optim.Optimizer) -> None:
    """One step of gradient descent on a scalar loss."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()


def probabilities(logits_BK: torch.Tensor) -> torch.Tensor:
    """Softmax, float32 [B, K], without gradient: what a method answers."""
    return logits_BK.detach().softmax(1).float()
