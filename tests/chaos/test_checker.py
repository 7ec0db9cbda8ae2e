"""The checker catches every kind of broken promise that is planted in good evidence, and nothing in good evidence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from chaos.evidence import Evidence, Facts
from chaos.promises import PROMISES, broken_promises

PREDICTING, DELIVERING, WHOLE, APART, PROCESSES = PROMISES
Plant = Callable[[Evidence], object]


def remove(evidence: Evidence, edge: str, since_s: float, until_s: float) -> None:
    """Of a diary, what was written in between."""
    evidence.edges[edge] = [line for line in evidence.edges[edge] if not since_s < line["t"] < until_s]


def change(evidence: Evidence, event: str, **facts: object) -> None:
    next(evidence.of(event)).update(facts)


def change_slot(evidence: Evidence, **facts: object) -> None:
    next(evidence.of("state"))["slots"][0].update(facts)


def change_model(evidence: Evidence, **facts: object) -> None:
    next(line for line in evidence.edges["edge-0"] if line["event"] == "model").update(facts)


def add(evidence: Evidence, **facts: object) -> None:
    evidence.harness.append({"t": 9.0, **facts})


def no_room(evidence: Evidence) -> Facts:
    """A device that could not start."""
    line = {"event": "waits", "t": 6.6, "code": "storage_failed", "why": "no room"}
    evidence.edges["edge-0"].append(line)
    evidence.edges["edge-0"].sort(key=lambda line: line["t"])
    return line


def forget_version(evidence: Evidence) -> None:
    del evidence.cloud.versions["digits", 1]
    evidence.harness[:] = [each for each in evidence.harness if each.get("version") != 1 and each["event"] != "state"]


def rename_device(evidence: Evidence) -> None:
    evidence.cloud.devices["edge-2"] = "digits"
    evidence.cloud.samples["digits", "a0"] = ("edge-2", 1)


PLANTED: list[tuple[str, str, Plant]] = [
    ("an exception", PREDICTING, lambda e: e.edges["edge-0"].append({"event": "error", "t": 3, "n": 1, "what": "E"})),
    ("a gap in mid-life", PREDICTING, lambda e: remove(e, "edge-0", 8.0, 12.0)),
    ("silence until the end", PREDICTING, lambda e: remove(e, "edge-0", 9.0, 15.0)),
    ("a stop that was shorter than the silence", PREDICTING, lambda e: change(e, "continue", t=8.0)),
    ("a start that the disk refused", PREDICTING, no_room),
    ("an acknowledged sample that is nowhere", DELIVERING, lambda e: e.cloud.samples.pop(("digits", "a1"))),
    ("a sample learned from by two versions", DELIVERING, lambda e: add(e, event="learned", fresh={"digits a0": 2})),
    ("a version that learned from more than name it", DELIVERING,
     lambda e: e.cloud.versions.update({("digits", 1): replace(e.cloud.versions["digits", 1], counted=3)})),
    ("a sample stored in the name of another device", DELIVERING, rename_device),
    ("an outbox that lost a sample", DELIVERING,
     lambda e: list(e.of("state"))[1].update(outbox={"ids": [], "counters": {}})),
    ("samples that expired within minutes", DELIVERING,
     lambda e: list(e.of("state"))[1].update(outbox={"ids": [], "counters": {"expired": 1}})),
    ("parameters of no version", WHOLE, lambda e: change_model(e, affine="mixed")),
    ("weights of one version, statistics of another", WHOLE, lambda e: change_model(e, whole="source-whole")),
    ("a version that nobody published", WHOLE, forget_version),
    ("half an update in the active slot", WHOLE, lambda e: change_slot(e, found="half")),
    ("a slot with bytes that nobody published", WHOLE, lambda e: change_slot(e, named="x", found="x")),
    ("a sample stored in another group", APART,
     lambda e: e.cloud.samples.update({("others", "a0"): ("edge-0", None)})),
    ("another group's update", APART, lambda e: list(e.of("asked"))[-1].update(signature="signed-for-others")),
    ("an upload to another group that was taken", APART, lambda e: change(e, "misrouted", status=204)),
    ("a process that died", PROCESSES, lambda e: change(e, "exit", ours=False, code=-11)),
    ("a process that hung", PROCESSES, lambda e: add(e, event="hung", name="cloud", doing="stopping")),
    ("a process that grew", PROCESSES, lambda e: change(e, "memory", mib=5000)),
    ("a worker that crashed", PROCESSES, lambda e: e.worker_exits.append(1)),
    ("a worker that somebody else killed", PROCESSES, lambda e: e.worker_exits.append(-9)),
]  # fmt: skip


def test_good_evidence_breaks_no_promise(broken: Callable[[], list[str]]) -> None:
    assert broken() == []


@pytest.mark.parametrize(("promise", "plant"), [each[1:] for each in PLANTED], ids=[each[0] for each in PLANTED])
def test_the_checker_catches(promise: str, plant: Plant, evidence: Evidence, broken: Callable[[], list[str]]) -> None:
    plant(evidence)
    assert broken() == [promise]


def test_every_promise_is_planted_at_least_once() -> None:
    assert {promise for _, promise, _ in PLANTED} == set(PROMISES)


def test_a_device_whose_bundle_we_damaged_may_wait_for_the_cloud(evidence: Evidence) -> None:
    no_room(evidence)
    add(evidence, event="damage", name="edge-0", file="bundle-1", how="flipped")
    evidence.harness[-1]["t"] = 6.2
    assert not any(broken_promises(evidence).values())


def test_what_lay_in_an_outbox_that_we_damaged_may_be_gone(evidence: Evidence) -> None:
    list(evidence.of("state"))[1].update(outbox={"ids": [], "counters": {"corrupt": 1}})
    add(evidence, event="damage", name="edge-0", file="outbox.db", how="zeroed")
    assert not any(broken_promises(evidence).values())


def test_a_worker_that_we_killed_is_no_crash(evidence: Evidence) -> None:
    evidence.worker_exits.append(-9)
    add(evidence, event="kill", name="worker", pid=99)
    assert not any(broken_promises(evidence).values())


def test_a_diary_without_an_end_is_no_evidence(evidence: Evidence) -> None:
    evidence.harness[:] = [each for each in evidence.harness if each.get("pid") != 12 or each["event"] == "spawn"]
    with pytest.raises(ValueError, match="how process 12 ended"):
        broken_promises(evidence)
