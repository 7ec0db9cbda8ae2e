"""Published versions inside a transaction, what they learned from, and what may be forgotten.

A blob that rows stop referring to is noted in ``garbage``; ``forget`` hands it out once nothing refers to it again.
A blob that no row ever referred to (put, not yet committed) is never handed out.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, RowMapping, delete, exists, func, insert, select, union

from cema.cloud.store.base import NewUpdate, UpdateRow
from cema.cloud.store.sql_tables import (
    DELETED,
    GONE,
    as_update,
    boots,
    devices,
    find_group,
    garbage,
    groups,
    samples,
    updates,
)
from cema.errors import NotFoundError


def find(connection: Connection, group: str, version: int) -> UpdateRow:
    """Raises NotFoundError."""
    query = select(updates).where(updates.c.group_name == group, updates.c.version == version)
    row = connection.execute(query).mappings().one_or_none()
    if row is None:
        raise NotFoundError(
            f"group {group!r} has no version {version}", hint="'cema update list' shows the versions that are kept"
        )
    return as_update(row)


def newest(connection: Connection, group: str, limit: int) -> list[UpdateRow]:
    find_group(connection, group)
    query = select(updates).where(updates.c.group_name == group).order_by(updates.c.version.desc()).limit(limit)
    return [as_update(row) for row in connection.execute(query).mappings()]


def learned_from(connection: Connection, group: str, version: int) -> list[bytes]:
    find(connection, group, version)
    chosen = (samples.c.group_name == group) & (samples.c.version == version)
    return list(connection.execute(select(samples.c.sample_id).where(chosen).order_by(samples.c.row_id)).scalars())


def publish(connection: Connection, group: RowMapping, new: NewUpdate, now_ms: int) -> None:
    """Insert the row of a version. Samples used since the last one are its lineage."""
    learned = (samples.c.group_name == group["name"]) & (samples.c.version == new.version)
    count = connection.execute(select(func.count()).select_from(samples).where(learned)).scalar_one()
    connection.execute(
        insert(updates).values(
            group_name=group["name"],
            version=new.version,
            blob=new.blob,
            signature=new.signature,
            fingerprint=group["fingerprint"],
            method=new.method,
            created_ms=now_ms,
            size_bytes=new.size_bytes,
            rollback_of=new.rollback_of,
            samples=count,
            metrics=dict(new.metrics),
            restores=new.restores,
            deleted_samples=_deleted(connection, group, new),
        )
    )


def _deleted(connection: Connection, group: RowMapping, new: NewUpdate) -> int:
    """What the version that this one goes back to has learned from and is deleted, and the same of this one."""
    parent = group["latest_version"] if new.restores is None else new.restores
    same = (updates.c.group_name == group["name"]) & (updates.c.fingerprint == group["fingerprint"])
    inherited = select(updates.c.deleted_samples).where(same, updates.c.version == parent)
    own = select(func.count()).where(
        samples.c.group_name == group["name"], samples.c.version == new.version, samples.c.state == DELETED
    )
    return (connection.execute(inherited).scalar_one_or_none() or 0) + connection.execute(own).scalar_one()


def discard(connection: Connection, blobs: Iterable[str | None]) -> None:
    """Note blobs that a row stops referring to."""
    for blob in set(blobs) - {None}:
        if connection.execute(select(garbage).where(garbage.c.blob == blob)).first() is None:
            connection.execute(insert(garbage).values(blob=blob))


def forget(connection: Connection, before_ms: int, keep_versions: int) -> list[str]:
    """Drop ids, boots and versions that are old enough; returns the blobs to delete."""
    old_ids = samples.c.state.in_((GONE, DELETED)) & (samples.c.received_ms < before_ms)
    connection.execute(delete(samples).where(old_ids))
    _forget_boots(connection, before_ms)
    newest_of = select(groups.c.latest_version).where(groups.c.name == updates.c.group_name).scalar_subquery()
    old = updates.c.version <= newest_of - keep_versions
    discard(connection, connection.execute(select(updates.c.blob).where(old)).scalars())
    connection.execute(delete(updates).where(old))
    living = union(select(groups.c.bundle_blob), select(groups.c.checkpoint), select(updates.c.blob)).subquery()
    referred = exists().where(living.c[0] == garbage.c.blob)
    unreferred = list(connection.execute(select(garbage.c.blob).where(~referred).order_by(garbage.c.blob)).scalars())
    connection.execute(delete(garbage))
    return unreferred


def _forget_boots(connection: Connection, before_ms: int) -> None:
    # A device's last boot stays, however old: it may go on counting where it was.
    last_report = select(devices.c.last_seen_ms).where(devices.c.device_id == boots.c.device_id).scalar_subquery()
    connection.execute(delete(boots).where(boots.c.last_seen_ms < before_ms, boots.c.last_seen_ms < last_report))
