"""What was seen: every request of every device, memory and answers of the web process, and the books of both sides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from load.plan import BATCH, Plan

REFUSED = "overloaded"
Span = tuple[float, float]
"""From when to when, seconds of the monotonic clock, which is the same in all processes."""


class Request(NamedTuple):
    """kind: upload, report (an upload without samples), status or poll. code: of the error, empty = fine. late_s:
    ``taken_s`` without what a poll was asked to wait. asked_s: Retry-After of a refusal, 0 = none."""

    ended_s: float
    kind: str
    code: str
    taken_s: float
    late_s: float
    asked_s: float
    device: str

    @property
    def began_s(self) -> float:
        return self.ended_s - self.taken_s


class Probe(NamedTuple):
    """One look at a page for operators. status: 0 = no answer."""

    at_s: float
    page: str
    status: int
    taken_s: float


class Cpu(NamedTuple):
    """Of the web process until now, seconds: it ran, and it could have run while others had the core."""

    at_s: float
    pid: int
    ran_s: float
    waited_s: float


@dataclass
class Ledger:
    """Books of one device in the end: samples."""

    device: str
    made: int
    acknowledged: int
    waiting: int
    dropped: dict[str, int]


@dataclass
class Evidence:
    """made: (when, pictures predicted and selected since the last such line). gaps: (when, longest time between two
    predictions of a device, beyond its period). memory: (when, process, MiB). acknowledged, stored: ids of samples, as
    often as they were.
    """

    plan: Plan
    sustained: Span
    overload: Span
    away: Span
    calm: Span
    requests: list[Request] = field(default_factory=list)
    connects: list[float] = field(default_factory=list)
    made: list[tuple[float, int]] = field(default_factory=list)
    gaps: list[tuple[float, float]] = field(default_factory=list)
    memory: list[tuple[float, int, float]] = field(default_factory=list)
    cpu: list[Cpu] = field(default_factory=list)
    probes: list[Probe] = field(default_factory=list)
    ledgers: list[Ledger] = field(default_factory=list)
    acknowledged: list[bytes] = field(default_factory=list)
    stored: list[bytes] = field(default_factory=list)

    def note(self, line: dict[str, Any]) -> None:
        """A line of a driver."""
        if line["event"] == "second":
            self.requests += [Request(*each) for each in line["requests"]]
            self.connects += line["connects"]
            self.made.append((line["t"], line["made"]))
            self.gaps.append((line["t"], line["gap_s"]))
        elif line["event"] == "ledger":
            self.ledgers.append(Ledger(**{name: line[name] for name in Ledger.__dataclass_fields__}))

    def uploads(self, span: Span, code: str | None = "") -> Iterator[Request]:
        """Those with samples that ended in ``span``; code None = whatever came of them."""
        return (each for each in self.requests
                if each.kind == "upload" and inside(each.ended_s, span) and code in (None, each.code))  # fmt: skip

    def sent(self, span: Span) -> list[Request]:
        """Everything that a refusal can meet."""
        return [each for each in self.requests if each.kind in ("upload", "report") and inside(each.ended_s, span)]

    @property
    def under_load(self) -> list[Span]:
        """The overload without the time in which there was no cloud, and in which it came back."""
        if not self.plan.away_s:
            return [self.overload]
        return [(self.overload[0], self.away[0]), (self.back_s + SETTLED_S, self.overload[1])]

    @property
    def back_s(self) -> float:
        return self.away[1]

    @property
    def sustainable(self) -> float:
        """R: uploads per second."""
        return rate(self.uploads(self.sustained), self.sustained)

    @property
    def offered(self) -> float:
        """Uploads per second that devices made under overload, with or without a cloud."""
        return sum(number for at_s, number in self.made if inside(at_s, self.overload)) / BATCH / length(self.overload)

    def share(self, spans: Sequence[Span]) -> float:
        """How much of a core the cloud got when it wanted to run: 1 on a machine of its own. Threads wait together, and
        only one of them could run: more than the whole time is never wanted."""
        ran_s = wanted_s = 0.0
        for span in spans:
            for pid in {each.pid for each in self.cpu}:
                seen = [each for each in self.cpu if each.pid == pid and inside(each.at_s, span)]
                if len(seen) > 1:
                    ran = seen[-1].ran_s - seen[0].ran_s
                    waited = seen[-1].waited_s - seen[0].waited_s
                    ran_s += ran
                    wanted_s += max(ran, min(ran + waited, seen[-1].at_s - seen[0].at_s))
        return ran_s / wanted_s if ran_s > 0 else 1.0

    def taken(self, spans: Sequence[Span]) -> float:
        """Uploads per second."""
        return sum(1 for span in spans for _ in self.uploads(span)) / sum(map(length, spans))


SETTLED_S = 5.0
"""After the cloud is back, before figures of the overload are taken again."""


def inside(at_s: float, span: Span) -> bool:
    return span[0] <= at_s < span[1]


def length(span: Span) -> float:
    return span[1] - span[0]


def rate(events: Iterator[Request], span: Span) -> float:
    return sum(1 for _ in events) / length(span)


def percentile(values: Sequence[float], q: float) -> float:
    """0 of nothing."""
    return float(np.percentile(values, q)) if values else 0.0
