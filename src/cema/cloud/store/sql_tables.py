"""The tables of the SQL store, and how their rows become the contract's dataclasses.

``migrations/versions`` creates them; a contract test compares both. Payloads have their own table, so that a change
of a sample's state never rewrites its image. A sample's life: pending -> replay -> gone; the row of a gone sample
remembers its id until ``forget``. One that was deleted on somebody's wish is ``deleted`` instead, and nobody's.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Connection,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    RowMapping,
    Select,
    String,
    Table,
    UniqueConstraint,
    false,
    func,
    select,
)

from cema.cloud.store.base import DeviceRow, GroupRow, GroupState, UpdateRow, UserRow
from cema.errors import NotFoundError

PENDING, REPLAY, GONE, DELETED = "pending", "replay", "gone", "deleted"

metadata = MetaData()

groups = Table(
    "groups",
    metadata,
    Column("name", String, primary_key=True),
    Column("fingerprint", String, nullable=False),
    Column("lineage", Integer, nullable=False),
    Column("bundle_blob", String, nullable=False),
    Column("latest_version", Integer, nullable=False),
    Column("samples_seen", BigInteger, nullable=False),
    Column("ticks_done", BigInteger, nullable=False),
    Column("ticks_dropped", BigInteger, nullable=False),
    Column("checkpoint", String),
    Column("dirty", Boolean, nullable=False),
    Column("last_published_ms", BigInteger, nullable=False),
    Column("adaptation", String, nullable=False),
    Column("worker", String),  # who holds the lease, None = free
    Column("lease_until_ms", BigInteger, nullable=False),
    Column("served", BigInteger, nullable=False),  # rises with every claim: the lowest is served next
    Column("revision", Integer, nullable=False, server_default="0"),
    Column("paused_ms", BigInteger),
)

devices = Table(
    "devices",
    metadata,
    Column("device_id", String, primary_key=True),
    Column("group_name", ForeignKey("groups.name"), nullable=False, index=True),
    Column("token_sha256", String, nullable=False, unique=True),
    Column("created_ms", BigInteger, nullable=False),
    Column("revoked_ms", BigInteger),
    Column("last_seen_ms", BigInteger, nullable=False),
    Column("samples_seen", BigInteger, nullable=False),
    Column("dropped", JSON, nullable=False),
    Column("token_expires_ms", BigInteger),  # of a one-time token; None: token_sha256 is that of a key
    Column("next_sha256", String),  # of the key that replaces token_sha256 as soon as it is used
    Column("rotate", Boolean, nullable=False, server_default=false()),
    Column("paused_ms", BigInteger),
    Index("ix_devices_next_sha256", "next_sha256", unique=True),
)

users = Table(
    "users",
    metadata,
    Column("name", String, primary_key=True),
    Column("role", String, nullable=False),
    Column("token_sha256", String, nullable=False, unique=True),
    Column("created_ms", BigInteger, nullable=False),
    Column("revoked_ms", BigInteger),
)

boots = Table(
    "boots",
    metadata,
    Column("device_id", String, primary_key=True),
    Column("boot_id", LargeBinary, primary_key=True),
    Column("samples_seen", BigInteger, nullable=False),
    Column("last_seen_ms", BigInteger, nullable=False),
)

samples = Table(
    "samples",
    metadata,
    Column("row_id", Integer, primary_key=True, autoincrement=True),
    Column("group_name", ForeignKey("groups.name"), nullable=False),
    Column("sample_id", LargeBinary, nullable=False),
    Column("codec", String, nullable=False),
    Column("state", String, nullable=False),
    Column("version", Integer),  # the first version that learned from it, None = no step used it
    Column("received_ms", BigInteger, nullable=False),
    Column("device_id", String, nullable=False, server_default=""),  # empty for samples of before
    Column("domain", BigInteger, nullable=False, server_default="0"),
    Column("key_name", String),  # of the key that its payload is encrypted with; None: it is not
    UniqueConstraint("group_name", "sample_id", name="uq_samples_group_sample"),
    Index("ix_samples_queue", "group_name", "state", "row_id"),
    Index("ix_samples_version", "group_name", "version"),
    Index("ix_samples_age", "state", "received_ms"),
    sqlite_autoincrement=True,  # a row id is never used again
)

payloads = Table(
    "payloads",
    metadata,
    Column("row_id", ForeignKey("samples.row_id"), primary_key=True),
    Column("image", LargeBinary, nullable=False),
)

updates = Table(
    "updates",
    metadata,
    Column("group_name", ForeignKey("groups.name"), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("blob", String, nullable=False),
    Column("signature", String, nullable=False),
    Column("fingerprint", String, nullable=False),
    Column("method", String, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("rollback_of", Integer),
    Column("samples", Integer, nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("restores", Integer),
    Column("deleted_samples", Integer, nullable=False, server_default="0"),
)

garbage = Table("garbage", metadata, Column("blob", String, primary_key=True))
"""Blobs that rows referred to once and do no longer; ``forget`` hands them out."""

_pending_count = (
    select(func.count())
    .select_from(samples)
    .where(samples.c.group_name == groups.c.name, samples.c.state == PENDING)
    .scalar_subquery()
    .label("pending")
)
_bare_rows = select(groups)
group_rows = select(groups, _pending_count)


def new_group(name: str, fingerprint: str, bundle_blob: str, adaptation: str) -> dict[str, object]:
    """The row of a group before it has seen anything."""
    return {
        "name": name,
        "fingerprint": fingerprint,
        "lineage": 1,
        "bundle_blob": bundle_blob,
        "latest_version": 0,
        "samples_seen": 0,
        "ticks_done": 0,
        "ticks_dropped": 0,
        "checkpoint": None,
        "dirty": False,
        "last_published_ms": 0,
        "adaptation": adaptation,
        "worker": None,
        "lease_until_ms": 0,
        "served": 0,
        "revision": 0,
        "paused_ms": None,
    }


def as_group(row: RowMapping) -> GroupRow:
    fields = GroupRow.__dataclass_fields__
    return GroupRow(**{name: row[name] for name in fields})


def group_state(connection: Connection, name: str) -> GroupState:
    row = find_group(connection, name)
    return GroupState(**{field: row[field] for field in GroupState.__dataclass_fields__})


def as_device(row: RowMapping) -> DeviceRow:
    fields = {name: row[name] for name in DeviceRow.__dataclass_fields__ if name != "group"}
    return DeviceRow(group=row["group_name"], **fields)


def as_user(row: RowMapping) -> UserRow:
    return UserRow(**{name: row[name] for name in UserRow.__dataclass_fields__})


def as_update(row: RowMapping) -> UpdateRow:
    fields = {name: row[name] for name in UpdateRow.__dataclass_fields__ if name != "group"}
    return UpdateRow(group=row["group_name"], **fields)


def counted_group(connection: Connection, name: str) -> GroupRow:
    """A group with its backlog."""
    return as_group(find_group(connection, name, group_rows))


def find_group(connection: Connection, name: str, rows: Select[Any] = _bare_rows) -> RowMapping:
    """The row of a group with its lease. Raises NotFoundError."""
    row = connection.execute(rows.where(groups.c.name == name)).mappings().one_or_none()
    if row is None:
        raise NotFoundError(f"there is no group {name!r}", hint="'cema group list' shows the groups of this cloud")
    return row
