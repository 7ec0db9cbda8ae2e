"""Groups, leases and adapt steps inside a transaction.

The lease column is the durable work queue: a group belongs to one worker until the lease runs out. A step's end is
checked against lease, lineage and version first; any contradiction raises, and the transaction leaves no trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, Select, delete, func, insert, or_, select, update

from cema.cloud.store.base import GroupRow, NewUpdate, StepCommit
from cema.cloud.store.checks import check_lineage, check_step, check_version
from cema.cloud.store.sql_tables import (
    GONE,
    PENDING,
    REPLAY,
    counted_group,
    find_group,
    groups,
    new_group,
    payloads,
    samples,
)
from cema.cloud.store.sql_updates import discard, publish
from cema.errors import ConflictError, NotFoundError


def due(now_ms: int, lease_ms: int, tick_images: int, publish_interval_ms: int) -> Select[Any]:
    """Name of the group to be served next: a tick or a publication is due, and nobody holds a living lease."""
    column = groups.c
    tick_due = column.samples_seen >= (column.ticks_done + 1) * tick_images
    published = column.last_published_ms
    publication_due = column.dirty & ((published <= now_ms - publish_interval_ms) | (published > now_ms))
    lease = column.lease_until_ms
    free = column.worker.is_(None) | (lease <= now_ms) | (lease > now_ms + 2 * lease_ms)
    return (
        select(column.name)
        .where(column.adaptation == "on", column.paused_ms.is_(None), or_(tick_due, publication_due), free)
        .order_by(column.served, column.name)
        .limit(1)
    )


def claim(connection: Connection, due_group: Select[Any], worker: str, lease_until_ms: int) -> GroupRow | None:
    name = connection.execute(due_group).scalar_one_or_none()
    if name is None:
        return None
    turn = select(func.max(groups.c.served) + 1).scalar_subquery()
    lease = {"worker": worker, "lease_until_ms": lease_until_ms, "served": turn}
    connection.execute(update(groups).where(groups.c.name == name).values(lease))
    return counted_group(connection, name)


def renew(connection: Connection, group: str, worker: str, lease_until_ms: int) -> bool:
    ours = update(groups).where(groups.c.name == group, groups.c.worker == worker)
    return connection.execute(ours.values(lease_until_ms=lease_until_ms)).rowcount == 1


def release(connection: Connection, group: str, worker: str) -> None:
    ours = update(groups).where(groups.c.name == group, groups.c.worker == worker)
    connection.execute(ours.values(worker=None, lease_until_ms=0))


def commit_step(connection: Connection, step: StepCommit, now_ms: int) -> None:
    """Raises ConflictError; the caller's transaction then rolls back."""
    group = find_group(connection, step.group)
    check_step(step, group["worker"], group["lineage"], group["latest_version"])
    learned_version = group["latest_version"] + 1
    _move(connection, step.group, step.consumed, PENDING, {"state": REPLAY, "version": learned_version})
    _move(connection, step.group, step.evicted, REPLAY, {"state": GONE})
    if step.evicted:
        connection.execute(delete(payloads).where(payloads.c.row_id.in_(step.evicted)))
    changes: dict[str, Any] = {"ticks_done": step.ticks_done, "ticks_dropped": step.ticks_dropped}
    if step.checkpoint is not None:
        discard(connection, [group["checkpoint"]])
        changes |= {"checkpoint": step.checkpoint, "dirty": True}
    if step.update is not None:
        publish(connection, group, step.update, now_ms)
        changes |= {"dirty": False, "latest_version": step.update.version, "last_published_ms": now_ms}
    connection.execute(update(groups).where(groups.c.name == step.group).values(changes))


def put_group(connection: Connection, name: str, fingerprint: str, bundle_blob: str, adaptation: str) -> GroupRow:
    fresh = new_group(name, fingerprint, bundle_blob, adaptation)
    try:
        old = find_group(connection, name)
    except NotFoundError:
        connection.execute(insert(groups).values(fresh))
        return counted_group(connection, name)
    changes: dict[str, object] = {"adaptation": adaptation}
    if old["fingerprint"] != fingerprint:
        end_lineage(connection, old)
        kept = {"latest_version", "served", "revision", "paused_ms"}
        changes = {key: value for key, value in fresh.items() if key not in kept}
        changes["lineage"] = old["lineage"] + 1
    connection.execute(update(groups).where(groups.c.name == name).values(changes))
    return counted_group(connection, name)


def pause(connection: Connection, name: str, paused: bool, now_ms: int) -> GroupRow:
    group = find_group(connection, name)
    if paused != (group["paused_ms"] is not None):
        changes = {"paused_ms": now_ms, "worker": None, "lease_until_ms": 0} if paused else {"paused_ms": None}
        connection.execute(update(groups).where(groups.c.name == name).values(changes))
    return counted_group(connection, name)


def roll_back(connection: Connection, name: str, lineage: int, new: NewUpdate, now_ms: int) -> GroupRow:
    """Raises ConflictError; the caller's transaction then rolls back."""
    group = find_group(connection, name)
    check_lineage(name, lineage, group["lineage"])
    check_version(name, new.version, group["latest_version"])
    assert new.restores is not None
    drop(connection, (samples.c.group_name == name) & (samples.c.version > new.restores))
    _unlearn(connection, group)
    discard(connection, [group["checkpoint"]])
    publish(connection, group, new, now_ms)
    changes = {"checkpoint": None, "dirty": False, "latest_version": new.version, "last_published_ms": now_ms}
    connection.execute(update(groups).where(groups.c.name == name).values(changes))
    take_away(connection, name)
    return counted_group(connection, name)


def take_away(connection: Connection, name: str) -> None:
    """Whoever holds the lease loses it; who has the group in memory loads it anew."""
    changes = {"revision": groups.c.revision + 1, "worker": None, "lease_until_ms": 0}
    connection.execute(update(groups).where(groups.c.name == name).values(changes))


def end_lineage(connection: Connection, group: RowMapping) -> None:
    """Drop pending samples, replay and checkpoint of a group that gets another bundle."""
    drop(connection, samples.c.group_name == group["name"])
    _unlearn(connection, group)
    discard(connection, [group["checkpoint"], group["bundle_blob"]])


def drop(connection: Connection, chosen: ColumnElement[bool]) -> None:
    """Delete the payloads of these samples; their ids are remembered."""
    chosen = chosen & samples.c.state.in_((PENDING, REPLAY))
    connection.execute(delete(payloads).where(payloads.c.row_id.in_(select(samples.c.row_id).where(chosen))))
    connection.execute(update(samples).where(chosen).values(state=GONE))


def _unlearn(connection: Connection, group: RowMapping) -> None:
    """What was used since the last version is in none: that learning is thrown away."""
    unpublished = (samples.c.group_name == group["name"]) & (samples.c.version > group["latest_version"])
    connection.execute(update(samples).where(unpublished).values(version=None))


def _move(connection: Connection, group: str, rows: Sequence[int], state: str, change: dict[str, Any]) -> None:
    if not rows:
        return
    chosen = update(samples).where(samples.c.row_id.in_(rows), samples.c.group_name == group, samples.c.state == state)
    moved = connection.execute(chosen.values(change)).rowcount
    if moved != len(rows):
        raise ConflictError(f"expected {len(rows)} rows of {group} to be {state}, got {moved}")
