"""The header Authorization, before anybody is known."""

from __future__ import annotations

import tempfile

from starlette.requests import Request

from cema.cloud.api.callers import known_device, operator
from cema.cloud.app import create_app
from cema.cloud.store.blobs import MemoryBlobs
from cema.cloud.store.memory import MemoryStore
from cema.config import ServeConfig, ServerConfig
from cema.errors import AuthError, EnrolmentError
from cema.wire.tokens import ENROLMENT_PREFIX, KEY_PREFIX, USER_PREFIX, token_digest

ALLOWED = AuthError
SECRET, ONCE = KEY_PREFIX + "0123456789abcdef", ENROLMENT_PREFIX + "0123456789abcdef"
SEEDS = [
    f"{scheme} {token}".encode()
    for scheme in ("Bearer", "bearer", "Basic")
    for token in (SECRET, ONCE, USER_PREFIX + "0123", "", token_digest(SECRET))
]
_store = MemoryStore()
_store.put_group("g", "f", "bundle", "on", 0)
_store.enrol("cam", "g", token_digest(SECRET), 0)
_store.enrol("new", "g", token_digest(ONCE), 0, token_expires_ms=1 << 60)
with tempfile.TemporaryDirectory() as _folder:  # for the signing key, which nothing here needs
    APP = create_app(ServeConfig(server=ServerConfig(data_dir=_folder)), _store, MemoryBlobs())


def run(data: bytes) -> None:
    """Nobody becomes an operator, and a device only who shows its key, and nothing but that."""
    request = Request({"type": "http", "headers": [(b"authorization", data)], "app": APP})
    try:
        operator(request)
        raise AssertionError("somebody became an operator")
    except AuthError:
        pass
    try:
        device = known_device("g", request)
    except EnrolmentError:
        assert ONCE.encode() in data
        raise
    assert device.device_id == "cam"
    assert SECRET.encode() in data
