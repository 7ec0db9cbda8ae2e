"""Updates and differences that a device must not use: forged, old, for others, malformed, with impossible values.

``build`` gives (bytes, signature, base); base None = a whole update, else the version a difference starts from.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import numpy as np
from safetensors.numpy import save

from cema.wire import signing
from cema.wire.difference import source_base
from cema.wire.messages import MAX_VERSION
from cema.wire.update import MAX_HEADER_BYTES
from hostile.case import MIB, Case
from hostile.keys import BUNDLE, OTHER_BUNDLE, PRIVATE, STRANGER, manifest, packed, parameters, signed

DECODER, DIFFERENCE = "update", "difference"
FORGED, BAD, BASE, CONTENT = "signature_invalid", "update_invalid", "base_mismatch", "update_content_invalid"


def header_of(data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return found


def framed(header: bytes, values: bytes = bytes(64), length: int | None = None) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header + values


def edited(change: Callable[[dict[str, Any]], None], values: bytes = bytes(64)) -> bytes:
    """A good update whose header was changed by hand."""
    header = header_of(packed())
    change(header)
    return framed(json.dumps(header).encode(), values)


def with_entry(name: str, **changes: Any) -> bytes:
    return edited(lambda header: header[name].update(changes))


def with_manifest(**changes: Any) -> bytes:
    """Another manifest, of any types."""
    made = {**msgspec.to_builtins(manifest()), **changes}
    return edited(lambda header: header["__metadata__"].update(cema=json.dumps(made)))


def _case(name: str, code: str, build: Callable[[], bytes], memory: int | None = None) -> Case:
    more = {} if memory is None else {"memory_bytes": memory}
    return Case(name, DECODER, name, code, lambda: (*signed(build()), None), **more)


def _forged(name: str, signature: Callable[[bytes], str]) -> Case:
    return Case(name, DECODER, name, FORGED, lambda: (data := packed(), signature(data), None))


def with_length(by: int) -> bytes:
    data = packed()
    return (int.from_bytes(data[:8], "little") + by).to_bytes(8, "little") + data[8:]


def named_twice() -> bytes:
    """A header with one name for two tensors, as no JSON writer makes it."""
    header = json.dumps(header_of(packed())).encode()
    return framed(header.replace(b'"bn.bias"', b'"bn.weight"'))


def typed(dtype: str) -> bytes:
    values = {name: value.astype(dtype) for name, value in parameters().items()}
    return save(values, header_of(packed())["__metadata__"])


def shaped(shape: tuple[int, ...]) -> bytes:
    return packed(parameters(weight=np.ones(shape, np.float32)))


def renamed(old: str, new: str | None) -> bytes:
    values = parameters()
    moved = values.pop(old)
    return packed(values if new is None else {**values, new: moved})


def valued(role: str, value: float) -> bytes:
    return packed(parameters(**{role: np.full(4, value)}))


SIGNATURES = [
    _forged("signed by a stranger", lambda data: signing.sign(data, STRANGER)),
    _forged("signature of other bytes", lambda data: signing.sign(data + b"\0", PRIVATE)),
    _forged("signature of another version", lambda data: signing.sign(packed(version=9), PRIVATE)),
    _forged("no signature", lambda data: ""),
    _forged("signature that is no base64", lambda data: "not base64 !"),
    _forged("signature too short", lambda data: signing.sign(data, PRIVATE)[:40]),
    _forged("signature too long", lambda data: signing.sign(data, PRIVATE) * 2),
    _forged("signature of zeros", lambda data: "A" * 86 + "=="),
    _forged("signature of 1 MB", lambda data: "A" * MIB),
    _forged("signature in another alphabet", lambda data: "ü" * 88),
    Case("garbage unsigned", DECODER, "garbage that nobody signed", FORGED, lambda: (b"garbage", "", None)),
    Case("64 MB unsigned", DECODER, "more bytes than allowed", "too_large", lambda: (bytes(64 * MIB + 1), "", None),
         memory_bytes=112 * MIB),
]  # fmt: skip
MANIFESTS = [
    *(
        _case(f"version {version}", CONTENT, partial(packed, version=version)) for version in (1, 4, 5)
    ),
    *(_case(f"old rollback to {version}", CONTENT,
          partial(packed, version=version, rollback_of=6)) for version in (2, 5)),
    *(
        _case(f"version {version}", BAD, partial(packed, version=version))
        for version in (0, -1, MAX_VERSION + 1, 2**63 - 1)
    ),
    _case("version of 400 digits", BAD, lambda: with_manifest(version=10**400)),
    _case("version is text", BAD, lambda: with_manifest(version="7")),
    _case("version is a float", BAD, lambda: with_manifest(version=7.5)),
    _case("domain is text", BAD, lambda: with_manifest(domain="x")),
    _case("group is missing", BAD, lambda: edited(
        lambda header: header["__metadata__"].update(cema='{"version":6}'))),
    _case("group of others", CONTENT, partial(packed, group="other")),
    _case("group empty", CONTENT, partial(packed, group="")),
    _case("group with a long name", CONTENT, partial(packed, group="g" * 100_000)),
    _case("another bundle", BASE, lambda: packed(fingerprint=OTHER_BUNDLE.manifest.fingerprint)),
    _case("no fingerprint", BASE, lambda: packed(fingerprint="")),
    _case("protocol 2", BAD, partial(packed, protocol=2)),
    _case("encoding unknown", BAD, lambda: with_manifest(encoding="bfloat16")),
    _case("encoding with a long name", BAD, lambda: with_manifest(encoding="x" * 100_000)),
    _case("encoding that is not that of the values", CONTENT, lambda: with_manifest(encoding="float16")),
    _case("statistics of a device that cannot measure", CONTENT, partial(packed, stats_owner="edge")),
    _case("manifest is garbage", BAD, lambda: edited(lambda header: header["__metadata__"].update(cema="{"))),
    _case("manifest missing", BAD, lambda: edited(lambda header: header["__metadata__"].pop("cema"))),
    _case("manifest deep", BAD, lambda: edited(lambda header: header["__metadata__"].update(cema="[" * 100_000))),
    _case("metadata missing", BAD, lambda: edited(lambda header: header.pop("__metadata__"))),
    _case("metadata of numbers", BAD, lambda: edited(lambda header: header.update(__metadata__={"cema": 1}))),
]  # fmt: skip
FRAMES = [
    _case("empty", BAD, lambda: b""),
    _case("four bytes", BAD, lambda: b"\0\0\0\0"),
    _case("only a length", BAD, lambda: framed(b"", b"")),
    _case("header length 0", BAD, lambda: framed(b"", length=0)),
    _case("header longer than the file", BAD, lambda: framed(b"{}", length=1000)),
    _case("header of 2^64", BAD, lambda: framed(b"{}", length=2**64 - 1)),
    _case("header of 2^63", BAD, lambda: framed(b"{}", length=2**63)),
    _case("header beyond the limit", BAD, lambda: framed(b"{}" + b" " * MAX_HEADER_BYTES)),
    _case("header length one short", BAD, lambda: with_length(-1)),
    _case("header length one long", BAD, lambda: with_length(1)),
    _case("header is a list", BAD, lambda: framed(b"[]")),
    _case("header is deep", BAD, lambda: framed(b'{"a":' * 100_000)),
    _case("header is no UTF-8", BAD, lambda: framed(b'{"\xff\xfe":1}')),
    _case("cut in the header", BAD, lambda: packed()[:100]),
    _case("cut in the values", BAD, lambda: packed()[:-1]),
    _case("a byte behind", BAD, lambda: packed() + b"\0"),
    _case("zip", BAD, lambda: b"PK\x03\x04" + bytes(100)),
    _case("pickle", BAD, lambda: b"\x80\x04\x95" + bytes(100)),
    _case("1000 more tensors", CONTENT,
          lambda: save({**parameters(), **{f"x{n}": np.zeros(1, "f4") for n in range(1000)}},
          header_of(packed())["__metadata__"])),
]  # fmt: skip
OFFSETS = [
    _case("overlapping tensors", BAD, lambda: with_entry("bn.bias", data_offsets=[8, 24])),
    _case("tensors of the same bytes", BAD, lambda: with_entry("bn.bias", data_offsets=[32, 48])),
    _case("a hole between tensors", BAD, lambda: edited(
        lambda header: header["bn.weight"].update(data_offsets=[52, 68]), bytes(68))),
    _case("offsets out of the file", BAD, lambda: with_entry("bn.weight", data_offsets=[1000, 1016])),
    _case("offsets of 2^63", BAD, lambda: with_entry("bn.weight", data_offsets=[2**63, 2**63 + 16])),
    _case("offsets below 0", BAD, lambda: with_entry("bn.weight", data_offsets=[-16, 0])),
    _case("offsets backwards", BAD, lambda: with_entry("bn.weight", data_offsets=[64, 48])),
    _case("three offsets", BAD, lambda: with_entry("bn.weight", data_offsets=[0, 16, 32])),
    _case("offsets as text", BAD, lambda: with_entry("bn.weight", data_offsets=["0", "16"])),
    _case("shape larger than the bytes", BAD, lambda: with_entry("bn.weight", shape=[1000])),
    _case("shape of 2^64", BAD, lambda: with_entry("bn.weight", shape=[2**32, 2**32])),
    _case("shape below 0", BAD, lambda: with_entry("bn.weight", shape=[-4])),
    _case("tensor named twice", BAD, lambda: named_twice()),
]  # fmt: skip
TENSORS = [
    *(
        _case(f"values as {dtype}", CONTENT, partial(typed, dtype))
        for dtype in ("float16", "float64", "int32", "int8", "uint64", "bool")
    ),
    *(
        _case(f"shape {shape}", CONTENT, partial(shaped, shape))
        for shape in ((2, 2), (5,), (3,), (0,), (), (4, 1), (1,) * 40)
    ),
    *(
        _case(name, CONTENT, partial(renamed, old, new))
        for name, old, new in [
            ("tensor missing", "bn.bias", None), ("tensor renamed", "bn.bias", "bn.bia"), ("name empty", "bn.bias", ""),
            ("name is a path", "bn.bias", "../../etc/passwd"), ("name with NUL", "bn.bias", "bn.bias\0"),
            ("name of 100 KB", "bn.bias", "x" * 100_000), ("name in another script", "bn.bias", "bn.b\u0456as"),
        ]
    ),
    *(
        _case(f"{name} in {role}", CONTENT, partial(valued, role, value))
        for role in ("weight", "bias", "running_mean", "running_var")
        for name, value in [("nan", np.nan), ("inf", np.inf), ("-inf", -np.inf)]
    ),
    _case("negative variance", CONTENT, partial(valued, "running_var", -1e-9)),
    _case("float16 infinity", CONTENT, lambda: packed(parameters(weight=np.full(4, np.inf)), encoding="float16")),
    _case("answers overflow", CONTENT, partial(valued, "weight", 3e38)),
]  # fmt: skip


def zipped_steps(header: bytes, planes: bytes, dictionary: bytes) -> bytes:
    deflate = zlib.compressobj(9, zdict=dictionary)
    return deflate.compress(header + planes) + deflate.flush()


_BASE = source_base(BUNDLE)
_PLANES = bytes(3 * len(_BASE.ranks_N))


def _target(**changes: Any) -> tuple[bytes, bytes]:
    """(update, its bytes before the values), in float16."""
    data = packed(encoding="float16", **changes)
    return data, data[: -2 * len(_BASE.ranks_N)]


def steps(
    header: bytes | None = None, planes: bytes = _PLANES, dictionary: bytes = _BASE.dictionary, **changes: Any
) -> bytes:
    return zipped_steps(_target(**changes)[1] if header is None else header, planes, dictionary)


def _difference(
    name: str, code: str, build: Callable[[], bytes], base: int = 0, key: str = PRIVATE, memory: int | None = None,
    **target: Any,
) -> Case:  # fmt: skip
    more = {} if memory is None else {"memory_bytes": memory}
    return Case(name, DIFFERENCE, name, code, lambda: (build(), signing.sign(_target(**target)[0], key), base), **more)


DIFFERENCES = [
    _difference("difference empty", BAD, lambda: b""),
    _difference("difference garbage", BAD, lambda: b"garbage"),
    _difference("difference cut", BAD, lambda: steps()[:-5]),
    _difference("difference with bytes behind", BAD, lambda: steps() + b"x"),
    _difference("two differences", BAD, lambda: steps() * 2),
    _difference("another dictionary", BAD, lambda: steps(dictionary=b"other")),
    _difference("raw deflate", BAD, lambda: steps()[6:-4]),
    _difference("difference bomb", BAD, lambda: steps(planes=bytes(64 * MIB))),
    _difference("values missing", FORGED, lambda: steps(planes=_PLANES[:-3])),
    _difference("values too many", FORGED, lambda: steps(planes=_PLANES + bytes(3))),
    _difference("nothing in it", BAD, lambda: steps(header=b"", planes=b"")),
    _difference("steps beyond float16", BAD, lambda: steps(planes=b"\xff" * len(_PLANES))),
    _difference("other steps than signed", FORGED, lambda: steps(planes=b"\x02" + _PLANES[1:])),
    _difference("another header than signed", FORGED, lambda: steps(header=_target(version=7)[1])),
    _difference("header garbage", FORGED, lambda: steps(header=b"garbage")),
    _difference("difference signed by a stranger", FORGED, steps, key=STRANGER),
    _difference("from a version never had", BAD, steps, base=4),
    _difference("from a version to come", BAD, steps, base=10**9),
    _difference("difference to an old version", CONTENT, lambda: steps(version=4), version=4),
    _difference("difference to an old rollback", CONTENT,
          lambda: steps(version=3, rollback_of=4), version=3, rollback_of=4),
    _difference("difference for another group", CONTENT, lambda: steps(group="other"), group="other"),
    _difference("difference for another bundle", BASE, lambda: steps(fingerprint="f" * 64), fingerprint="f" * 64),
    _difference("whole update as a difference", BAD, lambda: _target()[0]),
]  # fmt: skip
CASES = [*SIGNATURES, *MANIFESTS, *FRAMES, *OFFSETS, *TENSORS, *DIFFERENCES]
