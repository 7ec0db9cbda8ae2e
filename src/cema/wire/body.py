"""The body of an upload on its way: a msgpack batch, as one zlib stream where the cloud takes that.

Small pictures gain: half of a JPEG of 32 pixels is headers and tables, much the same in all of a batch (ADR 14).
Inflating is bounded: a short body cannot become a large allocation.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

from cema.errors import MessageError, SizeLimitError
from cema.wire.messages import SampleBatch, encode_msgpack

DEFLATE = "deflate"
"""Content coding of RFC 9110: a zlib stream (RFC 1950)."""
_LEVEL = 6
"""Of zlib, 0 to 9: measured, less is not faster and more is not shorter (ADR 14)."""


class UploadBody(NamedTuple):
    """data: the bytes that travel. encoding: their Content-Encoding, None for a batch as it is."""

    data: bytes
    encoding: str | None


def pack_batch(batch: SampleBatch, *, deflate: bool) -> UploadBody:
    """What is sent of a batch: deflated if the cloud takes it and it becomes shorter."""
    plain = encode_msgpack(batch)
    if deflate and len(deflated := zlib.compress(plain, _LEVEL)) < len(plain):
        return UploadBody(deflated, DEFLATE)
    return UploadBody(plain, None)


def inflate(data: bytes, limit_bytes: int) -> bytes:
    """The plain body behind a zlib stream.

    Raises
    ------
    SizeLimitError: more than ``limit_bytes`` would come out; no more than that was made. MessageError: not exactly one
    complete zlib stream.
    """
    stream = zlib.decompressobj()
    try:
        plain = stream.decompress(data, limit_bytes + 1)
    except zlib.error as error:
        raise MessageError(
            f"expected a body with Content-Encoding: {DEFLATE}, got {len(data)} bytes that are not: {error}",
            hint="one zlib stream (RFC 1950), not a raw deflate stream",
        ) from error
    if len(plain) > limit_bytes:
        raise SizeLimitError(
            f"expected a body of at most {limit_bytes} bytes once inflated, got more",
            hint="send fewer samples per batch (uplink.batch_bytes), or raise server.max_body_bytes",
            limit_bytes=limit_bytes,
        )
    if not stream.eof or stream.unused_data:
        raise MessageError(
            f"expected one complete zlib stream, got {'more behind it' if stream.eof else 'its beginning'}",
            hint=f"check what sent the body with Content-Encoding: {DEFLATE}",
        )
    return plain
