"""What will go wrong, and when: drawn from a seed before anything starts, so that a run can be repeated.

Every round has each kind of fault once, in an order and at moments of its own.
"""

from __future__ import annotations

import random
from typing import NamedTuple

ROUND_S = 27.0
"""Ten minutes have 22 rounds, so each kind of fault comes more than twenty times."""
QUIET_S = 3.0
"""At the end of each round nothing new begins: what has been broken shows whether it comes back."""
EDGES = ("edge-0", "edge-1", "edge-2", "edge-3")
GROUPS = {"edge-0": "digits", "edge-1": "digits", "edge-2": "digits", "edge-3": "others"}
"""One edge is in a second group, with the same bundle: the hardest case of keeping groups apart."""
CLOUD = "cloud"
EDGE_KINDS = {
    "kill edge": (0.0, 0.0), "stop edge": (0.5, 2.5), "cut link": (0.2, 3.0), "delay link": (1.0, 4.0),
    "duplicate": (0.0, 0.0), "corrupt link": (0.0, 0.0), "misroute": (0.0, 0.0), "fill edge disk": (1.0, 4.0),
    "damage outbox": (0.0, 0.0), "damage slots": (0.0, 0.0), "damage bundle": (0.0, 0.0), "damage status": (0.0, 0.0),
    "damage pointer": (0.0, 0.0), "damage key": (0.0, 0.0), "jump edge clock": (1.0, 8.0),
}  # fmt: skip
CLOUD_KINDS = {
    "kill web": (0.0, 0.0), "kill worker": (0.0, 0.0), "stop web": (0.5, 2.0), "stop worker": (0.5, 4.0),
    "fill cloud disk": (1.0, 3.0), "damage blob": (0.0, 0.0), "jump cloud clock": (1.0, 8.0),
}  # fmt: skip
"""Each kind with the shortest and the longest time that it lasts, seconds."""
KINDS = {**EDGE_KINDS, **CLOUD_KINDS}


class Fault(NamedTuple):
    """at_s: after the start. target: an edge or the cloud. lasts_s: until it is undone. draw: what else is random."""

    at_s: float
    kind: str
    target: str
    lasts_s: float
    draw: int


def schedule(seed: int, seconds: float) -> list[Fault]:
    """All faults of a run of ``seconds``, in the order in which they begin; the same seed gives the same ones."""
    rng = random.Random(seed)
    rounds = max(1, int(seconds // ROUND_S))
    length_s = seconds / rounds
    faults = []
    for start_s in (number * length_s for number in range(rounds)):
        kinds = rng.sample(list(KINDS), len(KINDS))
        apart_s = (length_s - QUIET_S) / len(kinds)
        for place, kind in enumerate(kinds):
            at_s = start_s + apart_s * (place + rng.random())
            target = CLOUD if kind in CLOUD_KINDS else rng.choice(EDGES)
            faults.append(Fault(round(at_s, 3), kind, target, round(rng.uniform(*KINDS[kind]), 3), rng.getrandbits(32)))
    return sorted(faults)
