"""Prometheus metrics of the web process: its own counters, and the store's values read when they are scraped.

Names and labels are an interface: dashboards and alerts are built on them (docs/metrics.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from cema.cloud.store.base import GroupRow, Store

# name -> (help, value of a group)
GROUP_GAUGES: dict[str, tuple[str, Callable[[GroupRow], float]]] = {
    "cema_samples_seen": ("Images predicted by the devices since the bundle was put.", lambda g: g.samples_seen),
    "cema_samples_pending": ("Uploaded samples that no step has used yet.", lambda g: g.pending),
    "cema_latest_version": ("Latest published version, 0 = source.", lambda g: g.latest_version),
    "cema_ticks_done": ("Ticks of the schedule that are over.", lambda g: g.ticks_done),
    "cema_ticks_dropped": ("Ticks missed because the worker was busy.", lambda g: g.ticks_dropped),
    "cema_last_published_seconds": ("Unix time of the last publication.", lambda g: g.last_published_ms / 1000),
    "cema_adaptation": ("1 = on, 0 = off.", lambda g: float(g.adapting)),
}


class Metrics:
    """One registry per application."""

    def __init__(self, store: Store, polls_waiting: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        self.uploads = Counter("cema_uploads", "Accepted upload requests.", ["group"], registry=self.registry)
        self.upload_bytes = Counter("cema_upload_bytes", "Bytes of upload bodies.", ["group"], registry=self.registry)
        self.samples = Counter("cema_samples_accepted", "Samples stored.", ["group"], registry=self.registry)
        self.duplicates = Counter("cema_samples_duplicate", "Samples seen before.", ["group"], registry=self.registry)
        self.rejections = Counter(
            "cema_samples_rejected", "Samples refused for ever.", ["group", "code"], registry=self.registry
        )
        self.refused_uploads = Counter(
            "cema_uploads_refused", "Uploads told to come back: too much at once.", ["reason"], registry=self.registry
        )
        self.uploads_in_flight = Gauge("cema_uploads_in_flight", "Uploads under way now.", registry=self.registry)
        self.held_bytes = Gauge(
            "cema_upload_bytes_held", "Bytes of their bodies in memory now.", registry=self.registry
        )
        self.errors = Counter("cema_http_errors", "Error answers.", ["code"], registry=self.registry)
        self.refusals = Counter(
            "cema_auth_failures", "Requests without a valid token.", ["reason"], registry=self.registry
        )
        ProcessCollector(registry=self.registry)  # memory and open files of this process
        self.registry.register(_StoreCollector(store, polls_waiting))

    def exposition(self) -> bytes:
        """The text format. Raises StorageError when the store does not answer."""
        return generate_latest(self.registry)


class _StoreCollector(Collector):
    def __init__(self, store: Store, polls_waiting: Callable[[], int]) -> None:
        self._store = store
        self._polls_waiting = polls_waiting

    def describe(self) -> Iterator[Metric]:
        """Nothing in advance: registering must not ask the store."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("cema_polls_waiting", "Long polls that wait now.", value=self._polls_waiting())
        groups = self._store.groups()
        for name, (text, value) in GROUP_GAUGES.items():
            family = GaugeMetricFamily(name, text, labels=["group"])
            for group in groups:
                family.add_metric([group.name], value(group))
            yield family
        yield from self._devices()

    def _devices(self) -> Iterator[Metric]:
        enrolled = GaugeMetricFamily("cema_devices", "Enrolled devices that are not revoked.", labels=["group"])
        dropped = GaugeMetricFamily(
            "cema_samples_dropped_by_devices", "Samples lost on devices since their boot.", labels=["group", "reason"]
        )
        counts: dict[str, int] = {}
        losses: dict[tuple[str, str], int] = {}
        for device in self._store.devices():
            if device.revoked_ms is None:
                counts[device.group] = counts.get(device.group, 0) + 1
                for reason, count in device.dropped.items():
                    losses[device.group, reason] = losses.get((device.group, reason), 0) + count
        for group, count in counts.items():
            enrolled.add_metric([group], count)
        for (group, reason), count in losses.items():
            dropped.add_metric([group, reason], count)
        yield enrolled
        yield dropped
