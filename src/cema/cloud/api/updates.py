"""Updates: the long poll for the latest, and every version under its own, for ever cacheable address."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi import Path as PathParameter
from starlette.concurrency import run_in_threadpool

from cema.cloud.api.answers import IMMUTABLE, json_answer, not_modified
from cema.cloud.api.callers import ContextOf, Device, known_device
from cema.cloud.api.context import Context
from cema.cloud.api.schema import answers
from cema.cloud.store.base import UpdateRow
from cema.cloud.store.rows import update_as_dict
from cema.errors import BaseMismatchError
from cema.wire.difference import DIFFERENCE_TYPE
from cema.wire.messages import (
    BASE_HEADER,
    FINGERPRINT_HEADER,
    MAX_VERSION,
    SIGNATURE_HEADER,
    UPDATE_TYPE,
    VERSION_HEADER,
)

MAX_LISTED = 1000
CLOCK_TOLERANCE_MS = 60_000
"""By how much the clock of whoever revokes a device may be behind the web process's."""

Version = Annotated[int, PathParameter(ge=1, le=MAX_VERSION)]
After = Annotated[int, Query(ge=0, le=MAX_VERSION, description="Version that the device already runs, 0 = source")]
Wait = Annotated[float, Query(ge=0, description="Seconds to wait for a newer version; capped by the server")]
Base = Annotated[str | None, Query(description="Fingerprint of the device's bundle")]
From = Annotated[
    int | None,
    Query(alias="from", ge=0, le=MAX_VERSION, description="Version whose bytes the device has: a difference will do"),
]

router = APIRouter()


@router.get(
    "/v1/groups/{group}/updates/latest",
    summary="Wait for a version newer than the device's",
    responses=answers((UPDATE_TYPE, DIFFERENCE_TYPE), 204, 401, 403, 409, 422, 429),
)
async def latest(
    group: str,
    request: Request,
    device: Device,
    context: ContextOf,
    after: After = 0,
    wait: Wait = 0,
    base: Base = None,
    have: From = None,
) -> Response:
    """The bytes of the latest update, as soon as there is one above ``after``; 204 when there is none in time."""
    deadline = time.monotonic() + min(wait, context.config.server.max_poll_wait_s)
    began_ms = context.clock_ms()
    while True:
        newest = await context.newest.get(group)
        if base is not None and base != newest.fingerprint:
            raise BaseMismatchError(
                f"group {group!r} runs bundle {newest.fingerprint[:12]}, the device runs {base[:12]!r}",
                hint="fetch the group's bundle",
            )
        row = newest.row
        # A version made for an earlier bundle is not for this device: the first of the new lineage will be.
        if row is not None and newest.version > after and row.fingerprint == newest.fingerprint:
            return await _answer(context, row, newest.data, have, "no-store")
        seen = max(after, newest.version)
        if not await context.watch.wait(group, seen, max(0.0, deadline - time.monotonic())):
            return Response(status_code=204)
        if await context.newest.devices_changed_ms() >= began_ms - CLOCK_TOLERANCE_MS:
            await run_in_threadpool(known_device, group, request)  # perhaps it was this one


@router.get(
    "/v1/groups/{group}/updates/{version}",
    summary="One version, immutable",
    responses=answers((UPDATE_TYPE, DIFFERENCE_TYPE), 304, 401, 403, 404, 422, 429),
)
async def one(
    group: str, version: Version, request: Request, device: Device, context: ContextOf, have: From = None
) -> Response:
    """Norm parameters of the version; caches may keep them."""
    row = await asyncio.to_thread(context.store.update, group, version)
    if not_modified(request, _etag(row, have)):
        return Response(status_code=304, headers=_headers(row, IMMUTABLE))
    data = await asyncio.to_thread(context.blobs.get, row.blob)
    return await _answer(context, row, data, have, IMMUTABLE)


@router.get(
    "/v1/groups/{group}/updates",
    summary="Versions, newest first",
    responses=answers("application/json", 401, 403, 422, 429),
)
def listed(
    group: str, device: Device, context: ContextOf, limit: Annotated[int, Query(ge=1, le=MAX_LISTED)] = 100
) -> Response:
    """What the bytes of each version are called, how large they are and what they learned from."""
    rows = context.store.updates(group, limit)
    return json_answer({"group": group, "updates": [update_as_dict(row) for row in rows]})


async def _answer(context: Context, row: UpdateRow, data: bytes, have: int | None, caching: str) -> Response:
    """The update, or what differs from the version that the device has; the signature is the update's either way."""
    difference = None if have is None else await context.differences.get(row, data, have)
    if difference is None:
        return Response(data, media_type=UPDATE_TYPE, headers=_headers(row, caching))
    headers = {**_headers(row, caching), "ETag": f'"{_etag(row, have)}"', BASE_HEADER: str(difference.base)}
    return Response(difference.data, media_type=DIFFERENCE_TYPE, headers=headers)


def _etag(row: UpdateRow, have: int | None) -> str:
    return row.blob if have is None else f"{row.blob}-{have}"


def _headers(row: UpdateRow, caching: str) -> dict[str, str]:
    return {
        SIGNATURE_HEADER: row.signature,
        VERSION_HEADER: str(row.version),
        FINGERPRINT_HEADER: row.fingerprint,
        "ETag": f'"{row.blob}"',
        "Cache-Control": caching,
    }
