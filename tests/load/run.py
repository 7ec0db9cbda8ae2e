"""A run from start to verdict: find what the cloud can take, offer twice as much, kill it once, let it calm down."""

from __future__ import annotations

import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from load.criteria import (
    attempts_per_second,
    growth_mib,
    herd_limit,
    herd_share,
    late,
    missed,
    recovery_s,
    return_s,
    under_load,
)
from load.evidence import REFUSED, Evidence, Span, percentile
from load.fleet import Cloud, Driver, acknowledged_file, drivers
from load.plan import BATCH, KILL_AFTER, Order, Plan

OVERLOAD, CALM = 2.0, 0.5
"""Times the sustainable rate."""
CLOSED_LOOP = 8
"""Devices that upload as fast as they are answered while the sustainable rate is found: the cloud is never idle, and
nobody is refused."""
WARM_S = 2.0
READY_LIMIT_S, SETTLE_S, BOOKS_LIMIT_S = 120.0, 30.0, 120.0
SAMPLE_ID_BYTES = 16
_MINUTE_S = 60


@dataclass(frozen=True)
class Result:
    """missed: each criterion with how it was missed."""

    seconds: float
    figures: dict[str, Any]
    missed: dict[str, list[str]]

    @property
    def criteria_missed(self) -> int:
        return sum(bool(ways) for ways in self.missed.values())


def run(seconds: float, keep: Path | None = None) -> Result:
    """keep: folder for the logs, if anything is missed."""
    plan = Plan.within(seconds)
    evidence = Evidence(plan, (0.0, 0.0), (0.0, 0.0), (0.0, 0.0), (0.0, 0.0))
    cloud, fleet = Cloud(evidence), list[Driver]()
    try:
        cloud.start()
        fleet += drivers(cloud, plan, evidence)
        for driver in fleet:
            if not driver.ready.wait(READY_LIMIT_S):
                raise TimeoutError((cloud.folder / "drivers.log").read_text()[-2000:])
        _drive(plan, evidence, cloud, fleet)
        for number in range(plan.drivers):
            data = acknowledged_file(cloud, number).read_bytes()
            evidence.acknowledged += [data[at : at + SAMPLE_ID_BYTES] for at in range(0, len(data), SAMPLE_ID_BYTES)]
        evidence.stored = cloud.stored()
        ways = missed(evidence)
        if keep is not None and any(ways.values()):
            for log in cloud.folder.glob("*.log"):
                shutil.copy(log, keep)
    finally:
        for driver in fleet:
            driver.kill()
        cloud.stop()
    return Result(seconds, figures(evidence), ways)


def _drive(plan: Plan, evidence: Evidence, cloud: Cloud, fleet: list[Driver]) -> None:
    pause = threading.Event()

    def order(**said: Any) -> float:
        for driver in fleet:
            driver.order(Order(**said))
        return time.monotonic()

    began_s = order(images_per_s=None, active=CLOSED_LOOP // plan.drivers)
    pause.wait(WARM_S + plan.sustained_s)
    evidence.sustained = (began_s + WARM_S, time.monotonic())
    order(active=0)
    pause.wait(WARM_S)  # the last second's notes
    images_per_s = evidence.sustainable * BATCH / plan.drivers
    everybody = {"active": plan.devices // plan.drivers}
    began_s = order(images_per_s=OVERLOAD * images_per_s, **everybody)
    if plan.away_s:
        pause.wait(KILL_AFTER * plan.overload_s)
        killed_s = time.monotonic()
        cloud.service.process.kill()
        cloud.service.process.wait()
        pause.wait(plan.away_s)
        cloud.service.start()
        evidence.away = (killed_s, time.monotonic())
    pause.wait(max(0.0, began_s + plan.overload_s - time.monotonic()))
    calm_s = order(images_per_s=CALM * images_per_s, **everybody)
    evidence.overload = (began_s, calm_s)
    pause.wait(plan.calm_s)
    evidence.calm = (calm_s, order(settle_s=SETTLE_S))
    for driver in fleet:
        driver.end(SETTLE_S + BOOKS_LIMIT_S)


def figures(evidence: Evidence) -> dict[str, Any]:
    spans, sustainable = evidence.under_load, evidence.sustainable
    sent = [each for span in spans for each in evidence.sent(span)]
    seconds = sum(until - since for since, until in spans)
    return {
        "devices": evidence.plan.devices,
        "samples_per_upload": BATCH,
        "sustainable_uploads_per_s": round(sustainable, 1),
        "offered_uploads_per_s": round(evidence.offered, 1),
        "taken_uploads_per_s": round(evidence.taken(spans), 1),
        "refused_uploads_per_s": round(sum(each.code == REFUSED for each in sent) / seconds, 1),
        "refused": sum(each.code == REFUSED for each in evidence.requests),
        "refused_with_retry_after": sum(each.code == REFUSED and each.asked_s > 0 for each in evidence.requests),
        "retry_after_s_p50_max": _rounded([percentile([each.asked_s for each in sent if each.asked_s], q)
                                           for q in (50, 100)]),
        "upload_ms_p50_p99": {
            name: _ms([each.taken_s for span in parts for each in evidence.uploads(span)])
            for name, parts in _parts(evidence)
        },
        "answered_under_overload_ms_p50_p99": {
            "status": _ms(late(evidence, "status")),
            "poll, beyond its wait": _ms(late(evidence, "poll")),
            **{page: _ms([each.taken_s for each in under_load(evidence) if each.page == page])
               for page in ("healthz", "readyz", "metrics")},
        },
        "share_of_a_core": {name: round(evidence.share(parts), 2) for name, parts in _parts(evidence)},
        "away_s": round(evidence.away[1] - evidence.away[0], 1),
        "connections_tried_per_s_after_restart": attempts_per_second(evidence)[:30],
        "largest_share_of_the_fleet_in_one_second": round(herd_share(evidence), 3),
        "share_allowed": round(herd_limit(evidence), 3),
        "recovered_from_restart_s": round(return_s(evidence), 1),
        "recovered_from_overload_s": round(recovery_s(evidence), 1),
        "memory_mib_by_minute": _by_minute(evidence),
        "memory_growth_mib": round(growth_mib(evidence), 1),
        **_books(evidence),
        "longest_gap_s": round(max((gap_s for _, gap_s in evidence.gaps), default=0.0), 2),
    }  # fmt: skip


def _parts(evidence: Evidence) -> list[tuple[str, list[Span]]]:
    return [("sustainable", [evidence.sustained]), ("overload", evidence.under_load), ("calm", [evidence.calm])]


def _books(evidence: Evidence) -> dict[str, Any]:
    dropped: dict[str, int] = {}
    for each in evidence.ledgers:
        for reason, number in each.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + number
    return {
        "samples_made": sum(each.made for each in evidence.ledgers),
        "samples_acknowledged": sum(each.acknowledged for each in evidence.ledgers),
        "samples_waiting": sum(each.waiting for each in evidence.ledgers),
        "samples_dropped": dropped,
        "samples_stored": len(evidence.stored),
    }


def _by_minute(evidence: Evidence) -> list[list[int]]:
    """One list for each life of the web process."""
    lives: dict[int, list[tuple[float, float]]] = {}
    for at_s, pid, mib in evidence.memory:
        lives.setdefault(pid, []).append((at_s, mib))
    return [[round(mib) for _, mib in life[::_MINUTE_S]] + [round(life[-1][1])] for life in lives.values()]


def _ms(seconds: list[float]) -> list[float]:
    return _rounded([1000 * percentile(seconds, q) for q in (50, 99)])


def _rounded(values: list[float]) -> list[float]:
    return [round(value, 1) for value in values]
