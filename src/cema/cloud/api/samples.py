"""``POST /v1/groups/{group}/samples``: devices hand in what they selected.

The body is hostile: its size is limited while it arrives and while it is inflated, every image's header is looked at,
and what can never be trained on is refused sample by sample, so that one bad picture does not cost its batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable

import msgspec
from anyio import to_thread
from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect

from cema.cloud.api.answers import json_answer
from cema.cloud.api.callers import ContextOf, Device
from cema.cloud.api.context import Context, get_context
from cema.cloud.api.schema import answers, body_of
from cema.cloud.connection import MIN_BYTES_PER_S
from cema.cloud.store.base import DeviceRow
from cema.errors import BodyTimeoutError, EncodingError, ForbiddenError, MessageError, SizeLimitError, WireError, shown
from cema.wire.body import DEFLATE, inflate
from cema.wire.image import check_image
from cema.wire.messages import (
    BOOT_ID_BYTES,
    MSGPACK_TYPE,
    PROTOCOL_VERSION,
    SAMPLE_ID_BYTES,
    Rejection,
    Sample,
    SampleBatch,
    UploadReceipt,
    decode_msgpack,
)

MAX_COUNT = 1 << 53
"""Largest counter that is believed: exact in JSON, and far from the database's 64 bits."""
LINGER_S = 1.0
"""How long the rest of a refused body is read and thrown away."""
ROUNDING = 1e-3
"""By how much a probability or an entropy may be out of its range: devices compute in float32, or less."""
MAX_DROP_REASONS = 32
MAX_REASON_CHARS = 64

router = APIRouter()


@router.post(
    "/v1/groups/{group}/samples",
    summary="Upload a batch of selected samples",
    responses=answers(UploadReceipt, 400, 401, 403, 408, 413, 415, 422, 429),
    openapi_extra=body_of(MSGPACK_TYPE, SampleBatch),
)
async def upload(group: str, request: Request, device: Device, context: ContextOf) -> Response:
    """Durable when answered, idempotent by sample id. ``rejected`` samples are refused for ever."""
    context.upload_bytes.check(device.device_id)
    deflated = content_coding(request, DEFLATE) is not None
    with context.admission.upload(device.device_id) as under_way:
        body = await read_body(request, context.config.server.max_body_bytes, under_way.grow)
        context.upload_bytes.spend(device.device_id, len(body))
        with context.admission.turn():
            receipt = await to_thread.run_sync(take, context, device, body, deflated, limiter=context.upload_threads)
    _count(context, group, len(body), receipt)
    answer = json_answer(receipt)
    answer.headers["Accept-Encoding"] = DEFLATE  # RFC 7694: what a later request may use
    return answer


def content_coding(request: Request, *taken: str) -> str | None:
    """Which of the codings ``taken`` a body is in, None for one as it is. Raises EncodingError."""
    coding = ", ".join(request.headers.getlist("content-encoding")).strip().lower() or "identity"
    if coding == "identity":
        return None
    if coding not in taken:
        raise EncodingError(
            f"expected a body without Content-Encoding{' or with ' if taken else ''}{' or '.join(taken)}, "
            f"got {shown(coding)}",
            hint="send the body as it is",
            taken=", ".join(taken) or "identity",
        )
    return coding


async def read_body(request: Request, limit_bytes: int, on_bytes: Callable[[int], None] = lambda size: None) -> bytes:
    """A msgpack body of at most ``limit_bytes``. on_bytes: told how many more have come, and may raise.

    Raises MessageError, SizeLimitError, BodyTimeoutError.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != MSGPACK_TYPE:
        raise MessageError(f"expected Content-Type: {MSGPACK_TYPE}, got {shown(content_type)}")
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > limit_bytes:
        raise await _too_large(request, limit_bytes)
    body, size_bytes = bytearray(), 0
    timeout_s = get_context(request).config.server.receive_timeout_s
    try:
        async with asyncio.timeout(timeout_s) as deadline:
            first_s = deadline.when() or 0.0
            async for chunk in request.stream():
                size_bytes += len(chunk)
                if size_bytes > limit_bytes:
                    break
                on_bytes(len(chunk))
                body += chunk
                deadline.reschedule(first_s + len(body) / MIN_BYTES_PER_S)
    except TimeoutError as error:
        raise BodyTimeoutError(
            f"expected a body with less than {timeout_s:g} s of silence, got {len(body)} bytes until then",
            hint="send it again, in smaller batches (uplink.batch_bytes), or raise server.receive_timeout_s",
        ) from error
    except ClientDisconnect as error:
        raise MessageError(f"expected a whole body, the connection ended after {len(body)} bytes") from error
    if size_bytes > limit_bytes:
        raise await _too_large(request, limit_bytes)
    return bytes(body)


async def _too_large(request: Request, limit_bytes: int) -> SizeLimitError:
    # Closing a connection with unread bytes resets it, and the device would never see the answer.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while (await request.receive()).get("more_body", False):
                pass
    return SizeLimitError(
        f"expected a body of at most {limit_bytes} bytes, got more",
        hint="send fewer samples per batch (uplink.batch_bytes), or raise server.max_body_bytes",
        limit_bytes=limit_bytes,
    )


def take(context: Context, device: DeviceRow, body: bytes, deflated: bool) -> UploadReceipt:
    return _store(context, device, _inflate(context, device, body) if deflated else body)


def _inflate(context: Context, device: DeviceRow, body: bytes) -> bytes:
    """The plain body, counted in full: what a device may make of the cloud's time does not depend on its coding."""
    size_bytes = limit_bytes = context.config.server.max_body_bytes
    try:
        plain = inflate(body, limit_bytes)
        size_bytes = len(plain)
    finally:  # a bomb has cost as much as the largest body
        context.upload_bytes.spend(device.device_id, max(0, size_bytes - len(body)))
    return plain


def _store(context: Context, device: DeviceRow, body: bytes) -> UploadReceipt:
    server = context.config.server
    batch = decode_msgpack(body, SampleBatch, limit_bytes=server.max_body_bytes)
    _check_batch(batch, device, server.max_batch_samples)
    faults = {index: fault for index, sample in enumerate(batch.samples) if (fault := _fault(sample))}
    good = [sample for index, sample in enumerate(batch.samples) if index not in faults]
    batch = msgspec.structs.replace(batch, samples=good)
    receipt = context.store.add_samples(device.group, batch, context.clock_ms())
    return msgspec.structs.replace(receipt, rejected=[*receipt.rejected, *faults.values()])


def _check_batch(batch: SampleBatch, device: DeviceRow, max_samples: int) -> None:
    if batch.protocol != PROTOCOL_VERSION:
        raise MessageError(f"expected protocol {PROTOCOL_VERSION}, got {batch.protocol}", hint="upgrade cema")
    if batch.device_id != device.device_id:
        raise ForbiddenError(f"expected a batch of device {device.device_id!r}, got {shown(batch.device_id)}")
    if len(batch.samples) > max_samples:
        raise SizeLimitError(
            f"expected at most {max_samples} samples, got {len(batch.samples)}", hint="send fewer samples per batch"
        )
    if len(batch.boot_id) != BOOT_ID_BYTES:
        raise MessageError(f"expected a boot_id of {BOOT_ID_BYTES} bytes, got {len(batch.boot_id)}")
    counts = [batch.samples_seen, *batch.dropped.values()]
    if min(counts) < 0 or max(counts) > MAX_COUNT:
        raise MessageError(f"expected samples_seen and dropped in 0..{MAX_COUNT}, got {min(counts)}..{max(counts)}")
    if len(batch.dropped) > MAX_DROP_REASONS or max(map(len, batch.dropped), default=0) > MAX_REASON_CHARS:
        raise MessageError(f"expected at most {MAX_DROP_REASONS} reasons of {MAX_REASON_CHARS} characters in dropped")


def _fault(sample: Sample) -> Rejection | None:
    """Why the cloud will never take this sample; None if it does."""
    try:
        if len(sample.sample_id) != SAMPLE_ID_BYTES:
            raise MessageError(f"expected a sample_id of {SAMPLE_ID_BYTES} bytes, got {len(sample.sample_id)}")
        _check_numbers(sample)
        check_image(sample.image, sample.codec)
    except WireError as error:
        shown = sample.sample_id[:SAMPLE_ID_BYTES].hex()
        return Rejection(sample_id=shown, code=error.code, message=error.message)
    return None


def _check_numbers(sample: Sample) -> None:
    counts = {
        "seq": sample.seq,
        "label": sample.label,
        "update_version": sample.update_version,
        "stats_revision": sample.stats_revision,
        "domain": sample.known_domain,
    }
    for name, count in counts.items():
        if not 0 <= count <= MAX_COUNT:
            raise MessageError(f"expected {name} in 0..{MAX_COUNT}, got {count}")
    if not -ROUNDING <= sample.probability <= 1 + ROUNDING:
        raise MessageError(f"expected a probability in 0..1, got {sample.probability}")
    if not (math.isfinite(sample.entropy) and sample.entropy >= -ROUNDING):
        raise MessageError(f"expected an entropy in nats, got {sample.entropy}")


def _count(context: Context, group: str, size_bytes: int, receipt: UploadReceipt) -> None:
    metrics = context.metrics
    metrics.uploads.labels(group).inc()
    metrics.upload_bytes.labels(group).inc(size_bytes)
    metrics.samples.labels(group).inc(receipt.accepted)
    metrics.duplicates.labels(group).inc(receipt.duplicates)
    for rejection in receipt.rejected:
        metrics.rejections.labels(group, rejection.code).inc()
