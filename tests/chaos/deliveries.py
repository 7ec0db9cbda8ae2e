"""The second promise: what the cloud has acknowledged is there and was learned from once; what it has not is kept.

The network says which ids the cloud received and how it answered; what a device held on its disk when it was killed is
known from its outbox.
"""

from __future__ import annotations

from collections.abc import Iterator

from chaos.evidence import OUTBOX, Evidence, Facts

ACKNOWLEDGED = 200
NEVER = ("expired", "rejected", "stale")
"""Reasons for a drop that cannot come in minutes, with one bundle and a network that corrupts only ciphertext."""
COUNTED = (*NEVER, "overflow")


def deliveries(evidence: Evidence) -> Iterator[str]:
    """Acknowledged and not lost, once and not twice, not acknowledged and not forgotten."""
    yield from _acknowledged_are_stored(evidence)
    yield from _none_is_learned_twice(evidence)
    yield from _none_vanishes(evidence)
    yield from _none_is_dropped_wrongly(evidence)


def acknowledged(evidence: Evidence) -> dict[tuple[str, str], str]:
    """(group, id) -> device, of all samples that the cloud has acknowledged."""
    found = {}
    for each in evidence.of("asked", "repeated", "misrouted"):
        if each["status"] == ACKNOWLEDGED and "ids" in each:
            found |= {(each["group"], name): each["device"] for name in each["ids"] if name not in each["refused"]}
    return found


def _acknowledged_are_stored(evidence: Evidence) -> Iterator[str]:
    for (group, name), device in acknowledged(evidence).items():
        stored = evidence.cloud.samples.get((group, name))
        if stored is None:
            yield f"sample {name} of {device} was acknowledged and is lost"
        elif stored[0] != device:
            yield f"sample {name} of {device} is stored as one of {stored[0]}"


def _none_is_learned_twice(evidence: Evidence) -> Iterator[str]:
    for version in evidence.cloud.versions.values():
        if version.counted != version.learned:
            yield (f"version {version.version} of {version.group} learned from {version.counted} samples, "
                   f"{version.learned} name it now")  # fmt: skip
    first: dict[str, int] = {}
    for each in evidence.of("learned"):
        for name, version_number in each["fresh"].items():
            if first.setdefault(name, version_number) != version_number:
                yield f"sample {name} was learned from by version {first[name]} and again by {version_number}"


def _none_vanishes(evidence: Evidence) -> Iterator[str]:
    """What was in an outbox is in the cloud, still there, or counted: as dropped, or with the file that we damaged."""
    for edge in evidence.edges:
        states = [each for each in evidence.of("state") if each["name"] == edge]
        if not states:
            continue
        last, group = states[-1], evidence.cloud.devices.get(edge, "")
        for state in states:
            if state["outbox"] is None or _damaged_since(evidence, edge, state["t"]):
                continue
            there = set(last["outbox"]["ids"]) if last["outbox"] else set()
            gone = [name for name in state["outbox"]["ids"]
                    if name not in there and (group, name) not in evidence.cloud.samples]  # fmt: skip
            if len(gone) > _dropped(last) - _dropped(state):
                yield f"{edge}: {len(gone)} samples of its outbox at {state['t']:.1f} are nowhere, nor counted"


def _none_is_dropped_wrongly(evidence: Evidence) -> Iterator[str]:
    for state in evidence.of("state"):
        counters = (state["outbox"] or {}).get("counters", {})
        for reason in NEVER:
            if counters.get(reason, 0):
                yield f"{state['name']}: {counters[reason]} samples dropped as {reason} until {state['t']:.1f}"


def _damaged_since(evidence: Evidence, edge: str, since_s: float) -> bool:
    return any(
        each["name"] == edge and each["file"] == OUTBOX and each["t"] >= since_s for each in evidence.of("damage")
    )


def _dropped(state: Facts) -> int:
    counters = (state["outbox"] or {}).get("counters", {})
    return sum(counters.get(reason, 0) for reason in COUNTED)
