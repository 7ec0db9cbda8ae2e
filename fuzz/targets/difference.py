"""A difference to the version that a device has; its result is verified later, its size here."""

from __future__ import annotations

import zlib

import numpy as np

from cema.errors import UpdateError
from cema.wire.difference import Base, apply_difference, encode_difference
from cema.wire.update import MAX_HEADER_BYTES

ALLOWED = UpdateError
_COUNT = 64
_HEADER = b'{"bn.weight":{"dtype":"F16"}}'
_VALUES = np.zeros(_COUNT, "<f2")
_UPDATE = len(_HEADER).to_bytes(8, "little") + _HEADER + _VALUES.tobytes()
BASE = Base(np.zeros(_COUNT, np.int32), b"bn.bias\nbn.weight\n" + _HEADER)
_WHOLE = encode_difference(_UPDATE, BASE)
assert _WHOLE is not None
SEEDS = [b"\0" + _WHOLE, b"\1" + _UPDATE[: -2 * _COUNT] + bytes(3 * _COUNT)]


def run(data: bytes) -> None:
    """First byte 0: as it came; 1: deflated here, so that what is inside is reached."""
    body = data[1:]
    if data[:1] == b"\1":
        stream = zlib.compressobj(zdict=BASE.dictionary)
        body = stream.compress(body) + stream.flush()
    applied = apply_difference(body, BASE)
    assert 2 * _COUNT <= len(applied) <= 8 + MAX_HEADER_BYTES + 3 * _COUNT
