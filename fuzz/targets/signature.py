"""A signature as text beside content: in a header, or in a file."""

from __future__ import annotations

import base64

from cema.errors import SignatureError
from cema.wire import signing

ALLOWED = SignatureError
CONTENT = b"content"
_PRIVATE = base64.b64encode(bytes(32)).decode()
_KEY, _SIGNATURE = signing.public_key(_PRIVATE), signing.sign(CONTENT, _PRIVATE)
SEEDS = [b"\0" + _SIGNATURE.encode(), b"\1" + _KEY.encode()]


def run(data: bytes) -> None:
    """First byte 0: a signature; 1: a key. Only the true ones verify, in whatever way they are written."""
    text = data[1:].decode("latin-1")
    signature, key = (_SIGNATURE, text) if data[:1] == b"\1" else (text, _KEY)
    signing.verify(CONTENT, signature, key)
    assert base64.b64decode(signature) == base64.b64decode(_SIGNATURE)
    assert base64.b64decode(key) == base64.b64decode(_KEY)
