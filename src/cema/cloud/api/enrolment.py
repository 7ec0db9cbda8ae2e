"""``POST /v1/groups/{group}/key``: a device hands in the hash of the key that it made for itself.

With the one-time token of its enrolment, or with its present key when it takes a new one. The key never travels before
it is used; the same request may be repeated until the answer has arrived.
"""

from __future__ import annotations

import logging
import re

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from cema.cloud.api.answers import json_answer
from cema.cloud.api.callers import ContextOf, Enrolling, Presented
from cema.cloud.api.samples import content_coding, read_body
from cema.cloud.api.schema import answers, body_of
from cema.errors import AuthError, EnrolmentError, ForbiddenError, MessageError, shown
from cema.wire.messages import MSGPACK_TYPE, KeyProposal, KeyReceipt, decode_msgpack

MAX_PROPOSAL_BYTES = 4096
log = logging.getLogger(__name__)
_SHA256 = re.compile(r"[0-9a-f]{64}")

router = APIRouter()


@router.post(
    "/v1/groups/{group}/key",
    summary="Hand in the hash of the device's new key",
    responses=answers(KeyReceipt, 400, 401, 403, 408, 409, 413, 415, 429),
    openapi_extra=body_of(MSGPACK_TYPE, KeyProposal),
)
async def propose_key(
    group: str, request: Request, device: Enrolling, token_sha256: Presented, context: ContextOf
) -> Response:
    """The key is valid when this answers; the credential it was handed in with is until the key is used."""
    content_coding(request)
    body = await read_body(request, MAX_PROPOSAL_BYTES)
    proposal = decode_msgpack(body, KeyProposal, limit_bytes=MAX_PROPOSAL_BYTES)
    if proposal.device_id != device.device_id:
        raise ForbiddenError(f"expected a key of device {device.device_id!r}, got {shown(proposal.device_id)}")
    if not _SHA256.fullmatch(proposal.key_sha256):
        raise MessageError(f"expected key_sha256 as 64 hexadecimal digits, got {shown(proposal.key_sha256)}")
    try:
        row = await run_in_threadpool(context.store.propose_key, token_sha256, proposal.key_sha256)
    except EnrolmentError as error:
        log.warning("group %s: %s", device.group, error)
        raise
    if row is None:
        raise AuthError("this token has just been revoked, or replaced by a newer key", hint="enrol the device anew")
    log.info("device %s of group %s has handed in a key", row.device_id, row.group)
    return json_answer(KeyReceipt(key_sha256=proposal.key_sha256))
