"""Time as the store counts it, and rows as JSON for people and programs outside (HTTP lists, command line)."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from cema.cloud.store.base import DeviceRow, GroupRow, UpdateRow, UserRow


def now_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


def utc_text(time_ms: int | None) -> str | None:
    """Unix milliseconds as ISO 8601 in UTC; None for never."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="seconds") if time_ms else None


def update_as_dict(row: UpdateRow) -> dict[str, Any]:
    return {
        "version": row.version,
        "content_id": row.blob,
        "size_bytes": row.size_bytes,
        "created_ms": row.created_ms,
        "created": utc_text(row.created_ms),
        "method": row.method,
        "fingerprint": row.fingerprint,
        "rollback_of": row.rollback_of,
        "restores": row.restores,
        "samples": row.samples,
        "deleted_samples": row.deleted_samples,
        "metrics": dict(row.metrics),
        "signature": row.signature,
    }


def device_as_dict(row: DeviceRow) -> dict[str, Any]:
    return {
        "device_id": row.device_id,
        "group": row.group,
        "created": utc_text(row.created_ms),
        "revoked": utc_text(row.revoked_ms),
        "enrolment_until": utc_text(row.token_expires_ms),
        "rotate": row.rotate,
        "paused": utc_text(row.paused_ms),
        "last_seen": utc_text(row.last_seen_ms),
        "samples_seen": row.samples_seen,
        "dropped": dict(row.dropped),
    }


def user_as_dict(row: UserRow) -> dict[str, Any]:
    return {
        "user": row.name,
        "role": row.role,
        "created": utc_text(row.created_ms),
        "revoked": utc_text(row.revoked_ms),
    }


def group_as_dict(row: GroupRow) -> dict[str, Any]:
    return {
        "group": row.name,
        "fingerprint": row.fingerprint,
        "lineage": row.lineage,
        "adaptation": "on" if row.adapting else "off",
        "paused": utc_text(row.paused_ms),
        "latest_version": row.latest_version,
        "last_published": utc_text(row.last_published_ms),
        "pending": row.pending,
        "samples_seen": row.samples_seen,
        "ticks_done": row.ticks_done,
        "ticks_dropped": row.ticks_dropped,
        "dirty": row.dirty,
    }
