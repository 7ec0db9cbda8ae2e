"""What a run does when, and what a driver process is told."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

BATCH = 16
"""Pictures of one prediction, and samples of one upload."""
GROUP = "perf"
CLOUD_CORE, DEVICES_CORE = 0, 1


@dataclass(frozen=True)
class Plan:
    """Seconds of each part; the cloud is killed after a part of the overload and away for ``away_s``, 0 = it is not."""

    devices: int
    drivers: int
    sustained_s: float
    overload_s: float
    away_s: float
    calm_s: float

    @classmethod
    def within(cls, seconds: float) -> Plan:
        """As long as asked for; in a slice of half a minute nothing is killed."""
        if seconds < FULL_S:
            return cls(48, 1, 0.15 * seconds, 0.45 * seconds, 0.0, 0.4 * seconds)
        calm_s = min(60.0, 0.2 * seconds)
        return cls(100, 2, 20.0, seconds - 20.0 - calm_s, 15.0, calm_s)


KILL_AFTER = 0.25
"""Of the overload: what comes after it is long enough to see whether memory grows."""
FULL_S = 120.0
"""From so many seconds on, a run has everything in full size."""


class DriverPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Of one driver. devices: name and token each. bundle, state, acknowledged: paths; the last is written."""

    url: str
    public_key: str
    bundle: str
    state: str
    acknowledged: str
    devices: list[tuple[str, str]]
    seed: int


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """images_per_s: of this driver's devices together, None = as fast as they can upload. active: how many of its
    devices see anything. settle_s: send what waits, at most so long, then end."""

    images_per_s: float | None = 0.0
    active: int = 0
    settle_s: float | None = None
