"""Adds up what the edges report: for the live table, the summary, the JSON line and the report."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from cema.demo.edge_process import EdgeEvent, is_drift

RECENT_IMAGES = 256
"""Window of the live table's accuracies."""


@dataclass
class EdgeTally:
    """All events of one edge."""

    name: str
    events: list[EdgeEvent] = field(default_factory=list)

    @property
    def last(self) -> EdgeEvent | None:
        return self.events[-1] if self.events else None

    def accuracy(self, *, drift: bool, source: bool = False) -> float:
        """Over all drifting (or all clean) stretches, 0..1; nan before the first image."""
        return _accuracy([event for event in self.events if is_drift(event.condition) == drift], source)

    def recent(self, *, source: bool = False) -> float:
        """Over the last RECENT_IMAGES images."""
        chosen, images = [], 0
        for event in reversed(self.events):
            if images >= RECENT_IMAGES or event.condition != self.events[-1].condition:
                break
            chosen.append(event)
            images += event.images
        return _accuracy(chosen, source)

    @property
    def helped(self) -> bool:
        """Whether the adapted model beat the source over the drifting part."""
        return self.accuracy(drift=True) > self.accuracy(drift=True, source=True)

    def summary(self) -> dict[str, object]:
        """The edge's entry in the JSON contract of ``cema demo --json``."""
        latency = [event.latency_ms for event in self.events] or [float("nan")]
        last = self.last
        return {
            "name": self.name,
            "accuracy_adapted": self.accuracy(drift=True),
            "accuracy_source": self.accuracy(drift=True, source=True),
            "accuracy_adapted_clean": self.accuracy(drift=False),
            "accuracy_source_clean": self.accuracy(drift=False, source=True),
            "samples": sum(event.images for event in self.events),
            "uploads": sum(event.selected for event in self.events),
            "bytes_up": last.bytes_up if last else 0,
            "bytes_down": last.bytes_down if last else 0,
            "updates_applied": last.updates_applied if last else 0,
            "latency_ms_p50": float(np.percentile(latency, 50)),
            "latency_ms_p99": float(np.percentile(latency, 99)),
        }

    def by_condition(self) -> list[tuple[str, float, float, int]]:
        """(condition, adapted, source, images) in order of appearance; a condition that returns has its own row."""
        rows: list[tuple[str, list[EdgeEvent]]] = []
        for event in self.events:
            if not rows or rows[-1][0] != event.condition:
                rows.append((event.condition, []))
            rows[-1][1].append(event)
        return [(name, _accuracy(es, False), _accuracy(es, True), sum(e.images for e in es)) for name, es in rows]


def _accuracy(events: list[EdgeEvent], source: bool) -> float:
    images = sum(event.images for event in events)
    correct = sum(event.correct_source if source else event.correct for event in events)
    return correct / images if images else float("nan")
