"""Uploads inside a transaction: a batch is stored once, however often it comes.

``samples_seen`` is cumulative per boot of a device, so only its growth is added to the group; it drives the ticks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Select, func, insert, select, update

from cema.cloud.store.checks import base_mismatches
from cema.cloud.store.samples import Condition, StoredSample, Waiting
from cema.cloud.store.sealing import SampleKeys
from cema.cloud.store.sql_tables import PENDING, REPLAY, boots, devices, find_group, groups, payloads, samples
from cema.wire.messages import Sample, SampleBatch, UploadReceipt


def add(connection: Connection, group: str, batch: SampleBatch, now_ms: int, keys: SampleKeys) -> UploadReceipt:
    """Store what is new, count the rest. Raises NotFoundError for an unknown group, StorageError without a key."""
    row = find_group(connection, group)
    growth = _account_for_boot(connection, batch, now_ms)
    fits = batch.fingerprint == row["fingerprint"]
    if fits and growth > 0:
        seen = groups.c.samples_seen + growth
        connection.execute(update(groups).where(groups.c.name == group).values(samples_seen=seen))
    fresh = _unknown(connection, group, batch.samples) if fits else []
    _insert(connection, group, batch.device_id, fresh, now_ms, keys)
    return UploadReceipt(
        accepted=len(fresh),
        duplicates=len(batch.samples) - len(fresh) if fits else 0,
        rejected=[] if fits else base_mismatches(batch, row["fingerprint"]),
        latest_version=row["latest_version"],
        server_time_ms=now_ms,
    )


def pending(
    connection: Connection, group: str, limit: int, condition: Condition | None, keys: SampleKeys
) -> list[StoredSample]:
    find_group(connection, group)
    queue = _queue(group, PENDING).limit(limit)
    if condition is not None:
        queue = queue.where(samples.c.device_id == condition.device_id, samples.c.domain == condition.domain)
    return _stored(connection, queue, group, keys)


def waiting(connection: Connection, group: str) -> dict[Condition, Waiting]:
    find_group(connection, group)
    condition = samples.c.device_id, samples.c.domain
    counted = (
        select(*condition, func.count(), func.max(samples.c.row_id))
        .where(samples.c.group_name == group, samples.c.state == PENDING)
        .group_by(*condition)
        .order_by(func.min(samples.c.row_id))
    )
    found = connection.execute(counted)
    return {Condition(device_id, domain): Waiting(count, newest) for device_id, domain, count, newest in found}


def replay(connection: Connection, group: str, after_row: int, keys: SampleKeys) -> list[StoredSample]:
    find_group(connection, group)
    return _stored(connection, _queue(group, REPLAY).where(samples.c.row_id > after_row), group, keys)


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


def sealed_with(connection: Connection) -> set[str]:
    """Names of the keys of all pictures that are there."""
    live = samples.c.state.in_((PENDING, REPLAY)), samples.c.key_name.is_not(None)
    return set(connection.execute(select(samples.c.key_name).where(*live).distinct()).scalars())


def _unknown(connection: Connection, group: str, batch: Sequence[Sample]) -> list[Sample]:
    by_id = {sample.sample_id: sample for sample in reversed(batch)}  # the first of a repeated id counts
    known = set(
        connection.execute(
            select(samples.c.sample_id).where(samples.c.group_name == group, samples.c.sample_id.in_(by_id))
        ).scalars()
    )
    return [sample for sample in batch if sample.sample_id not in known and by_id[sample.sample_id] is sample]


def _insert(
    connection: Connection, group: str, device_id: str, fresh: Sequence[Sample], now_ms: int, keys: SampleKeys
) -> None:
    if not fresh:
        return
    sealed = [keys.seal(each.image, group, each.sample_id) for each in fresh]
    rows: list[dict[str, Any]] = [
        {
            "group_name": group,
            "sample_id": sample.sample_id,
            "codec": sample.codec,
            "state": PENDING,
            "received_ms": now_ms,
            "device_id": device_id,
            "domain": sample.known_domain,
            "key_name": key_name,
        }
        for sample, (key_name, _) in zip(fresh, sealed, strict=True)
    ]
    row_ids = connection.execute(insert(samples).returning(samples.c.row_id, sort_by_parameter_order=True), rows)
    images = [{"row_id": row_id, "image": image} for row_id, (_, image) in zip(row_ids.scalars(), sealed, strict=True)]
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
            samples.c.key_name,
        )
        .join(payloads, payloads.c.row_id == samples.c.row_id)
        .where(samples.c.group_name == group, samples.c.state == state)
        .order_by(samples.c.row_id)
    )


def _stored(connection: Connection, query: Select[Any], group: str, keys: SampleKeys) -> list[StoredSample]:
    found = [(StoredSample(*fields), key_name) for *fields, key_name in connection.execute(query)]
    return [replace(each, image=keys.open(name, each.image, group, each.sample_id)) for each, name in found]
