"""``GET /v1/groups/{group}``: what a device asks before it starts."""

from __future__ import annotations

from fastapi import APIRouter, Response
from msgspec import UNSET

from cema.cloud.api.answers import json_answer
from cema.cloud.api.callers import ContextOf, Device
from cema.cloud.api.context import Context
from cema.cloud.api.schema import answers
from cema.cloud.methods import EDGE_OWNED
from cema.wire.messages import GroupStatus

router = APIRouter()


@router.get(
    "/v1/groups/{group}",
    summary="Bundle, version and kill switch",
    responses=answers(GroupStatus, 401, 403, 404, 429),
)
def status(group: str, device: Device, context: ContextOf) -> Response:
    """Bundle fingerprint, latest version, whether adaptation is on, the server's time, progress, a key to renew."""
    row = context.store.state(group)
    return json_answer(
        GroupStatus(
            group=row.name,
            fingerprint=row.fingerprint,
            latest_version=row.latest_version,
            adaptation="on" if row.adapting and device.paused_ms is None else "off",
            server_time_ms=context.clock_ms(),
            samples_seen=row.samples_seen,
            ticks_done=row.ticks_done,
            rotate_key=device.rotate or UNSET,
            stats_owner="edge" if _method(context, group) in EDGE_OWNED else "cloud",
        )
    )


def _method(context: Context, group: str) -> str | None:
    """None for a group that the store has and the configuration has no more."""
    configured = context.config.groups.get(group)
    return None if configured is None else configured.method
