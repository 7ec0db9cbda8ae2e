"""Deleting pictures inside a transaction: a device's, on somebody's wish; old ones and those beyond a limit."""

from __future__ import annotations

from collections import Counter

from sqlalchemy import ColumnElement, Connection, delete, func, select, update

from cema.cloud.store.checks import descendants
from cema.cloud.store.sql_credentials import found
from cema.cloud.store.sql_tables import (
    DELETED,
    PENDING,
    REPLAY,
    as_update,
    find_group,
    groups,
    payloads,
    samples,
    updates,
)
from cema.cloud.store.sql_work import drop, take_away

_KEPT = samples.c.state.in_((PENDING, REPLAY))


def delete_of_device(connection: Connection, device_id: str, group: str | None) -> dict[str, int]:
    """Raises NotFoundError."""
    found(connection, device_id)
    chosen = samples.c.device_id == device_id
    if group is not None:
        find_group(connection, group)
        chosen = chosen & (samples.c.group_name == group)
    counts = _counted(connection, chosen)
    for name in counts:
        _mark(connection, name, chosen)
        take_away(connection, name)
    connection.execute(delete(payloads).where(payloads.c.row_id.in_(select(samples.c.row_id).where(chosen))))
    connection.execute(update(samples).where(chosen).values(state=DELETED, device_id="", domain=0))
    return counts


def expire(connection: Connection, before_ms: int, keep: int) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for name in connection.execute(select(groups.c.name)).scalars().all():
        ours = (samples.c.group_name == name) & _KEPT
        newest = select(samples.c.row_id).where(ours).order_by(samples.c.row_id.desc()).offset(keep).limit(1)
        last = connection.execute(newest).scalar_one_or_none() or 0
        chosen = ours & ((samples.c.received_ms < before_ms) | (samples.c.row_id <= last))
        counts.update(_counted(connection, chosen))
        if counts[name]:
            drop(connection, chosen)
            take_away(connection, name)
    return {name: count for name, count in counts.items() if count}


def _counted(connection: Connection, chosen: ColumnElement[bool]) -> dict[str, int]:
    query = select(samples.c.group_name, func.count()).where(chosen).group_by(samples.c.group_name)
    return {row[0]: row[1] for row in connection.execute(query)}


def _mark(connection: Connection, group: str, chosen: ColumnElement[bool]) -> None:
    """Let the versions say that some of what they learned from is no more."""
    used = select(samples.c.version, func.count()).where(chosen, samples.c.group_name == group)
    rows_of = connection.execute(used.group_by(samples.c.version))
    learned = {version: count for version, count in rows_of if version is not None}
    rows = connection.execute(select(updates).where(updates.c.group_name == group)).mappings()
    for version, count in descendants(map(as_update, rows), learned).items():
        this = (updates.c.group_name == group) & (updates.c.version == version)
        connection.execute(update(updates).where(this).values(deleted_samples=updates.c.deleted_samples + count))
