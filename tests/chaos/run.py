"""A run from start to verdict: build, break, let recover, stop, read the evidence, show it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos.deliveries import acknowledged
from chaos.evidence import Evidence, Recorder, read_evidence, source_digests
from chaos.fleet import Fleet, diary_time
from chaos.injector import Injector
from chaos.plan import EDGES, GROUPS, KINDS, Fault, schedule
from chaos.processes import workers_of
from chaos.promises import broken_promises, longest_gap_s

RECOVERY_LIMIT_S = 120.0
"""After the last fault, for every device to predict, to be acknowledged, and for every group to learn: a cloud that was
killed last starts in 3 s on an idle machine, and in forty on one with ten others at work."""
WARM_LIMIT_S = 90.0
"""For all devices to predict, and for all groups to have a first version; faults begin then in any case."""
LOOK_S = 0.25
LEARNED_S = 10.0
"""Between two looks at what has been learned from."""
AFTERMATH_S = 3.0
"""A prediction is made during a fault until so long after its end."""


@dataclass(frozen=True)
class Result:
    """faults: injected, by kind. broken: each promise with how it was broken."""

    seed: int
    seconds: float
    faults: dict[str, int]
    figures: dict[str, Any]
    broken: dict[str, list[str]]

    @property
    def promises_broken(self) -> int:
        return sum(bool(ways) for ways in self.broken.values())


def run(folder: Path, seed: int, seconds: float) -> Result:
    """Everything that happens lies in ``folder`` afterwards."""
    (folder / "evidence").mkdir(parents=True, exist_ok=True)
    record, faults = Recorder(folder / "evidence"), schedule(seed, seconds)
    fleet, over = Fleet(folder, record), threading.Event()
    observer = threading.Thread(target=_observe, args=(fleet, over))
    try:
        fleet.start()
        observer.start()
        _wait_for(lambda: _all_predict(fleet, 0.0) and _all_learned(fleet), WARM_LIMIT_S)
        injector = Injector(fleet, record)
        injector.run(faults)
        _let_recover(fleet, record)
    finally:
        over.set()
        if observer.ident is not None:
            observer.join()
        fleet.stop()
    for name in EDGES:
        injector.note_state(name)
    record.close()
    return _judged(folder, seed, seconds, faults, fleet)


def _judged(folder: Path, seed: int, seconds: float, faults: list[Fault], fleet: Fleet) -> Result:
    evidence = read_evidence(folder / "evidence", source_digests(folder / "digits.bundle"))
    done = [each for each in evidence.of("fault") if each["done"]]
    counted = Counter(each["kind"] for each in done)
    return Result(seed, seconds, {kind: counted[kind] for kind in KINDS}, _figures(evidence, fleet),
                  broken_promises(evidence))  # fmt: skip


def _figures(evidence: Evidence, fleet: Fleet) -> dict[str, Any]:
    made = [line["t"] for diary in evidence.edges.values() for line in diary if line["event"] == "predicted"]
    spans = [(each["began"], each["t"] + AFTERMATH_S) for each in evidence.of("fault") if each["done"]]
    memory: dict[str, int] = {}
    for each in evidence.of("memory"):
        memory[each["name"]] = max(each["mib"], memory.get(each["name"], 0))
    return {
        "predictions": len(made),
        "predictions_during_faults": sum(any(since <= t <= until for since, until in spans) for t in made),
        "longest_gap_s": round(longest_gap_s(evidence), 2),
        "acknowledged_samples": len(acknowledged(evidence)),
        "stored_samples": len(evidence.cloud.samples),
        "learned_samples": sum(version is not None for _, version in evidence.cloud.samples.values()),
        "versions": {group: sum(each.group == group for each in evidence.cloud.versions.values())
                     for group in sorted(set(GROUPS.values()))},
        "starts_of_devices": sum(each["name"] in EDGES for each in evidence.of("spawn")),
        "starts_of_the_cloud": sum(each["name"] == "cloud" for each in evidence.of("spawn")),
        "memory_mib": memory,
        "disks": "tmpfs" if fleet.disk.mounted else "RLIMIT_FSIZE",
    }  # fmt: skip


def _observe(fleet: Fleet, over: threading.Event) -> None:
    while not over.wait(LEARNED_S):
        fleet.note_learned()


def _all_predict(fleet: Fleet, since_s: float) -> bool:
    return all(diary_time(edge, "predicted") > since_s for edge in fleet.edges.values())


def _all_learned(fleet: Fleet) -> bool:
    return all(fleet.latest_versions().get(group, 0) for group in GROUPS.values())


def _wait_for(condition: Any, limit_s: float) -> bool:
    deadline_s = time.monotonic() + limit_s
    pause = threading.Event()
    while not (found := bool(condition())) and time.monotonic() < deadline_s:
        pause.wait(LOOK_S)
    return found


def _let_recover(fleet: Fleet, record: Recorder) -> None:
    """Nothing is broken any more: what does not come back now has hung."""
    since_s, versions = time.monotonic(), fleet.latest_versions()
    record("calm")
    acknowledged_at = {name: fleet.acknowledged(name) for name in EDGES}
    checks = {
        **{f"{name} predicting": lambda name=name: diary_time(fleet.edges[name], "predicted") > since_s
           for name in EDGES},
        **{f"{name} uploading": lambda name=name: fleet.acknowledged(name) > acknowledged_at[name] for name in EDGES},
        **{f"{group} learning": lambda group=group: fleet.latest_versions().get(group, 0) > versions.get(group, 0)
           for group in sorted(set(GROUPS.values()))},
        "the cloud's worker": lambda: bool(workers_of(fleet.cloud.pid)),
    }  # fmt: skip
    _wait_for(lambda: all(check() for check in checks.values()), RECOVERY_LIMIT_S)
    for name, check in checks.items():
        if not check():
            record("hung", name=name, doing=f"not back {RECOVERY_LIMIT_S:.0f} s after the last fault")
    record("recovered", seconds=time.monotonic() - since_s)
