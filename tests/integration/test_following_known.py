"""A running device in a world that its model was trained on."""

from __future__ import annotations

from typing import Any

import pytest

from cema.config import StatisticsConfig
from cema.types import Uint8Array
from cema.wire.bundle import decode_bundle

NOWHERE = "http://127.0.0.1:1"


@pytest.mark.parametrize("knows", [True, False])
def test_in_a_world_that_the_model_knows_nothing_is_selected_and_answers_are_the_models(
    device: Any, digits_bundle: bytes, pale: Uint8Array, monkeypatch: pytest.MonkeyPatch, knows: bool
) -> None:
    """What the model knows is decided elsewhere (unit/test_edge_telling.py)."""
    monkeypatch.setattr("cema.edge.mixed.knows", lambda *_: knows)
    device.bundle = decode_bundle(digits_bundle)
    statistics = StatisticsConfig(follow="on", class_prior=False, duty=1.0)
    agent = device.start(bundle=device.bundle, url=NOWHERE, statistics=statistics)
    for start in range(0, 1280, 64):
        agent.predict(list(pale[start % 512 : start % 512 + 64]))
        device.settle(agent)
    before = agent.status()["selected"]
    assert before > 0
    agent.predict(list(pale[:64]))
    assert (agent.status()["selected"] == before) is knows
    plain = agent._updater.bundle.source_parameters()
    _, ((_, used),) = agent._follower._own.in_use(plain, None)
    assert all((used[name] == value).all() for name, value in plain.items()) is knows
