"""Uploads inside a transaction: a batch is stored once, however often it comes.

``samples_seen`` is cumulative per boot of a device, so only its growth is added to the group; it drives the ticks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Select, insert, select, update

from cema.cloud.store.base import StoredSample
from cema.cloud.store.checks import base_mismatches
from cema.cloud.store.sql_tables import PENDING, REPLAY, boots, devices, find_group, groups, payloads, samples
from cema.wire.messages import Sample, SampleBatch, UploadReceipt


def add(connection: Connection, group: str, batch: SampleBatch, now_ms: int) -> UploadReceipt:
    """Store what is new, count the rest. Raises NotFoundError for an unknown group."""
    row = find_group(connection, group)
    growth = _account_for_boot(connection, batch, now_ms)
    fits = batch.fingerprint == row["fingerprint"]
    if fits and growth > 0:
        seen = groups.c.samples_seen + growth
        connection.execute(update(groups).where(groups.c.name == group).values(samples_seen=seen))
    fresh = _unknown(connection, group, batch.samples) if fits else []
    _insert(connection, group, batch.device_id, fresh, now_ms)
    return UploadReceipt(
        accepted=len(fresh),
        duplicates=len(batch.samples) - len(fresh) if fits else 0,
        rejected=[] if fits else base_mismatches(batch, row["fingerprint"]),
        latest_version=row["latest_version"],
        server_time_ms=now_ms,
    )


def pending(connection: Connection, group: str, limit: int) -> list[StoredSample]:
    find_group(connection, group)
    return _stored(connection, _queue(group, PENDING).limit(limit))


def replay(connection: Connection, group: str, after_row: int) -> list[StoredSample]:
    find_group(connection, group)
    return _stored(connection, _queue(group, REPLAY).where(samples.c.row_id > after_row))


def _account_for_boot(connection: Connection, batch: SampleBatch, now_ms: int) -> int:
    """Take over the report; returns by how many images it is ahead of the last one of this boot (never < 0)."""
    this_boot = (boots.c.device_id == batch.device_id) & (boots.c.boot_id == batch.boot_id)
    before = connection.execute(select(boots.c.samples_seen).where(this_boot)).scalar_one_or_none()
    if before is None:
        boot = {"device_id": batch.device_id, "boot_id": batch.boot_id}
        connection.execute(insert(boots).values(**boot, samples_seen=batch.samples_seen, last_seen_ms=now_ms))
    else:
        highest = max(before, batch.samples_seen)
        connection.execute(update(boots).where(this_boot).values(samples_seen=highest, last_seen_ms=now_ms))
    device = update(devices).where(devices.c.device_id == batch.device_id)
    growth = batch.samples_seen - (before or 0)
    report = {} if growth < 0 else {"samples_seen": batch.samples_seen, "dropped": batch.dropped}
    connection.execute(device.values(last_seen_ms=now_ms, **report))
    return max(0, growth)


def _unknown(connection: Connection, group: str, batch: Sequence[Sample]) -> list[Sample]:
    by_id = {sample.sample_id: sample for sample in reversed(batch)}  # the first of a repeated id counts
    known = set(
        connection.execute(
            select(samples.c.sample_id).where(samples.c.group_name == group, samples.c.sample_id.in_(by_id))
        ).scalars()
    )
    return [sample for sample in batch if sample.sample_id not in known and by_id[sample.sample_id] is sample]


def _insert(connection: Connection, group: str, device_id: str, fresh: Sequence[Sample], now_ms: int) -> None:
    if not fresh:
        return
    rows: list[dict[str, Any]] = [
        {
            "group_name": group,
            "sample_id": sample.sample_id,
            "codec": sample.codec,
            "state": PENDING,
            "received_ms": now_ms,
            "device_id": device_id,
            "domain": sample.known_domain,
        }
        for sample in fresh
    ]
    row_ids = connection.execute(insert(samples).returning(samples.c.row_id, sort_by_parameter_order=True), rows)
    images = [
        {"row_id": row_id, "image": sample.image} for row_id, sample in zip(row_ids.scalars(), fresh, strict=True)
    ]
    connection.execute(insert(payloads), images)


def _queue(group: str, state: str) -> Select[Any]:
    return (
        select(
            samples.c.row_id,
            samples.c.sample_id,
            samples.c.codec,
            payloads.c.image,
            samples.c.device_id,
            samples.c.domain,
        )
        .join(payloads, payloads.c.row_id == samples.c.row_id)
        .where(samples.c.group_name == group, samples.c.state == state)
        .order_by(samples.c.row_id)
    )


def _stored(connection: Connection, query: Select[Any]) -> list[StoredSample]:
    return [StoredSample(*row) for row in connection.execute(query)]
