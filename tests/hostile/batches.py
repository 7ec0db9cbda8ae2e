"""Bodies of uploads and key proposals that are not what docs/protocol.md says: types, values, lengths, codings.

``build`` gives the body. Options: ``headers`` beside the usual; ``sample`` = the batch is taken and one sample of it
refused (the code is the rejection's); ``path`` = another route than the samples'.
"""

from __future__ import annotations

import math
import struct
import zlib
from functools import partial
from typing import Any

import msgspec

from cema.cloud.api.samples import MAX_COUNT
from hostile.case import MIB, TAKEN, Case
from integration.web.conftest import PICTURE

DECODER, KEY_DECODER = "sample batch", "key proposal"
BAD = "message_invalid"
ABSENT = object()
SAMPLE: dict[str, Any] = {
    "sample_id": b"s" * 16, "seq": 0, "codec": "png", "image": PICTURE, "label": 0, "probability": 0.5,
    "entropy": 1.0, "update_version": 0, "captured_at_ms": 0, "stats_revision": 0, "domain": 0,
}  # fmt: skip
BATCH: dict[str, Any] = {
    "device_id": "cam", "boot_id": b"b" * 16, "fingerprint": "f1", "samples_seen": 0, "samples": [], "protocol": 1,
    "dropped": {}, "stats": None,
}  # fmt: skip
KEY: dict[str, Any] = {"device_id": "cam", "key_sha256": "0" * 64}
WRONG: dict[str, Any] = {"nil": None, "text": "x", "negative float": -1.5, "list": [1], "map": {"a": 1}, "true": True,
                         "bytes": b"\xff\xfe"}  # fmt: skip


def body(value: Any) -> bytes:
    return msgspec.msgpack.encode(value)


def changed(base: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {name: value for name, value in {**base, **changes}.items() if value is not ABSENT}


def batch(**changes: Any) -> bytes:
    return body(changed(BATCH, **changes))


def batch_of(**changes: Any) -> bytes:
    """A batch with one sample, changed."""
    return batch(samples=[changed(SAMPLE, **changes)])


def _case(name: str, defect: str, code: str, build: Any, **options: Any) -> Case:
    return Case(name, DECODER, defect, code, build if callable(build) else partial(bytes, build), options)


def _fits(field: str, kind: str, base: dict[str, Any]) -> bool:
    """Whether the wrong value is of the right type after all."""
    value = WRONG[kind]
    if field == "stats" and value is None:
        return True
    if field == "sample_id" or field in ("image", "boot_id"):
        return isinstance(value, bytes)
    return (isinstance(value, type(base[field])) and not isinstance(value, bool) and not isinstance(value, list)) or (
        field == "dropped" and kind == "map"
    )


_TYPES = [
    _case(f"batch {field} is {kind}", f"batch.{field} has another type", BAD, partial(batch, **{field: value}))
    for field in BATCH for kind, value in WRONG.items() if not _fits(field, kind, BATCH)
]  # fmt: skip
_SAMPLE_TYPES = [
    _case(f"sample {field} is {kind}", f"sample.{field} has another type", BAD, partial(batch_of, **{field: value}))
    for field in SAMPLE for kind, value in WRONG.items() if not _fits(field, kind, SAMPLE)
]  # fmt: skip
_MISSING = [
    *(
        _case(f"batch without {field}", f"batch.{field} is missing", BAD, partial(batch, **{field: ABSENT}))
        for field in ("device_id", "boot_id", "fingerprint", "samples_seen", "samples")
    ),
    *(
        _case(f"sample without {field}", f"sample.{field} is missing", BAD, partial(batch_of, **{field: ABSENT}))
        for field in SAMPLE if field not in ("stats_revision", "domain")
    ),
]  # fmt: skip
_STATISTICS = [
    _case(f"statistics {name}", f"statistics: {name}", BAD, partial(batch, stats={"bn": value}))
    for name, value in {
        "without a mean": {"variance": b"", "count": 1},
        "with a count as text": {"mean": b"", "variance": b"", "count": "1"},
        "with numbers": {"mean": [0.5], "variance": [1.0], "count": 1},
    }.items()
]
_BATCH_VALUES = [
    _case(f"batch {name}", f"batch: {name}", code, partial(batch, **changes))
    for name, code, changes in [
        ("of protocol 2", BAD, {"protocol": 2}),
        ("of protocol -1", BAD, {"protocol": -1}),
        ("of another device", "forbidden", {"device_id": "gone"}),
        ("of a device with a long name", "forbidden", {"device_id": "x" * 100_000}),
        ("of a device with control characters", "forbidden", {"device_id": "cam\0\n"}),
        ("with a short boot", BAD, {"boot_id": b"b"}),
        ("with a long boot", BAD, {"boot_id": b"b" * 100_000}),
        ("with images seen below 0", BAD, {"samples_seen": -1}),
        ("with too many images seen", BAD, {"samples_seen": MAX_COUNT + 1}),
        ("with 2^64 images seen", BAD, {"samples_seen": 2**64 - 1}),
        ("with losses below 0", BAD, {"dropped": {"x": -1}}),
        ("with too many losses", BAD, {"dropped": {"x": 2**64 - 1}}),
        ("with a long reason", BAD, {"dropped": {"x" * 65: 1}}),
        ("with many reasons", BAD, {"dropped": {str(number): 1 for number in range(33)}}),
        ("with unknown fields", TAKEN, {"extra": {"deep": [[[]]]}, "samples_seen_": "x"}),
        ("with 1000 unknown fields", TAKEN, {f"x{number}": number for number in range(1000)}),
        ("with too many samples", "too_large", {"samples": [SAMPLE] * 5}),
        ("with 10000 samples", "too_large", {"samples": [changed(SAMPLE, image=b"")] * 1200}),
    ]
]
_SAMPLE_VALUES = [
    _case(f"sample {field} {value!r:.30}", f"sample.{field}: {kind}", BAD,
          partial(batch_of, **{field: value}), sample=True)
    for field, kind, value in [
        *((field, "below 0", -1) for field in ("seq", "label", "update_version", "stats_revision", "domain")),
        *((field, "huge", MAX_COUNT + 1) for field in ("seq", "label", "update_version", "stats_revision", "domain")),
        *((field, "2^64", 2**64 - 1) for field in ("seq", "label", "update_version", "stats_revision", "domain")),
        *((field, "not a number", math.nan) for field in ("probability", "entropy")),
        *((field, "infinite", math.inf) for field in ("probability", "entropy")),
        *((field, "infinite", -math.inf) for field in ("probability", "entropy")),
        ("probability", "above 1", 1.5), ("probability", "below 0", -0.5), ("entropy", "below 0", -1.0),
        ("sample_id", "short", b"s"), ("sample_id", "empty", b""), ("sample_id", "long", b"s" * 50_000),
    ]
]  # fmt: skip
_HARMLESS = [
    _case(f"sample {name}", f"sample: {name}", TAKEN, partial(batch_of, **changes))
    for name, changes in {
        "of 1 January 1970": {"captured_at_ms": 0},
        "of long before 1970": {"captured_at_ms": -(2**63)},
        "of the far future": {"captured_at_ms": 2**64 - 1},
        "with unknown fields": {"extra": None},
        "of a version that is not there yet": {"update_version": 10**6},
    }.items()
]
_REPEATED = [
    _case("one seq twice", "repeated seq", TAKEN, lambda: batch(
        samples=[changed(SAMPLE, sample_id=bytes([number]) * 16, seq=7) for number in (1, 2)])),
    _case("one id twice", "repeated id", TAKEN, lambda: batch(samples=[SAMPLE, changed(SAMPLE, seq=1)])),
    _case("one field twice", "repeated field", "forbidden", lambda: _with_twice("device_id", "gone")),
    _case("samples of another bundle", "another bundle", "base_mismatch",
          partial(batch, fingerprint="f0", samples=[SAMPLE]), sample=True),
    _case("samples of a bundle with a long name", "another bundle with a long name", "base_mismatch",
          partial(batch, fingerprint="f" * 100_000, samples=[SAMPLE]), sample=True),
]  # fmt: skip


def _with_twice(field: str, value: Any) -> bytes:
    """A batch whose map has one more entry, a field that it had before."""
    assert len(BATCH) < 15
    return bytes([0x80 | len(BATCH) + 1]) + batch()[1:] + body(field) + body(value)


def _nested(opener: bytes, depth: int) -> bytes:
    return b"\x81" + body("samples") + opener * depth


_FRAMING = [
    _case("empty body", "no bytes", BAD, lambda: b""),
    _case("cut in the middle", "cut", BAD, lambda: batch_of()[:60]),
    _case("last byte missing", "last byte missing", BAD, lambda: batch_of()[:-1]),
    _case("a byte behind", "bytes behind", BAD, lambda: batch_of() + b"\xc0"),
    _case("a second batch behind", "a message behind", BAD, lambda: batch_of() * 2),
    _case("json", "json", BAD, lambda: msgspec.json.encode({"device_id": "cam"})),
    _case("pickle", "pickle", BAD, lambda: b"\x80\x04\x95\x10\0\0\0\0\0\0\0\x8c\x05posix\x94."),
    _case("xml", "xml", BAD, lambda: b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY x 'y'>]><a>&x;</a>"),
    _case("a list", "a list", BAD, lambda: body([BATCH])),
    _case("a number", "a number", BAD, lambda: body(1)),
    _case("a reserved byte", "a reserved byte", BAD, lambda: b"\xc1"),
    _case("an extension", "an extension type", BAD, lambda: b"\xc7\x04\x2aabcd"),
    _case("numbers as keys", "numbers as keys", BAD, lambda: body({1: 2})),
    _case("text that is no UTF-8", "text that is no UTF-8", BAD, lambda: batch().replace(b"cam", b"\xff\xfe\xfd")),
    _case("lists in lists", "deep lists", BAD, partial(_nested, b"\x91", 100_000)),
    _case("maps in maps", "deep maps", BAD, partial(_nested, b"\x81\xa1a", 30_000)),
    _case("deep in an unknown field", "deep unknown field", BAD, lambda: b"\x81\xa1x" + b"\x91" * 100_000),
    *(
        _case(f"{name} of 4 billion", f"{name} of declared 4 billion", BAD,
              partial(lambda start, end: b"\x81" + body(start) + end, field, opener + b"\xff" * 4))
        for name, field, opener in [
            ("list", "samples", b"\xdd"), ("map", "dropped", b"\xdf"), ("text", "device_id", b"\xdb"),
            ("bytes", "boot_id", b"\xc6"), ("unknown list", "x", b"\xdd"), ("unknown bytes", "x", b"\xc6"),
        ]
    ),
]  # fmt: skip
_DEFLATED: dict[str, Any] = {"headers": {"Content-Encoding": "deflate"}}
_CODINGS = [
    _case("deflate bomb", "a bomb", "too_large", lambda: zlib.compress(bytes(64 * MIB), 9), **_DEFLATED),
    _case("deflate bomb of one byte more", "one byte more than allowed", "too_large",
          lambda: zlib.compress(bytes(200_001)), **_DEFLATED),
    _case("deflated twice", "deflated twice", BAD, lambda: zlib.compress(zlib.compress(batch_of())), **_DEFLATED),
    _case("deflate of nothing", "deflated nothing", BAD, lambda: zlib.compress(b""), **_DEFLATED),
    _case("deflate with an empty body", "no deflated bytes", BAD, lambda: b"", **_DEFLATED),
    _case("raw deflate", "raw deflate", BAD, lambda: zlib.compress(batch_of())[2:-4], **_DEFLATED),
    _case("deflate without a checksum", "deflated, checksum missing", BAD,
          lambda: zlib.compress(batch_of())[:-4], **_DEFLATED),
    _case("deflate with a wrong checksum", "deflated, checksum wrong", BAD,
          lambda: zlib.compress(batch_of())[:-4] + b"abcd", **_DEFLATED),
    _case("deflate with a dictionary", "deflated with a dictionary", BAD, lambda: _with_dictionary(), **_DEFLATED),
    _case("two streams", "two deflated streams", BAD, lambda: zlib.compress(batch_of()) * 2, **_DEFLATED),
    _case("plain said to be deflated", "not deflated", BAD, batch_of, **_DEFLATED),
    _case("deflated and not said so", "deflated, not declared", BAD, lambda: zlib.compress(batch_of())),
    _case("gzip said to be deflate", "gzip as deflate", BAD, lambda: zlib.compress(batch_of(), wbits=31), **_DEFLATED),
    *(
        _case(f"coding {coding!r:.20}", f"coding {coding!r:.20}", "encoding_unsupported", batch_of,
              headers={"Content-Encoding": coding})
        for coding in ("gzip", "br", "zstd", "deflate, deflate", "deflate;q=1", "x" * 5000, "identity, deflate")
    ),
    _case("too many bytes", "more bytes than allowed", "too_large", lambda: bytes(200_001)),
    *(
        _case(f"type {kind!r}", f"content type {kind!r}", BAD, batch_of, headers={"Content-Type": kind})
        for kind in ("application/json", "", "application/msgpackx", "multipart/form-data; boundary=x", "x" * 5000)
    ),
]  # fmt: skip


def _with_dictionary() -> bytes:
    deflate = zlib.compressobj(zdict=b"samples_seen")
    return deflate.compress(batch_of()) + deflate.flush()


def _key(name: str, code: str, data: bytes, **headers: str) -> Case:
    return Case(name, KEY_DECODER, name, code, lambda: data, {"path": "/v1/groups/g/key", "headers": headers})


_KEYS = [
    *(
        _key(f"key {field} is {kind}", BAD, body(changed(KEY, **{field: value})))
        for field in KEY for kind, value in {**WRONG, "missing": ABSENT}.items() if kind not in ("text",)
    ),
    _key("key hash short", BAD, body(changed(KEY, key_sha256="0" * 63))),
    _key("key hash in capitals", BAD, body(changed(KEY, key_sha256="A" * 64))),
    _key("key hash with a line feed", BAD, body(changed(KEY, key_sha256="0" * 64 + "\n"))),
    _key("key hash of odd digits", BAD, body(changed(KEY, key_sha256="\u0660" * 64))),
    _key("key of another device", "forbidden", body(changed(KEY, device_id="gone"))),
    _key("key proposal too large", "too_large", body(changed(KEY, extra="x" * 5000))),
    _key("key proposal deflated", "encoding_unsupported", zlib.compress(body(KEY)), **{"Content-Encoding": "deflate"}),
    _key("key proposal cut", BAD, body(KEY)[:-1]),
    _key("key proposal is a float", BAD, b"\xcb" + struct.pack(">d", math.nan)),
]  # fmt: skip
CASES = [*_TYPES, *_SAMPLE_TYPES, *_MISSING, *_STATISTICS, *_BATCH_VALUES, *_SAMPLE_VALUES, *_HARMLESS, *_REPEATED,
         *_FRAMING, *_CODINGS, *_KEYS]  # fmt: skip
