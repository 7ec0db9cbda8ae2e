"""Groups take turns with one pair of models; nobody ever works with another's state."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cema.cloud.adapt import create_adapter
from cema.cloud.sharing import SharedAdapter
from cema.errors import StorageError

IMAGES = torch.randn(32, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


@pytest.fixture
def shared() -> SharedAdapter:
    return SharedAdapter(create_adapter("cema-paper", network(1), network(2), {}))


def test_a_holder_that_stays_is_not_asked_for_its_state_again(shared: SharedAdapter) -> None:
    shared.held_by("a", lambda: shared.initial).step(IMAGES, None)
    moved = shared.held_by("a", pytest.fail).edge_parameters()
    assert not np.array_equal(moved["1.running_mean"], network(1)[1].running_mean.numpy())


def test_the_next_holder_finds_its_own_state_and_the_first_one_again_its_own(shared: SharedAdapter) -> None:
    shared.held_by("a", lambda: shared.initial).step(IMAGES, None)
    saved = shared.held_by("a", pytest.fail).state()
    fresh = shared.held_by("b", lambda: shared.initial).state()
    assert all(np.array_equal(fresh[name], value) for name, value in shared.initial.items())
    again = shared.held_by("a", lambda: saved).state()
    assert again.keys() == saved.keys()
    assert all(np.array_equal(again[name], value) for name, value in saved.items())


def test_after_a_state_that_cannot_be_read_nobody_goes_on_with_half_of_it(shared: SharedAdapter) -> None:
    def damaged() -> dict[str, np.ndarray]:
        raise StorageError("gone")

    shared.held_by("a", lambda: shared.initial).step(IMAGES, None)
    with pytest.raises(StorageError):
        shared.held_by("b", damaged)
    with pytest.raises(pytest.fail.Exception, match="asked"):
        shared.held_by("a", lambda: pytest.fail("asked"))
