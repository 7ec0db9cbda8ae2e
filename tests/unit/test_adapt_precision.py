"""Adapt steps in bfloat16: close to float32, the same state, and no slow layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from cema.cloud.adapt import create_adapter
from cema.cloud.adapt.precision import InFloat32, has_bfloat16, is_reduced, spare_slow_layers
from cema.cloud.adapt.trainable import Trainable
from cema.cloud.norms import read_parameters
from cema.types import NormParameters

FAST = {"norm_impl": "fused", "teacher": "auto"}
IMAGES = torch.randn(32, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def network(seed: int) -> nn.Module:
    """Its second convolution is one of those that bfloat16 makes slow."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip


def test_a_step_in_bfloat16_is_a_step_in_float32_to_its_rounding() -> None:
    exact, rounded = (
        create_adapter("cema-paper", network(1), network(2), {**FAST, "precision": precision, "edge_lr": 0.3})
        for precision in ("float32", "bfloat16")
    )
    before = exact.edge_parameters()
    for _ in range(3):
        losses = [adapter.step(IMAGES, IMAGES.flip(0)) for adapter in (exact, rounded)]
        assert losses[0] is not None
        assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert exact.state().keys() == rounded.state().keys()
    assert {value.dtype for value in rounded.edge_parameters().values()} == {np.dtype(np.float32)}
    start, end, other = (
        joined(parameters) for parameters in (before, exact.edge_parameters(), rounded.edge_parameters())
    )
    assert np.linalg.norm(end - start) > 0.01
    assert np.linalg.norm(other - end) < 0.01 * np.linalg.norm(end - start)


def joined(parameters: NormParameters) -> NDArray[np.float32]:
    return np.concatenate([parameters[name].ravel() for name in sorted(parameters)])


def test_the_gate_hears_what_a_device_would_answer() -> None:
    adapter = create_adapter("cema-paper", network(1), network(2), {**FAST, "precision": "bfloat16"})
    expected = network(1).eval()(IMAGES)
    np.testing.assert_allclose(adapter.edge_logits(IMAGES), expected.detach(), rtol=1e-4, atol=1e-5)


def test_only_strided_grouped_convolutions_are_spared_and_names_of_norms_stay() -> None:
    model = network(1)
    names = list(read_parameters(model))
    spare_slow_layers(model)
    assert [type(layer) for layer in model if isinstance(layer, nn.Conv2d | InFloat32)] == [nn.Conv2d, InFloat32]
    assert list(read_parameters(model)) == names


def test_a_spared_layer_takes_and_gives_bfloat16_and_its_gradient_is_right() -> None:
    layer = nn.Conv2d(4, 4, 3, stride=2, groups=4).requires_grad_(False)
    x = torch.randn(2, 4, 9, 9).bfloat16()
    spared, plain = x.clone().requires_grad_(), x.float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        output = InFloat32(layer)(spared)
    assert output.dtype == torch.bfloat16
    output.float().square().sum().backward()
    layer(plain).square().sum().backward()
    assert spared.grad is not None
    torch.testing.assert_close(spared.grad.float(), plain.grad, rtol=0.02, atol=0.02)


def test_auto_follows_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    for capabilities, native in (({"avx512_bf16": True}, True), ({"avx2": True, "avx512_bf16": False}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert has_bfloat16() is native
        assert is_reduced("auto") is native
    assert is_reduced("bfloat16")
    assert not is_reduced("float32")


def test_without_reduction_the_model_is_left_alone() -> None:
    model = network(1)
    Trainable(model, lr=0.1, momentum=0.9)
    assert not any(isinstance(layer, InFloat32) for layer in model.modules())
