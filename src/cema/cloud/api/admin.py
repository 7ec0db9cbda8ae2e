"""``/v1/admin``: what operators and readers ask. Served where ``[admin]`` says, by default not where devices ask.

Readers look, operators also change; every change is logged with the name of who made it.
"""

from __future__ import annotations

import logging
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from cema.cloud.api.answers import json_answer
from cema.cloud.api.callers import ContextOf, Operator, Reader
from cema.cloud.api.context import Context
from cema.cloud.api.schema import answers
from cema.cloud.api.updates import MAX_LISTED
from cema.cloud.rollback import roll_back
from cema.cloud.store.rows import device_as_dict, group_as_dict, update_as_dict
from cema.wire.messages import MAX_VERSION

log = logging.getLogger(__name__)
_JSON = "application/json"

router = APIRouter(prefix="/v1/admin")


@router.get("/groups", summary="All groups", responses=answers(_JSON, 401, 403))
def groups(user: Reader, context: ContextOf) -> Response:
    return json_answer({"groups": [group_as_dict(row) for row in context.store.groups()]})


@router.get("/groups/{group}", summary="One group", responses=answers(_JSON, 401, 403, 404))
def one_group(group: str, user: Reader, context: ContextOf) -> Response:
    return json_answer(group_as_dict(context.store.group(group)))


@router.get("/groups/{group}/updates", summary="Versions, newest first", responses=answers(_JSON, 401, 403, 404, 422))
def updates(
    group: str, user: Reader, context: ContextOf, limit: Annotated[int, Query(ge=1, le=MAX_LISTED)] = 100
) -> Response:
    rows = context.store.updates(group, limit)
    return json_answer({"group": group, "updates": [update_as_dict(row) for row in rows]})


@router.post(
    "/groups/{group}/rollback",
    summary="Publish an older version's parameters again, as a new version",
    responses=answers(_JSON, 401, 403, 404, 409, 422, 503),
)
def rollback(
    group: str,
    to: Annotated[int, Query(ge=0, le=MAX_VERSION, description="Version to restore, 0 = source")],
    user: Operator,
    context: ContextOf,
) -> Response:
    """Devices take it with their next poll; the group goes on learning from these parameters."""
    row = roll_back(context.store, context.blobs, group, to, key=context.key, now_ms=context.clock_ms())
    log.warning("operator %s rolled group %s back to version %d", user.name, group, to)
    return json_answer({"group": group, **update_as_dict(row)})


@router.post(
    "/groups/{group}/pause", summary="Switch a group's adaptation off", responses=answers(_JSON, 401, 403, 404)
)
def pause(group: str, user: Operator, context: ContextOf) -> Response:
    """Its devices go back to the source and upload nothing, from their next poll on."""
    return json_answer(_switched(context, group, user.name, paused=True))


@router.post("/groups/{group}/resume", summary="Switch it on again", responses=answers(_JSON, 401, 403, 404))
def resume(group: str, user: Operator, context: ContextOf) -> Response:
    """Its devices use the version of before, from their next poll on. What the configuration says holds again."""
    return json_answer(_switched(context, group, user.name, paused=False))


@router.get("/devices", summary="Devices, of one group or all", responses=answers(_JSON, 401, 403))
def devices(user: Reader, context: ContextOf, group: str | None = None) -> Response:
    return json_answer({"devices": [device_as_dict(row) for row in context.store.devices(group)]})


@router.post("/devices/{name}/revoke", summary="Make a device's key worthless", responses=answers(_JSON, 401, 403, 404))
def revoke(name: str, user: Operator, context: ContextOf) -> Response:
    """At once and for ever: a long poll of the device that waits now gets nothing more, either."""
    row = context.store.revoke(name, context.clock_ms())
    log.warning("operator %s revoked device %s of group %s", user.name, name, row.group)
    return json_answer(device_as_dict(row))


@router.post("/devices/{name}/rotate", summary="Have a device take a new key", responses=answers(_JSON, 401, 403, 404))
def rotate(name: str, user: Operator, context: ContextOf) -> Response:
    """The device does at its next contact; the old key is valid until the new one is used."""
    row = context.store.ask_rotation(name)
    log.info("operator %s asked device %s of group %s to take a new key", user.name, name, row.group)
    return json_answer(device_as_dict(row))


@router.post("/devices/{name}/pause", summary="Switch one device off", responses=answers(_JSON, 401, 403, 404))
def pause_device(name: str, user: Operator, context: ContextOf) -> Response:
    """It goes back to the source and uploads nothing, from its next poll on; the others of its group go on."""
    return json_answer(_switched_device(context, name, user.name, paused=True))


@router.post("/devices/{name}/resume", summary="Switch it on again", responses=answers(_JSON, 401, 403, 404))
def resume_device(name: str, user: Operator, context: ContextOf) -> Response:
    """It does what its group does, from its next poll on."""
    return json_answer(_switched_device(context, name, user.name, paused=False))


@router.post(
    "/devices/{name}/delete-samples",
    summary="Delete what a device uploaded",
    responses=answers(_JSON, 401, 403, 404),
)
def delete_samples(name: str, user: Operator, context: ContextOf, group: str | None = None) -> Response:
    """Pictures that wait and pictures in replay, of one group or all; no worker trains on them any more. Versions that
    learned from them say so."""
    counts = context.store.delete_samples(name, group)
    log.warning("operator %s deleted %d samples of device %s", user.name, sum(counts.values()), name)
    return json_answer({"device_id": name, "deleted": counts})


def _switched(context: Context, group: str, user: str, *, paused: bool) -> dict[str, Any]:
    row = context.store.pause(group, paused, context.clock_ms())
    log.warning("operator %s switched group %s %s", user, group, "off" if paused else "on")
    return group_as_dict(row)


def _switched_device(context: Context, name: str, user: str, *, paused: bool) -> dict[str, Any]:
    row = context.store.pause_device(name, paused, context.clock_ms())
    log.warning("operator %s switched device %s of group %s %s", user, name, row.group, "off" if paused else "on")
    return device_as_dict(row)
