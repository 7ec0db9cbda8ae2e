"""Evidence of a small run in which everything went well, made by hand: what the checker's tests then spoil."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from chaos.evidence import Cloud, Evidence, Facts, Version
from chaos.promises import broken_promises

PERIOD_S = 0.5
SOURCE = {"affine": "source-affine", "whole": "source-whole"}
ADAPTED = {"affine": "v1-affine", "whole": "v1-whole"}


def diary(boot_s: float, until_s: float, version: int) -> list[Facts]:
    """Of one life, with a prediction every half second."""
    model = {"version": version, "revision": 0, **(ADAPTED if version else SOURCE)}
    lines = [{"event": "boot", "t": boot_s}, {"event": "ready", "t": boot_s + 1, "version": version}]
    times = [boot_s + 1 + PERIOD_S * n for n in range(1, round((until_s - boot_s - 1) / PERIOD_S))]
    lines += [{"event": "predicted", "t": t, "n": n, "version": version} for n, t in enumerate(times)]
    return [*lines, {"event": "model", "t": times[0], **model}]


def network() -> list[Facts]:
    """Both devices upload two samples, one of them comes twice; edge-0 takes version 1."""
    asked = {"event": "asked", "status": 200, "refused": []}
    return [
        {**asked, "t": 4.0, "name": "edge-0", "group": "digits", "device": "edge-0", "ids": ["a0", "a1"]},
        {**asked, "t": 4.1, "name": "edge-1", "group": "others", "device": "edge-1", "ids": ["b0", "b1"]},
        {**asked, "event": "repeated", "t": 4.2, "name": "edge-0", "group": "digits", "device": "edge-0",
         "ids": ["a0", "a1"]},
        {"event": "misrouted", "t": 4.3, "name": "edge-1", "group": "digits", "device": "edge-1", "ids": ["b0"],
         "status": 403},
        {"event": "asked", "t": 5.0, "name": "edge-0", "group": "digits", "status": 200, "version": 1,
         "signature": "signed-v1"},
    ]  # fmt: skip


def harness() -> list[Facts]:
    """edge-0 is killed at 6 with one sample in its outbox, edge-1 is stopped for five seconds."""
    slot = {"slot": "a", "named": "blob-1", "found": "blob-1", "version": 1, "active": True}
    outbox = {"ids": ["a2"], "counters": {}}
    return [
        {"event": "spawn", "t": 0.0, "name": "edge-0", "pid": 10},
        {"event": "spawn", "t": 0.0, "name": "edge-1", "pid": 11},
        *network(),
        {"event": "kill", "t": 6.0, "name": "edge-0", "pid": 10},
        {"event": "exit", "t": 6.0, "name": "edge-0", "pid": 10, "code": -9, "ours": True},
        {"event": "state", "t": 6.1, "name": "edge-0", "outbox": outbox, "slots": [slot]},
        {"event": "learned", "t": 6.2, "fresh": {"digits a0": 1, "digits a1": 1}},
        {"event": "spawn", "t": 6.5, "name": "edge-0", "pid": 12},
        {"event": "stop", "t": 7.0, "name": "edge-1", "pid": 11},
        {"event": "memory", "t": 8.0, "name": "edge-1", "mib": 120},
        {"event": "continue", "t": 12.0, "name": "edge-1", "pid": 11},
        *({"event": "terminate", "t": 15.0, "name": f"edge-{n}", "pid": 12 - n} for n in range(2)),
        *({"event": "exit", "t": 15.5, "name": f"edge-{n}", "pid": 12 - n, "code": 0, "ours": True} for n in range(2)),
        {"event": "state", "t": 16.0, "name": "edge-0", "outbox": outbox, "slots": [slot]},
        {"event": "state", "t": 16.1, "name": "edge-1", "outbox": {"ids": [], "counters": {}}, "slots": []},
    ]


@pytest.fixture
def evidence() -> Evidence:
    samples: dict[tuple[str, str], tuple[str, int | None]] = {
        ("digits", "a0"): ("edge-0", 1), ("digits", "a1"): ("edge-0", 1),
        ("others", "b0"): ("edge-1", None), ("others", "b1"): ("edge-1", None),
    }  # fmt: skip
    versions = {("digits", 1): Version("digits", 1, "signed-v1", 2, 2, "blob-1", ADAPTED)}
    cloud = Cloud(samples, {"edge-0": "digits", "edge-1": "others"}, versions)
    awake = [line for line in diary(0.0, 15.0, 0) if not 7.0 < line["t"] < 12.0]
    return Evidence(harness(), {"edge-0": [*diary(0.0, 6.0, 1), *diary(6.5, 15.0, 1)], "edge-1": awake}, cloud, SOURCE)


@pytest.fixture
def broken(evidence: Evidence) -> Callable[[], list[str]]:
    """Which promises the evidence, as it is by now, shows to be broken."""
    return lambda: [promise for promise, ways in broken_promises(evidence).items() if ways]
