"""What the cloud states about a bundle, from a header."""

from __future__ import annotations

import base64

from cema.errors import MessageError, SignatureError
from cema.wire import signing
from cema.wire.statement import BundleStatement, encode_statement, open_statement

ALLOWED = MessageError, SignatureError
_PRIVATE = base64.b64encode(bytes(32)).decode()
_STATEMENT = BundleStatement(group="g", sha256="0" * 64, sequence=1)
_PUBLIC = signing.public_key(_PRIVATE)
SEEDS = [encode_statement(_STATEMENT, _PRIVATE).encode()]


def run(data: bytes) -> None:
    """Nothing but what was stated verifies, in whatever way it is written."""
    assert open_statement(data.decode("latin-1"), _PUBLIC) == _STATEMENT
