"""Small JSON files of the state folder with a checksum: a flipped bit in a version or a key is damage, not news."""

from __future__ import annotations

import hashlib
from typing import Any, TypeVar

import msgspec

_CHECK = "check"
T = TypeVar("T", bound=msgspec.Struct)


def encode_checked(value: msgspec.Struct) -> bytes:
    """JSON with a sha256 over the other fields among them."""
    fields = msgspec.to_builtins(value)
    return msgspec.json.encode({**fields, _CHECK: _digest(fields)})


def decode_checked(data: bytes, kind: type[T]) -> T | None:
    """What was encoded; None if it is damaged. Files of before have no checksum, and no field that is not known."""
    try:
        fields = msgspec.json.decode(data, type=dict[str, Any])
        check = fields.pop(_CHECK, None)
        whole = check == _digest(fields) if check is not None else fields.keys() <= set(kind.__struct_fields__)
        return msgspec.convert(fields, kind) if whole else None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _digest(fields: dict[str, Any]) -> str:
    return hashlib.sha256(msgspec.json.encode(fields)).hexdigest()
