"""Batch renormalisation for adaptation: forward by running statistics, gradient through the batch's.

Test-time batch renormalisation (DELTA, Zhao et al., ICLR 2023, after Ioffe 2017):

    y = gamma ((x - mu_b) / sd_b * r + d) + beta,   r = sd_b / sd_run,   d = (mu_b - mu_run) / sd_run   (detached)

The value equals normalisation by the running statistics; only the gradient sees the batch. Afterwards the running
mean moves by ``MOMENTUM`` towards the batch mean, the running variance towards the unbiased batch variance.
Written three times: ``textbook`` line by line as above (the oracle), ``native`` as one call of torch's batch norm, and
``fused``, which computes the value from the running statistics, as it equals that, in one pass over the input, and
only the gradient from the batch's. In channels-last order, which ``fused`` models have, that is the fastest.

Which batch statistics? With the targets ``renorm`` those of this very forward, as published: every layer sees inputs
that the layers before it normalised by the *old* statistics, so all of them correct for the same shift at once, and a
network of fifty layers overshoots before it settles. With the targets ``batch`` they come from a second forward in
which every layer normalises by the batch, so that each corrects only what is left for it (ADR 9).
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional

from cema.cloud.norms import norm_layers

MOMENTUM = 0.1
"""Of the running statistics, fixed for every layer (EfficientNet's own 0.01 would be too slow for adaptation)."""

Impl = Literal["textbook", "native", "fused"]
Start = Literal["source", "first_batch"]
Targets = Literal["renorm", "batch"]


class BatchRenorm(nn.modules.batchnorm._BatchNorm):
    """Takes the place of a batch norm layer and keeps its parameter names.

    In train mode batch renormalisation, in eval mode normalisation by the running statistics. ``start`` =
    first_batch forgets the source statistics: those of the first batch in train mode take their place. ``targets``:
    see above; with ``batch`` the running statistics only move in ``follow_statistics``.
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor
    started: torch.Tensor

    def __init__(
        self, layer: nn.modules.batchnorm._BatchNorm, impl: Impl, start: Start, targets: Targets = "renorm"
    ) -> None:
        like = next((t for t in (layer.weight, layer.running_mean) if t is not None), torch.empty(0))
        super().__init__(layer.num_features, layer.eps, MOMENTUM, device=like.device, dtype=like.dtype)
        if layer.affine:
            self.weight.data.copy_(layer.weight.data)
            self.bias.data.copy_(layer.bias.data)
        if layer.running_mean is None or layer.running_var is None:
            start = "first_batch"
        else:
            self.running_mean.copy_(layer.running_mean)
            self.running_var.copy_(layer.running_var)
        self.impl = impl
        self.targets = targets
        self.following = False
        self.register_buffer("started", torch.tensor(start == "source"))

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected an input of at least two dimensions [B, C, ...], got {input.dim()}")

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        mean_C, var_C = self._batch_statistics(input)
        count = input.numel() // input.shape[1]
        self._start(mean_C, var_C, count)
        if self.following:
            output = functional.batch_norm(input, None, None, self.weight, self.bias, True, 0.0, self.eps)
        else:
            renormalise = {"textbook": self._textbook, "native": self._native, "fused": self._fused}[self.impl]
            output = renormalise(input, mean_C, var_C)
        if self.following or self.targets == "renorm":
            self._move(mean_C, var_C, count)
        return output

    def _batch_statistics(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(mean, biased variance) [C]. Only the textbook's gradient flows through them."""
        if self.impl == "fused":
            with torch.no_grad():
                like_C = torch.zeros_like(self.running_mean)  # says that sums are float32 though x may be bfloat16
                return torch.batch_norm_update_stats(x, like_C, like_C, 0.0)
        axes = [axis for axis in range(x.dim()) if axis != 1]
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.impl == "textbook"):
            var_C, mean_C = torch.var_mean(x, axes, correction=0)
        return mean_C, var_C

    def _textbook(self, x: torch.Tensor, mean_C: torch.Tensor, var_C: torch.Tensor) -> torch.Tensor:
        shape = (1, -1) + (1,) * (x.dim() - 2)
        sd_C = (var_C + self.eps).sqrt()
        r_C, d_C = self._correction(mean_C, sd_C)
        normalised = (x - mean_C.view(shape)) / sd_C.view(shape) * r_C.view(shape) + d_C.view(shape)
        return self.weight.view(shape) * normalised + self.bias.view(shape)

    def _native(self, x: torch.Tensor, mean_C: torch.Tensor, var_C: torch.Tensor) -> torch.Tensor:
        r_C, d_C = self._correction(mean_C, (var_C + self.eps).sqrt())
        weight_C, bias_C = self.weight * r_C, self.weight * d_C + self.bias
        return functional.batch_norm(x, None, None, weight_C, bias_C, True, 0.0, self.eps)

    def _fused(self, x: torch.Tensor, mean_C: torch.Tensor, var_C: torch.Tensor) -> torch.Tensor:
        running, batch = (self.running_mean, self.running_var), (mean_C, var_C)
        output: torch.Tensor = _Fused.apply(x, self.weight, self.bias, running, batch, self.eps)  # type: ignore[no-untyped-call]
        return output

    def _correction(self, mean_C: torch.Tensor, sd_C: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        running_sd_C = (self.running_var + self.eps).sqrt()
        return (sd_C / running_sd_C).detach(), ((mean_C - self.running_mean) / running_sd_C).detach()

    @torch.no_grad()
    def _start(self, mean_C: torch.Tensor, var_C: torch.Tensor, count: int) -> None:
        if not bool(self.started):
            self.running_mean.copy_(mean_C)
            self.running_var.copy_(var_C * (count / max(count - 1, 1)))
            self.started.fill_(True)

    @torch.no_grad()
    def _move(self, mean_C: torch.Tensor, var_C: torch.Tensor, count: int) -> None:
        # The next forward must not change what this one's backward still needs: out of place.
        unbiased_C = var_C * (count / max(count - 1, 1))
        self.running_mean = self.running_mean + MOMENTUM * (mean_C - self.running_mean)
        self.running_var = self.running_var + MOMENTUM * (unbiased_C - self.running_var)


class _Fused(torch.autograd.Function):
    """gamma (x - mu_run) / sd_run + beta; backward as of a batch norm with weight gamma r and bias gamma d + beta.

    running, batch: (mean, biased variance) [C] each.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight_C: torch.Tensor, bias_C: torch.Tensor,
        running: tuple[torch.Tensor, torch.Tensor], batch: tuple[torch.Tensor, torch.Tensor], eps: float,
    ) -> torch.Tensor:  # fmt: skip
        ctx.save_for_backward(x, weight_C, *running, *batch)
        ctx.eps = eps
        return functional.batch_norm(x, *running, weight_C, bias_C, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight_C, running_mean_C, running_var_C, mean_C, var_C = ctx.saved_tensors
        inverse_sd_C, running_inverse_C = (var_C + ctx.eps).rsqrt(), (running_var_C + ctx.eps).rsqrt()
        r_C, d_C = running_inverse_C / inverse_sd_C, (mean_C - running_mean_C) * running_inverse_C
        to_x, to_scale_C, to_bias_C = torch.ops.aten.native_batch_norm_backward(
            upstream[0].to(x.dtype), x, weight_C * r_C, None, None, mean_C, inverse_sd_C, True, ctx.eps,
            [ctx.needs_input_grad[0], True, True],
        )  # fmt: skip
        return to_x, to_scale_C * r_C + to_bias_C * d_C, to_bias_C, None, None, None


def adaptable(
    model: nn.Module, impl: Impl = "native", start: Start = "source", targets: Targets = "renorm"
) -> nn.Module:
    """A copy of ``model`` ready to adapt: batch norms renormalised, only norm weights and biases trainable, eval mode.

    Layer and group norms have no running statistics: of them, weight and bias are adapted.
    """
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            model = _replace(model, name, BatchRenorm(module, impl, start, targets))
    model.requires_grad_(False)
    for parameter in affine_parameters(model):
        parameter.requires_grad_(True)
    layout = memory_format(model)
    for weight in (parameter for parameter in model.parameters() if parameter.dim() == 4):
        weight.data = weight.data.contiguous(memory_format=layout)
    return model.eval()


def memory_format(model: nn.Module) -> torch.memory_format:
    """The order of pixels in which an adaptable model is fast: its weights have it, its images should."""
    fused = any(isinstance(module, BatchRenorm) and module.impl == "fused" for module in model.modules())
    return torch.channels_last if fused else torch.contiguous_format


def affine_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Weights and biases of all norm layers, in order."""
    tensors = [tensor for layer in norm_layers(model) for tensor in layer.tensors().values()]
    return [tensor for tensor in tensors if isinstance(tensor, nn.Parameter)]


def norm_train(model: nn.Module, mode: bool) -> None:
    """Batch statistics on or off; everything else (dropout, stochastic depth) stays in eval mode."""
    for layer in norm_layers(model):
        layer.module.train(mode)


@torch.no_grad()
def follow_statistics(model: nn.Module, images_BCHW: torch.Tensor) -> None:
    """Move the running statistics of layers with the targets ``batch`` towards those of this batch; others rest."""
    layers = [module for module in model.modules() if isinstance(module, BatchRenorm) and module.targets == "batch"]
    if not layers:
        return
    for layer in layers:
        layer.following = layer.training = True
    model(images_BCHW)
    for layer in layers:
        layer.following = layer.training = False


def _replace(model: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    if not name:
        return layer
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)
    return model
