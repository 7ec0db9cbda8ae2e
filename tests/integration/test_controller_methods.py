"""A group whose method is changed while its bundle stays: learning begins anew, by the new method."""

from __future__ import annotations

from itertools import permutations

import msgspec
import pytest

from cema.cloud.adapt import create_adapter
from cema.cloud.controller import Controller, Publishing
from cema.wire.bundle import Bundle
from integration.conditions import Cloud, controller
from integration.tiny_net import TinyNet

METHODS = ["cema", "cema-lite", "cema-paper", "bn"]


def configured(cloud: Cloud, method: str) -> Controller:
    """As a worker has it that has just been started with this method."""
    adapter = create_adapter(method, TinyNet(1), None if method in ("cema-lite", "bn") else TinyNet(2), {})
    return controller(cloud, adapter, Publishing(method, None, 0))


def learn(cloud: Cloud, method: str, tag: int) -> Controller:
    loop = configured(cloud, method)
    for _ in range(3):
        cloud.show("a", 7, tag, uploads=32)
        cloud.tick(loop)
    return loop


@pytest.mark.parametrize(("first", "then"), [*permutations(METHODS, 2)])
def test_it_learns_as_if_it_had_always_had_the_new_one_from_here_on(first: str, then: str, tiny_bundle: Bundle) -> None:
    cloud = Cloud(tiny_bundle)
    learn(cloud, first, 1)
    before = cloud.manifest().version
    loop = configured(cloud, then)
    assert all((loop.adapter.state()[name] == value).all() for name, value in loop.shared.initial.items()), "the source"
    learn(cloud, then, 2)
    manifest = cloud.manifest()
    assert manifest.version > before
    assert manifest.method == then
    owned_by_edge = then in ("cema", "cema-lite")
    assert manifest.stats_owner == ("edge" if owned_by_edge else "cloud")
    assert manifest.domain == (7 if owned_by_edge else msgspec.UNSET)


def test_the_same_method_goes_on_where_it_was(tiny_bundle: Bundle) -> None:
    cloud = Cloud(tiny_bundle)
    state = learn(cloud, "cema", 1).adapter.state()
    again = configured(cloud, "cema").adapter.state()
    assert again.keys() == state.keys()
    assert all((again[name] == value).all() for name, value in state.items())
