"""Hostile updates and differences handed to a running agent, as its poller does with what the cloud answers."""

from __future__ import annotations

from typing import Any

import pytest

from cema.errors import CemaError
from hostile.case import Case, bounded, check_error, contents, each
from hostile.updates import CASES

SILENT = ("status.json", "outbox.db", "outbox.db-wal", "outbox.db-shm")


@each(CASES)
def test_an_agent_refuses_the_update_and_goes_on(case: Case, device: Any) -> None:
    data, signature, base = case.build()
    before, version = contents(device.folder, without=SILENT), device.predicts().version
    refused = device.agent.counters.updates_refused
    with bounded(case), pytest.raises(CemaError) as caught:
        device.updater.apply(data, signature, base)
    check_error(case, caught.value.code, caught.value.message, caught.value.hint)
    assert device.agent.counters.updates_refused == refused + 1
    assert device.predicts().version == version
    assert contents(device.folder, without=SILENT) == before
    assert device.updater.poll_after <= device.updater.session.version + 1, "it must still ask for what comes next"
