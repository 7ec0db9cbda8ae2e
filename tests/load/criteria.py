"""What is asked of the evidence: each criterion is a function to sentences about how it was missed; none is good.

Limits of speed and time are for a machine of its own.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise

from load.evidence import REFUSED, Evidence, Probe, Request, Span, inside, length, percentile

LEAST_OFFERED, LEAST_TAKEN = 1.8, 0.5
"""Times R: what devices make under overload, and what the cloud takes then: refusing costs a part of its time, too."""
MAX_RETRY_AFTER_S = 60.0
EARLY_S = 0.05
"""By how much a device may seem to come back before its time: its clock is read after the answer's."""
HERD_SHARE, HERD_AWAY_S = 0.25, 15.0
"""Of the fleet's connections (two each) that are tried in one second after a restart, at most, if the cloud was away
for so long: pauses double, so that after half of it twice as many may come."""
RECOVERY_LIMIT_S, RETURN_SHARE, WINDOW_S = 30.0, 0.9, 3
CALM_P99_S, PAGES_P99_S, DEVICES_P99_S = 1.0, 2.0, 2.0
"""Of an upload after the overload; of operators' pages and of devices' other requests under it."""
GROWTH_LIMIT_MIB, WARM_SHARE = 32.0, 0.5
"""Of the web process, after the first half of its life, which may be up to WARM_LIMIT_S."""
WARM_LIMIT_S = 150.0
GAP_LIMIT_S = 3.0
"""Between two predictions of a device, beyond its period."""
CONNECTIONS = 2


def refusals(evidence: Evidence) -> list[Request]:
    return [each for each in evidence.requests if each.code == REFUSED]


def speed_is_kept(evidence: Evidence) -> Iterator[str]:
    """Twice what the cloud can take is offered, and it goes on taking what it can."""
    sustainable, offered, taken = evidence.sustainable, evidence.offered, evidence.taken(evidence.under_load)
    if offered < LEAST_OFFERED * sustainable:
        yield f"devices offered {offered:.1f} uploads/s, expected {LEAST_OFFERED} x {sustainable:.1f}"
    if taken < LEAST_TAKEN * sustainable:
        yield f"the cloud took {taken:.1f} uploads/s under overload, expected {LEAST_TAKEN} x {sustainable:.1f}"


def load_is_shed(evidence: Evidence) -> Iterator[str]:
    """The cloud says no, and until when; nothing else fails."""
    if not any(each.code == REFUSED for span in evidence.under_load for each in evidence.sent(span)):
        yield "no upload was refused"
    for each in refusals(evidence):
        if not 1 <= each.asked_s <= MAX_RETRY_AFTER_S:
            yield f"{each.device}: refused at {each.ended_s:.1f} with Retry-After {each.asked_s:g}"
    for each in evidence.requests:
        answered = each.code in ("", REFUSED) or each.ended_s > evidence.calm[1]  # then devices stop
        if not answered and not evidence.away[0] - each.taken_s <= each.began_s < evidence.back_s:
            yield f"{each.device}: {each.kind} at {each.ended_s:.1f} ended with {each.code}"


def devices_wait_as_told(evidence: Evidence) -> Iterator[str]:
    """None comes back before its time, and those that were refused together do not come back together."""
    by_device: dict[str, list[Request]] = defaultdict(list)
    for each in evidence.sent((-float("inf"), float("inf"))):
        by_device[each.device].append(each)
    for device, sent in by_device.items():
        for refused, following in pairwise(sorted(sent, key=lambda each: each.began_s)):
            early_s = refused.ended_s + refused.asked_s - following.began_s
            if refused.code == REFUSED and early_s > EARLY_S:
                yield f"{device}: came back {early_s:.2f} s before its time at {following.began_s:.1f}"


def attempts_per_second(evidence: Evidence) -> list[int]:
    """Connections tried in each second after the cloud was back."""
    if not evidence.plan.away_s:
        return []
    count = Counter(int(at_s - evidence.back_s) for at_s in evidence.connects if at_s >= evidence.back_s)
    return [count[second] for second in range(int(evidence.overload[1] - evidence.back_s))]


def herd_share(evidence: Evidence) -> float:
    return max(attempts_per_second(evidence), default=0) / (CONNECTIONS * evidence.plan.devices)


def herd_limit(evidence: Evidence) -> float:
    return min(1.0, HERD_SHARE * HERD_AWAY_S / max(length(evidence.away), 1.0))


def no_thundering_herd(evidence: Evidence) -> Iterator[str]:
    """After a restart, devices come back one after the other."""
    if not evidence.plan.away_s:
        return
    if sum(attempts_per_second(evidence)) < evidence.plan.devices:
        yield f"{sum(attempts_per_second(evidence))} connections after the restart, expected all devices"
    if herd_share(evidence) > herd_limit(evidence):
        yield f"{herd_share(evidence):.0%} of the fleet in one second, expected at most {herd_limit(evidence):.0%}"


def return_s(evidence: Evidence) -> float:
    """From the cloud's return until it takes nearly as much as before it was killed; 0 if it was not."""
    if not evidence.plan.away_s:
        return 0.0
    wanted = RETURN_SHARE * evidence.taken([(evidence.overload[0], evidence.away[0])])
    for second in range(int(evidence.overload[1] - evidence.back_s) - WINDOW_S + 1):
        since_s = evidence.back_s + second
        if evidence.taken([(since_s, since_s + WINDOW_S)]) >= wanted:
            return float(second)
    return float("inf")


def recovery_s(evidence: Evidence) -> float:
    """From the end of the overload until no upload is refused any more and their p99 is short."""
    last_s = max((each.ended_s for each in evidence.sent(evidence.calm) if each.code == REFUSED),
                 default=evidence.calm[0])  # fmt: skip
    since_s = last_s
    while since_s < evidence.calm[1]:
        taken_s = [each.taken_s for each in evidence.uploads((since_s, evidence.calm[1]))]
        if taken_s and percentile(taken_s, 99) < CALM_P99_S:
            return since_s - evidence.calm[0]
        since_s += 1.0
    return float("inf")


def recovers(evidence: Evidence) -> Iterator[str]:
    """Soon after a restart it takes as much as before; soon after the overload it is as if nothing had been."""
    for name, seconds in (("restart", return_s(evidence)), ("overload", recovery_s(evidence))):
        if seconds > RECOVERY_LIMIT_S:
            yield f"not recovered from the {name} after {RECOVERY_LIMIT_S:.0f} s (but {seconds:.0f})"


def others_are_answered(evidence: Evidence) -> Iterator[str]:
    """Pages for operators, and what devices ask but for uploads."""
    for each in under_load(evidence):
        if each.status != 200:
            yield f"{each.page} at {each.at_s:.1f} was answered with {each.status}"
    if not under_load(evidence) or not late(evidence, "status"):
        yield "nobody asked"


def others_are_answered_soon(evidence: Evidence) -> Iterator[str]:
    probes = under_load(evidence)
    for page in sorted({each.page for each in probes}):
        p99_s = percentile([each.taken_s for each in probes if each.page == page], 99)
        if p99_s > PAGES_P99_S:
            yield f"p99 of {page} was {p99_s:.2f} s, expected {PAGES_P99_S:g}"
    for kind in ("status", "poll"):
        if (p99_s := percentile(late(evidence, kind), 99)) > DEVICES_P99_S:
            yield f"p99 of {kind} was {p99_s:.2f} s, expected {DEVICES_P99_S:g}"


def under_load(evidence: Evidence) -> list[Probe]:
    """Looks at pages that began and ended while there was a cloud."""
    return [each for each in evidence.probes for span in evidence.under_load
            if inside(each.at_s, span) and each.at_s + each.taken_s < span[1]]  # fmt: skip


def late(evidence: Evidence, kind: str) -> list[float]:
    """Seconds that answers took under overload, beyond what they were asked to wait."""
    return [each.late_s for each in evidence.requests for span in evidence.under_load
            if each.kind == kind and not each.code and inside(each.ended_s, span)]  # fmt: skip


def growth_mib(evidence: Evidence) -> float:
    """The most that a web process has grown by after it was warm."""
    lives: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for at_s, pid, mib in evidence.memory:
        lives[pid].append((at_s, mib))
    grown = [0.0]
    for life in lives.values():
        warm_s = life[0][0] + min(WARM_LIMIT_S, WARM_SHARE * (life[-1][0] - life[0][0]))
        warm = [mib for at_s, mib in life if at_s >= warm_s]
        grown.append(max(warm) - warm[0])
    return max(grown)


def memory_is_flat(evidence: Evidence) -> Iterator[str]:
    if growth_mib(evidence) > GROWTH_LIMIT_MIB:
        yield f"the web process grew by {growth_mib(evidence):.0f} MiB, expected at most {GROWTH_LIMIT_MIB:.0f}"
    if not evidence.memory:
        yield "nobody looked"


def nothing_is_lost(evidence: Evidence) -> Iterator[str]:
    """What was made is acknowledged, waiting, or dropped and counted; what was acknowledged is stored, once."""
    for each in evidence.ledgers:
        known = each.acknowledged + each.waiting + sum(each.dropped.values())
        if known != each.made:
            yield f"{each.device}: made {each.made}, but {known} are acknowledged, waiting or dropped"
        if unexpected := each.dropped.keys() - {"overflow"}:
            yield f"{each.device}: dropped for {', '.join(sorted(unexpected))}"
    if len(evidence.ledgers) != evidence.plan.devices:
        yield f"{len(evidence.ledgers)} devices have closed their books, expected {evidence.plan.devices}"
    booked = sum(each.acknowledged for each in evidence.ledgers)
    if booked != len(evidence.acknowledged):
        yield f"devices count {booked} acknowledged samples, their requests {len(evidence.acknowledged)}"
    stored = Counter(evidence.stored)
    missing = sum(sample not in stored for sample in set(evidence.acknowledged))
    if missing:
        yield f"{missing} acknowledged samples are not in the store"
    if (twice := sum(number > 1 for number in stored.values())) > 0:
        yield f"{twice} samples are stored more than once"
    if (twice := len(evidence.acknowledged) - len(set(evidence.acknowledged))) > 0:
        yield f"{twice} samples were acknowledged twice"


def predictions_never_stop(evidence: Evidence) -> Iterator[str]:
    for at_s, gap_s in evidence.gaps:
        if gap_s > GAP_LIMIT_S:
            yield f"a device did not predict for {gap_s:.1f} s at {at_s:.1f}"
    span: Span = evidence.overload
    if not any(number for at_s, number in evidence.made if inside(at_s, span)):
        yield "nothing was predicted"


CRITERIA: dict[str, Callable[[Evidence], Iterator[str]]] = {
    "twice what it can take does not slow the cloud down": speed_is_kept,
    "the cloud sheds load and says until when": load_is_shed,
    "devices wait as they are told": devices_wait_as_told,
    "no thundering herd after a restart": no_thundering_herd,
    "recovery within 30 s": recovers,
    "everybody else is answered": others_are_answered,
    "everybody else is answered soon": others_are_answered_soon,
    "memory is flat": memory_is_flat,
    "no sample is lost or stored twice": nothing_is_lost,
    "predictions never stop": predictions_never_stop,
}


def missed(evidence: Evidence) -> dict[str, list[str]]:
    """Each criterion with how it was missed."""
    return {name: list(check(evidence)) for name, check in CRITERIA.items()}
