"""What the cloud says about a bundle besides its bytes: whose it is, and its place in their order. Signed, in a header.

A bundle's own signature says neither: without this, an old bundle, or another group's, would be as good as the present
one to whoever can answer for the cloud. Text = base64 of the JSON, a dot, the signature in base64.
"""

from __future__ import annotations

import base64
import binascii

from cema.errors import MessageError, SignatureError
from cema.wire import signing
from cema.wire.messages import Message, decode_json, encode_json

MAX_STATEMENT_CHARS = 1024
_PURPOSE = b"cema bundle statement\0"
"""Signed in front of the JSON, so that these bytes can be nothing else that this key signs."""


class BundleStatement(Message, frozen=True, kw_only=True):
    """group: whose bundle it is. sha256: of its bytes, hex. sequence: from 1, rising with each new one of the group."""

    group: str
    sha256: str
    sequence: int


def encode_statement(statement: BundleStatement, private_key: str) -> str:
    """Text of a header. private_key: base64."""
    data = encode_json(statement)
    return f"{base64.b64encode(data).decode()}.{signing.sign(_PURPOSE + data, private_key)}"


def open_statement(text: str, key: str) -> BundleStatement:
    """Verify with the public ``key``, then read. Raises SignatureError, MessageError."""
    encoded, dot, signature = text.partition(".")
    if len(text) > MAX_STATEMENT_CHARS or not dot:
        raise MessageError(f"expected a bundle statement of two parts, at most {MAX_STATEMENT_CHARS} characters")
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise SignatureError("expected base64 text in a bundle statement") from error
    signing.verify(_PURPOSE + data, signature, key)
    return decode_json(data, BundleStatement, limit_bytes=MAX_STATEMENT_CHARS)
