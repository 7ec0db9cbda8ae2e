"""``GET /v1/groups/{group}/bundle``: the model itself, signed and streamed."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from cema.cloud.api.answers import not_modified
from cema.cloud.api.callers import ContextOf, Device
from cema.cloud.api.schema import answers
from cema.wire.messages import BUNDLE_TYPE, FINGERPRINT_HEADER, SIGNATURE_HEADER, STATEMENT_HEADER

CHUNK_BYTES = 256 * 1024
"""What one slow device holds in the server's send buffer at a time."""

router = APIRouter()


@router.get(
    "/v1/groups/{group}/bundle",
    summary="The group's bundle",
    responses=answers(BUNDLE_TYPE, 304, 401, 403, 404, 429),
)
def bundle(group: str, request: Request, device: Device, context: ContextOf) -> Response:
    """The zip with graph, norm tensors and manifest; its fingerprint is the ETag."""
    row = context.store.state(group)
    headers = {
        "ETag": f'"{row.fingerprint}"',
        FINGERPRINT_HEADER: row.fingerprint,
        "Cache-Control": "private, no-cache",  # the address stays when the bundle changes: ask every time
    }
    if not_modified(request, row.fingerprint):
        return Response(status_code=304, headers=headers)
    content = context.bundle(row)
    headers |= {
        SIGNATURE_HEADER: content.signature,
        STATEMENT_HEADER: content.statement,
        "Content-Length": str(len(content.data)),
    }
    return StreamingResponse(_chunks(content.data), media_type=BUNDLE_TYPE, headers=headers)


def _chunks(data: bytes) -> Iterator[memoryview]:
    view = memoryview(data)
    for start in range(0, len(view), CHUNK_BYTES):
        yield view[start : start + CHUNK_BYTES]
