"""The network between an edge and its cloud, in the stream's own time: how late, how slow, how often gone.

No sleeping: a message handed over at second t arrives at a second that follows from its size and the link. One
message at a time travels in each direction; what is lost is sent again after a time-out; offline, it waits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec
import numpy as np

from cema.errors import ConfigError

RETRY_S = 1.0
"""Time-out after which a lost message is sent again (UplinkConfig starts at 0.5 s and doubles, with jitter)."""


class Link(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A kind of network. Bandwidths in bit/s, 0 = without limit. loss: share of the messages. offline_every_s,
    offline_for_s: the link is gone for the last ``offline_for_s`` of every ``offline_every_s`` seconds; 0 = never."""

    name: str
    up_bps: float = 0.0
    down_bps: float = 0.0
    latency_s: float = 0.0
    loss: float = 0.0
    offline_every_s: float = 0.0
    offline_for_s: float = 0.0

    def __post_init__(self) -> None:
        numbers = (self.up_bps, self.down_bps, self.latency_s, self.offline_every_s, self.offline_for_s)
        if not all(0 <= number < math.inf for number in numbers) or not 0 <= self.loss < 1:
            raise ConfigError(f"expected bandwidths and times >= 0 and 0 <= loss < 1, got {self}")
        if self.offline_for_s and self.offline_for_s >= self.offline_every_s:
            raise ConfigError(f"expected a link that is online at times (offline_for_s < offline_every_s), got {self}")


LINKS = {
    link.name: link
    for link in (
        Link(name="instant"),
        Link(name="fibre", up_bps=100e6, down_bps=100e6, latency_s=0.005),
        Link(name="lte", up_bps=5e6, down_bps=20e6, latency_s=0.05, loss=0.01),
        Link(name="nb-iot", up_bps=60e3, down_bps=30e3, latency_s=1.5, loss=0.05),
        Link(name="patchy", up_bps=1e6, down_bps=4e6, latency_s=0.2, loss=0.05, offline_every_s=60, offline_for_s=30),
    )
}
"""Orders of magnitude of usual networks; NB-IoT as in 3GPP release 13 (uplink up to 66 kbit/s, downlink 26 to 32)."""


def read_link(text: str) -> Link:
    """A link by name, or put together: ``up_bps=1e6,latency_s=0.2,loss=0.05``. Raises ConfigError."""
    if text in LINKS:
        return LINKS[text]
    if "=" not in text:
        raise ConfigError(f"expected a link out of {', '.join(LINKS)} or key=value,..., got {text!r}")
    try:
        values = {key.strip(): float(value) for key, _, value in (part.partition("=") for part in text.split(","))}
        return msgspec.convert({**values, "name": text}, Link)
    except (ValueError, msgspec.ValidationError) as error:
        fields = ", ".join(Link.__struct_fields__[1:])
        raise ConfigError(f"expected a link as key=number,... with the keys {fields}: {error}") from error


@dataclass
class Channel:
    """One direction of one device's link."""

    link: Link
    bits_per_s: float
    rng: np.random.Generator
    free_at_s: float = 0.0

    def send(self, size_bytes: int, now_s: float) -> float:
        """The second at which a message of this size, handed over now, has arrived."""
        start_s = max(now_s, self.free_at_s)
        duration_s = size_bytes * 8 / self.bits_per_s if self.bits_per_s else 0.0
        while self.link.loss and self.rng.random() < self.link.loss:
            start_s = self._online(start_s, duration_s) + RETRY_S
        self.free_at_s = self._online(start_s, duration_s)
        return self.free_at_s + self.link.latency_s

    def _online(self, start_s: float, duration_s: float) -> float:
        """When a transfer that may begin at ``start_s`` ends; offline it pauses and goes on."""
        every_s, gone_s = self.link.offline_every_s, self.link.offline_for_s
        if not gone_s:
            return start_s + duration_s
        online_s = every_s - gone_s
        into_s = start_s % every_s
        if into_s >= online_s:
            start_s, into_s = start_s + every_s - into_s, 0.0
        left_s = online_s - into_s
        if duration_s <= left_s:
            return start_s + duration_s
        windows = math.ceil((duration_s - left_s) / online_s)  # that it takes; it ends within the last
        return start_s + left_s + windows * gone_s + duration_s - left_s
