"""The judge catches every kind of miss that is planted in good evidence, and nothing in good evidence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from load.conftest import BACK_S, CALM_S, KILLED_S
from load.criteria import CRITERIA, growth_mib, herd_share, missed, recovery_s, return_s
from load.evidence import REFUSED, Evidence, Probe, Request
from load.plan import FULL_S, Plan

SPEED, SHED, WAIT, HERD, RECOVERY, OTHERS, SOON, MEMORY, LEDGER, PREDICTIONS = CRITERIA
Plant = Callable[[Evidence], object]


def change(evidence: Evidence, wanted: Callable[[Request], bool], **changes: object) -> None:
    """Of all requests that are wanted."""
    evidence.requests = [each._replace(**changes) if wanted(each) else each for each in evidence.requests]


def remove(evidence: Evidence, wanted: Callable[[Request], bool]) -> None:
    evidence.requests = [each for each in evidence.requests if not wanted(each)]


def upload(at_s: float, code: str = "", taken_s: float = 0.02, device: str = "device-8") -> Request:
    return Request(at_s, "upload", code, taken_s, taken_s, 5.0 if code == REFUSED else 0.0, device)


def is_refused(each: Request) -> bool:
    return each.code == REFUSED


def under_load(each: Request) -> bool:
    return each.kind == "upload" and not each.code and (10 <= each.ended_s < KILLED_S or 41 <= each.ended_s < CALM_S)


def halve(evidence: Evidence) -> None:
    """What it takes under overload; a little less than half."""
    kept = 0

    def gone(each: Request) -> bool:
        nonlocal kept
        kept += under_load(each)
        return under_load(each) and kept % 5 > 1

    remove(evidence, gone)


PLANTED: list[tuple[str, str, Plant]] = [
    ("too little offered", SPEED, lambda e: setattr(e, "made", [(at_s, n // 2) for at_s, n in e.made])),
    ("a cloud that is slow under overload", SPEED, halve),
    ("nobody refused", SHED, lambda e: remove(e, is_refused)),
    ("a refusal that does not say until when", SHED, lambda e: change(e, is_refused, asked_s=0.0)),
    ("a refusal for an hour", SHED, lambda e: e.requests.append(upload(79.0, REFUSED)._replace(asked_s=3600.0))),
    ("an upload that failed", SHED, lambda e: e.requests.append(upload(60.0, "internal"))),
    ("a connection that broke while there was a cloud", SHED,
     lambda e: e.requests.append(upload(60.0, "cloud_unreachable"))),
    ("a device that came back too early", WAIT,
     lambda e: e.requests.extend([upload(60.0, REFUSED), upload(64.0)])),
    ("all at once after the restart", HERD,
     lambda e: setattr(e, "connects", [BACK_S + 3.0 + n / 100 for n in range(8)])),
    ("devices that did not come back", HERD, lambda e: setattr(e, "connects", [])),
    ("a restart after which little was taken", RECOVERY,
     lambda e: remove(e, lambda each: each.kind == "upload" and BACK_S <= each.ended_s < 70 and each.device[-1] > "1")),
    ("refusals long after the overload", RECOVERY, lambda e: e.requests.append(upload(CALM_S + 35.0, REFUSED))),
    ("uploads that stay slow", RECOVERY,
     lambda e: e.requests.extend(upload(float(s), taken_s=1.5) for s in range(CALM_S, 120))),
    ("no upload at all after the overload", RECOVERY,
     lambda e: remove(e, lambda each: each.kind == "upload" and each.ended_s >= CALM_S)),
    ("health that did not answer", OTHERS, lambda e: e.probes.append(Probe(60.0, "healthz", 0, 0.1))),
    ("metrics that took long", SOON, lambda e: e.probes.extend(Probe(60.0, "metrics", 200, 9.0) for _ in range(9))),
    ("a status that took long", SOON, lambda e: change(e, lambda each: each.kind == "status", late_s=9.0)),
    ("polls that took long", SOON, lambda e: change(e, lambda each: each.kind == "poll", late_s=9.0)),
    ("nobody who looked", OTHERS, lambda e: e.probes.clear()),
    ("a process that grows", MEMORY, lambda e: setattr(e, "memory", [(at_s, pid, at_s) for at_s, pid, _ in e.memory])),
    ("memory that nobody looked at", MEMORY, lambda e: e.memory.clear()),
    ("a sample that is nowhere", LEDGER, lambda e: setattr(e.ledgers[0], "made", 7)),
    ("a sample that was acknowledged and dropped", LEDGER, lambda e: e.ledgers[0].dropped.update(overflow=3)),
    ("a drop for another reason", LEDGER, lambda e: setattr(e.ledgers[0], "dropped", {"overflow": 1, "storage": 1})),
    ("books that are missing", LEDGER, lambda e: (e.ledgers.pop(), e.acknowledged.__delitem__(slice(9, 12)))),
    ("an acknowledged sample that is not stored", LEDGER, lambda e: e.stored.pop(0)),
    ("a sample that is stored twice", LEDGER, lambda e: e.stored.append(e.stored[0])),
    ("an acknowledgement that no request brought", LEDGER, lambda e: e.acknowledged.pop()),
    ("a sample that was acknowledged twice", LEDGER,
     lambda e: e.acknowledged.__setitem__(0, e.acknowledged[1])),
    ("a device that stood still", PREDICTIONS, lambda e: e.gaps.append((60.0, 3.5))),
]  # fmt: skip


def found(evidence: Evidence) -> list[str]:
    return [criterion for criterion, ways in missed(evidence).items() if ways]


def test_good_evidence_misses_nothing(evidence: Evidence) -> None:
    assert missed(evidence) == {criterion: [] for criterion in CRITERIA}


@pytest.mark.parametrize(("criterion", "plant"), [each[1:] for each in PLANTED], ids=[each[0] for each in PLANTED])
def test_the_judge_catches(criterion: str, plant: Plant, evidence: Evidence) -> None:
    plant(evidence)
    assert found(evidence) == [criterion]


def test_a_fleet_that_predicts_nothing_has_offered_nothing(evidence: Evidence) -> None:
    evidence.made.clear()
    assert found(evidence) == [SPEED, PREDICTIONS]


def test_every_criterion_is_planted_at_least_once() -> None:
    assert {criterion for _, criterion, _ in PLANTED} == set(CRITERIA)


def test_figures_say_when_others_kept_the_cloud_from_running(evidence: Evidence) -> None:
    assert evidence.share([evidence.overload]) == 1
    evidence.cpu = [each._replace(ran_s=each.at_s / 3, waited_s=each.at_s * 5) for each in evidence.cpu]
    assert evidence.share([evidence.overload]) == pytest.approx(1 / 3, abs=0.01)


def test_figures_are_those_of_the_evidence(evidence: Evidence) -> None:
    assert (evidence.sustainable, evidence.offered) == (10, 20)
    assert evidence.taken(evidence.under_load) == 10
    assert herd_share(evidence) == 1 / 8
    assert return_s(evidence) == 0
    assert recovery_s(evidence) == pytest.approx(0.95)
    assert growth_mib(evidence) == pytest.approx(0.9)


def test_without_a_kill_there_is_no_restart_to_judge(evidence: Evidence) -> None:
    calm = replace(evidence, plan=replace(evidence.plan, away_s=0.0), away=(0.0, 0.0), connects=[])
    assert calm.under_load == [evidence.overload]
    assert not missed(calm)[HERD]
    assert not missed(calm)[RECOVERY]


def test_a_full_run_has_every_part_and_fits_its_time() -> None:
    for seconds in (FULL_S, 240.0, 600.0):
        plan = Plan.within(seconds)
        assert plan.sustained_s + plan.overload_s + plan.calm_s == seconds
        assert plan.away_s < plan.overload_s / 2
    assert not Plan.within(25.0).away_s
