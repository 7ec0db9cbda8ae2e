"""One life of a device's process: from its start to the moment when we ended it, and how long it was stopped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from chaos.evidence import Evidence, Facts


@dataclass(frozen=True)
class Life:
    """diary: what it wrote. frozen: (from, to) of every SIGSTOP. Times in seconds."""

    edge: str
    began_s: float
    ended_s: float
    diary: list[Facts]
    frozen: list[tuple[float, float]]

    def running_s(self, from_s: float, to_s: float) -> float:
        """How much of that time the process was not stopped."""
        stopped_s = sum(max(0.0, min(to_s, until) - max(from_s, since)) for since, until in self.frozen)
        return to_s - from_s - stopped_s


def lives_of(evidence: Evidence, edge: str) -> Iterator[Life]:
    """All of them, in order; what a diary holds beyond the kill was written by a process that was already dying."""
    ours = [each for each in evidence.harness if each.get("name") == edge]
    frozen = _frozen(ours)
    spawns = [each for each in ours if each["event"] == "spawn"]
    for spawn in spawns:
        after = [each for each in ours if each.get("pid") == spawn["pid"] and each["t"] >= spawn["t"]]
        ends = [each["t"] for each in after if each["event"] in ("kill", "terminate", "exit")]
        ended_s = min(ends, default=float("inf"))
        if ended_s == float("inf"):
            raise ValueError(f"{edge}: nothing says how process {spawn['pid']} ended")
        lines = [line for line in evidence.edges[edge] if spawn["t"] - 1.0 <= line["t"] <= ended_s]
        boots = [place for place, line in enumerate(lines) if line["event"] == "boot"]
        yield Life(edge, spawn["t"], ended_s, lines[boots[-1] :] if boots else [], frozen)


def _frozen(events: list[Facts]) -> list[tuple[float, float]]:
    found, since = [], None
    for each in events:
        if each["event"] == "stop":
            since = each["t"]
        elif each["event"] == "continue" and since is not None:
            found.append((since, each["t"]))
            since = None
    return found
