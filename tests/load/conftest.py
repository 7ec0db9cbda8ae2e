"""Evidence of a small run in which everything went well, made by hand: what the judge's tests then spoil."""

from __future__ import annotations

import pytest

from load.evidence import Cpu, Evidence, Ledger, Probe, Request
from load.plan import BATCH, Plan

DEVICES, R = 4, 10
"""Uploads per second that the cloud of the evidence takes."""
START_S, OVERLOAD_S, KILLED_S, BACK_S, CALM_S, END_S = 0, 10, 20, 35, 80, 120


def name(number: int) -> str:
    return f"device-{number % DEVICES}"


def taken(second: int) -> list[Request]:
    """R uploads, a status and a poll, all answered."""
    uploads = [Request(second + n / R, "upload", "", 0.02, 0.02, 0.0, name(n)) for n in range(R)]
    return [*uploads, Request(second + 0.5, "status", "", 0.01, 0.01, 0.0, name(0)),
            Request(second + 0.6, "poll", "", 5.01, 0.01, 0.0, name(1))]  # fmt: skip


def refused(second: int) -> Request:
    """Of a device that keeps away for two seconds."""
    return Request(second + 0.95, "upload", "overloaded", 0.01, 0.01, 2.0, "device-9")


@pytest.fixture
def evidence() -> Evidence:
    plan = Plan(DEVICES, 1, OVERLOAD_S, CALM_S - OVERLOAD_S, BACK_S - KILLED_S, END_S - CALM_S)
    good = Evidence(plan, (START_S, OVERLOAD_S), (OVERLOAD_S, CALM_S), (KILLED_S, BACK_S), (CALM_S, END_S))
    for second in (*range(START_S, KILLED_S), *range(BACK_S, END_S)):
        good.requests += taken(second)
        if OVERLOAD_S <= second < CALM_S + 2 and second % 4 == 0:
            good.requests.append(refused(second))
    good.requests.append(Request(KILLED_S + 1, "status", "cloud_unreachable", 0.0, 0.0, 0.0, name(0)))
    good.connects = [KILLED_S + 1.0, *(BACK_S + 1.5 * n for n in range(2 * DEVICES))]
    good.made = [(s + 0.5, BATCH * R * (2 if s < CALM_S else 1)) for s in range(OVERLOAD_S, END_S)]
    good.gaps = [(s + 0.5, 0.4) for s in range(OVERLOAD_S, END_S)]
    good.memory = [(s, 1 if s < KILLED_S else 2, 100 + min(s, 40) / 10)
                   for s in (*range(START_S, KILLED_S), *range(BACK_S, END_S))]  # fmt: skip
    good.cpu = [Cpu(s, pid, s / 2, 0.0) for s, pid, _ in good.memory]
    good.probes = [Probe(s, page, 200, 0.02) for s in (*range(START_S, KILLED_S), *range(BACK_S, END_S))
                   for page in ("healthz", "metrics")]  # fmt: skip
    good.acknowledged = [bytes([device, n]) for device in range(DEVICES) for n in range(3)]
    good.stored = [*good.acknowledged, b"an answer that was lost"]
    good.ledgers = [Ledger(name(n), made=6, acknowledged=3, waiting=1, dropped={"overflow": 2}) for n in range(DEVICES)]
    return good
