"""An update on its way to a device that has another version already: only what differs travels.

A difference is a way to transport exact bytes, nothing more: the device puts the update's own bytes together again and
only then verifies, parses and keeps them, as if they had come whole. Neighbouring versions differ by a few units in
the last place of a float16, so a difference is a quarter to a half of the float16 file (ADR 10, docs/protocol.md).
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cema.errors import UpdateError
from cema.wire.bundle import Bundle
from cema.wire.messages import BundleManifest
from cema.wire.update import MAX_HEADER_BYTES

DIFFERENCE_TYPE = "application/vnd.cema.update-difference"
_LENGTH_BYTES = 8
_ITEM_BYTES = 2
_SIGN, _MAGNITUDE = 0x8000, 0x7FFF

Ranks = NDArray[np.int32]
"""float16 values by their place in the order of all: neighbours differ by one, +0 and -0 are 0 and -1."""


@dataclass(frozen=True)
class Base:
    """What both sides have. ranks_N: its values, tensors by name in order. dictionary: text that the header of the next
    version resembles."""

    ranks_N: Ranks
    dictionary: bytes


def source_base(bundle: Bundle) -> Base:
    """Version 0, which every device has: the bundle's own parameters, rounded to float16."""
    parameters = bundle.source_parameters()
    names = sorted(parameters)
    with np.errstate(over="ignore"):  # beyond float16: infinity on both sides, which differs from any value as well
        values = [np.ravel(parameters[name]).astype("<f2") for name in names]
    return Base(_ranks(np.concatenate(values).view("<u2")), "\n".join(names).encode())


def update_base(data: bytes, manifest: BundleManifest) -> Base | None:
    """A version by its bytes; None if it is not in float16."""
    header, bits_N = _split(data, count_values(manifest))
    return None if bits_N is None else Base(_ranks(bits_N), header)


def count_values(manifest: BundleManifest) -> int:
    """Of all norm tensors of a bundle."""
    return sum(math.prod(tensor.shape) for tensor in manifest.norm)


def encode_difference(data: bytes, base: Base) -> bytes | None:
    """What turns ``base`` into the update ``data``; None if ``data`` is not in float16 or would not become shorter."""
    header, bits_N = _split(data, len(base.ranks_N))
    if bits_N is None:
        return None
    steps_N = _ranks(bits_N) - base.ranks_N
    folded_N = ((steps_N << 1) ^ (steps_N >> 31)).astype("<u4")  # 0, -1, 1, -2, ... -> 0, 1, 2, 3, ...
    deflate = zlib.compressobj(9, zlib.DEFLATED, strategy=zlib.Z_FILTERED, zdict=base.dictionary)
    parts = []
    for part in (header, *np.ascontiguousarray(folded_N.view(np.uint8).reshape(-1, 4)[:, :3].T)):
        parts += [deflate.compress(bytes(part)), deflate.flush(zlib.Z_SYNC_FLUSH)]  # code tables for each part
    encoded = b"".join([*parts, deflate.flush()])
    return encoded if len(encoded) < len(data) else None


def apply_difference(encoded: bytes, base: Base) -> bytes:
    """The bytes of the update. Nothing about them is trusted yet: verify, then parse. Raises UpdateError."""
    count = len(base.ranks_N)
    inflate = zlib.decompressobj(zdict=base.dictionary)
    limit = _LENGTH_BYTES + MAX_HEADER_BYTES + 3 * count
    try:
        plain = inflate.decompress(encoded, limit + 1)
    except zlib.error as error:
        raise UpdateError(f"expected a difference to the version this device has: {error}") from error
    if len(plain) > limit or len(plain) < 3 * count or not inflate.eof or inflate.unused_data:
        raise UpdateError(f"expected a difference of {count} values, got {len(encoded)} bytes that are not")
    header, planes = plain[: len(plain) - 3 * count], plain[len(plain) - 3 * count :]
    folded_N = np.zeros((count, 4), np.uint8)
    folded_N[:, :3] = np.frombuffer(planes, np.uint8).reshape(3, count).T
    unfolded_N = folded_N.view("<u4").ravel().astype(np.int32)
    ranks_N = base.ranks_N + ((unfolded_N >> 1) ^ -(unfolded_N & 1))
    if count and (ranks_N.min() < -_SIGN or ranks_N.max() > _MAGNITUDE):
        raise UpdateError("expected a difference between float16 values, got one that leads beyond them")
    return header + _bits(ranks_N).tobytes()


def _split(data: bytes, count: int) -> tuple[bytes, NDArray[np.uint16] | None]:
    """(everything before the values, their float16 bits, None if it is another encoding)."""
    size = count * _ITEM_BYTES
    start = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    if len(data) - start != size:
        return data, None
    return data[:start], np.frombuffer(data, "<u2", offset=start)


def _ranks(bits_N: NDArray[np.uint16]) -> Ranks:
    wide_N = bits_N.astype(np.int32)
    return np.where(wide_N & _SIGN, ~(wide_N & _MAGNITUDE), wide_N)


def _bits(ranks_N: Ranks) -> NDArray[np.uint16]:
    return np.where(ranks_N < 0, ~ranks_N | _SIGN, ranks_N).astype("<u2")
