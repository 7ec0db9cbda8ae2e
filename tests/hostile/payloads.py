"""Pictures as the payload of an uploaded sample: those that an agent meets, and those that only a cloud does."""

from __future__ import annotations

import struct
from dataclasses import replace
from functools import partial

from hostile.case import Case
from hostile.images import BAD, LARGE, good
from hostile.images import CASES as PICTURES

DECODER = "sample payload"


def _raw(height: int, width: int, size: int) -> bytes:
    return struct.pack("<II", height, width) + bytes(size)


def _case(name: str, code: str, data: bytes, codec: str) -> Case:
    return Case(name, DECODER, name, code, lambda: data, {"codec": codec})


_WRONG_CODEC = [
    Case(
        f"{kind} as {codec}",
        DECODER,
        f"{kind} as {codec}",
        LARGE if codec == "raw" else BAD,
        partial(good, kind),
        {"codec": codec},
    )
    for kind in ("jpeg", "png", "webp")
    for codec in ("jpeg", "png", "webp", "raw")
    if kind != codec
]
_CODECS = [
    _case("codec unknown", BAD, good("png"), "tiff"),
    _case("codec empty", BAD, good("png"), ""),
    _case("codec in capitals", BAD, good("png"), "PNG"),
    _case("codec of 100 KB", BAD, good("png"), "x" * 100_000),
    _case("codec with control characters", BAD, good("png"), "png\0\r\n"),
    _case("codec is a path", BAD, good("png"), "../../etc/passwd"),
]
_RAW = [
    _case("raw without a header", BAD, b"1234567", "raw"),
    _case("raw of no size", BAD, _raw(0, 0, 0), "raw"),
    _case("raw of no height", BAD, _raw(0, 9, 0), "raw"),
    _case("raw of 2^64 pixels", LARGE, _raw(2**32 - 1, 2**32 - 1, 9), "raw"),
    _case("raw of 2^32 pixels", LARGE, _raw(65536, 65536, 9), "raw"),
    _case("raw with a byte missing", BAD, _raw(4, 4, 47), "raw"),
    _case("raw with a byte too many", BAD, _raw(4, 4, 49), "raw"),
]
CASES = [
    *(replace(case, decoder=DECODER) for case in PICTURES),
    *_WRONG_CODEC, *_CODECS, *_RAW,
]  # fmt: skip
