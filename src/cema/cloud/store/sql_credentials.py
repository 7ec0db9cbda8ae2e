"""Devices and users inside a transaction, and the secrets they are known by: never themselves, only their sha256.

A device has one credential, and for a while two: the key that it proposed (``next_sha256``) replaces the old one when
it is used for the first time, so an answer that gets lost on the way cannot lock the device out.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, func, insert, or_, select, update

from cema.cloud.store.base import DeviceRow, UserRow
from cema.cloud.store.checks import check_proposal
from cema.cloud.store.sql_tables import as_device, as_user, devices, find_group, users
from cema.errors import ConflictError, NotFoundError


def enrol(
    connection: Connection, device_id: str, group: str, token_sha256: str, now_ms: int, token_expires_ms: int | None
) -> DeviceRow:
    fresh = {
        "group_name": group,
        "token_sha256": token_sha256,
        "created_ms": now_ms,
        "revoked_ms": None,
        "last_seen_ms": 0,
        "samples_seen": 0,
        "dropped": {},
        "token_expires_ms": token_expires_ms,
        "next_sha256": None,
        "rotate": False,
        "paused_ms": None,
    }
    find_group(connection, group)
    old = _device(connection, device_id)
    if old is None:
        connection.execute(insert(devices).values(device_id=device_id, **fresh))
    elif old["revoked_ms"] is None:
        raise ConflictError(
            f"device {device_id!r} is already enrolled in group {old['group_name']!r}",
            hint="revoke it first ('cema device revoke'), or choose another name",
        )
    else:
        _change(connection, device_id, fresh)
    return found(connection, device_id)


def revoke(connection: Connection, device_id: str, now_ms: int) -> DeviceRow:
    living = update(devices).where(devices.c.device_id == device_id, devices.c.revoked_ms.is_(None))
    connection.execute(living.values(revoked_ms=now_ms))
    return found(connection, device_id)


def listed(connection: Connection, group: str | None) -> list[DeviceRow]:
    query = select(devices).order_by(devices.c.device_id)
    if group is not None:
        query = query.where(devices.c.group_name == group)
    return [as_device(row) for row in connection.execute(query).mappings()]


def known(connection: Connection, token_sha256: str) -> RowMapping | None:
    """The row of the device that has or has proposed this credential; None if unknown or revoked."""
    query = select(devices).where(_has(token_sha256), devices.c.revoked_ms.is_(None))
    return connection.execute(query).mappings().one_or_none()


def use(connection: Connection, token_sha256: str) -> RowMapping | None:
    """As ``known``; a proposed key takes the place of what the device had."""
    row = known(connection, token_sha256)
    if row is None or row["next_sha256"] != token_sha256:
        return row
    taken_over = {"token_sha256": token_sha256, "next_sha256": None, "token_expires_ms": None, "rotate": False}
    _change(connection, row["device_id"], taken_over)
    return _device(connection, row["device_id"])


def propose(connection: Connection, token_sha256: str, key_sha256: str) -> DeviceRow | None:
    row = use(connection, token_sha256)
    if row is None:
        return None
    if key_sha256 not in (row["token_sha256"], row["next_sha256"]):
        one_time, bought = row["token_expires_ms"] is not None, row["next_sha256"] is not None
        check_proposal(row["device_id"], one_time, bought, _taken(connection, key_sha256))
        _change(connection, row["device_id"], {"next_sha256": key_sha256})
    return found(connection, row["device_id"])


def changed_ms(connection: Connection) -> int:
    latest = select(func.max(devices.c.created_ms), func.max(devices.c.revoked_ms))
    return max(time_ms or 0 for time_ms in connection.execute(latest).one())


def ask_rotation(connection: Connection, device_id: str) -> DeviceRow:
    _living(connection, device_id)
    _change(connection, device_id, {"rotate": True})
    return found(connection, device_id)


def pause(connection: Connection, device_id: str, paused: bool, now_ms: int) -> DeviceRow:
    if paused != (_living(connection, device_id)["paused_ms"] is not None):
        _change(connection, device_id, {"paused_ms": now_ms if paused else None})
    return found(connection, device_id)


def add_user(connection: Connection, name: str, role: str, token_sha256: str, now_ms: int) -> UserRow:
    fresh = {"role": role, "token_sha256": token_sha256, "created_ms": now_ms, "revoked_ms": None}
    old = connection.execute(select(users).where(users.c.name == name)).mappings().one_or_none()
    if old is None:
        connection.execute(insert(users).values(name=name, **fresh))
    elif old["revoked_ms"] is None:
        raise ConflictError(
            f"there is a user {name!r} already, with the role {old['role']}",
            hint="revoke it first ('cema user revoke'), or choose another name",
        )
    else:
        connection.execute(update(users).where(users.c.name == name).values(fresh))
    return UserRow(name, role, now_ms, None)


def revoke_user(connection: Connection, name: str, now_ms: int) -> UserRow:
    connection.execute(
        update(users).where(users.c.name == name, users.c.revoked_ms.is_(None)).values(revoked_ms=now_ms)
    )
    row = connection.execute(select(users).where(users.c.name == name)).mappings().one_or_none()
    if row is None:
        raise NotFoundError(f"there is no user {name!r}", hint="'cema user list' shows all users")
    return as_user(row)


def listed_users(connection: Connection) -> list[UserRow]:
    return [as_user(row) for row in connection.execute(select(users).order_by(users.c.name)).mappings()]


def user(connection: Connection, token_sha256: str) -> UserRow | None:
    query = select(users).where(users.c.token_sha256 == token_sha256, users.c.revoked_ms.is_(None))
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else as_user(row)


def _has(sha256: str) -> ColumnElement[bool]:
    return or_(devices.c.token_sha256 == sha256, devices.c.next_sha256 == sha256)


def _taken(connection: Connection, sha256: str) -> bool:
    """Whether anybody has or had this secret: two owners of one would make each stand for the other."""
    device = select(devices.c.device_id).where(_has(sha256))
    user = select(users.c.name).where(users.c.token_sha256 == sha256)
    return any(connection.execute(query).first() is not None for query in (device, user))


def _device(connection: Connection, device_id: str) -> RowMapping | None:
    return connection.execute(select(devices).where(devices.c.device_id == device_id)).mappings().one_or_none()


def _living(connection: Connection, device_id: str) -> RowMapping:
    row = _device(connection, device_id)
    if row is None or row["revoked_ms"] is not None:
        raise _unknown_device(device_id)
    return row


def found(connection: Connection, device_id: str) -> DeviceRow:
    row = _device(connection, device_id)
    if row is None:
        raise _unknown_device(device_id)
    return as_device(row)


def _change(connection: Connection, device_id: str, changes: dict[str, Any]) -> None:
    connection.execute(update(devices).where(devices.c.device_id == device_id).values(changes))


def _unknown_device(device_id: str) -> NotFoundError:
    return NotFoundError(f"there is no device {device_id!r}", hint="'cema device list' shows all devices")
