"""Ed25519 signatures, detached, over the exact bytes that travel (PyNaCl = libsodium; ADR 0004).

The cloud signs; the edge verifies before it parses anything. Keys are 32 bytes, base64 in files.
"""

from __future__ import annotations

import base64
import binascii
from types import ModuleType

from cema.errors import DependencyError, SignatureError


def generate_key() -> str:
    """A new private key (seed), base64."""
    return base64.b64encode(bytes(_nacl().SigningKey.generate())).decode()


def public_key(private_key: str) -> str:
    """The public key that belongs to a private key; both base64."""
    return base64.b64encode(bytes(_nacl().SigningKey(_decode(private_key, 32)).verify_key)).decode()


def sign(data: bytes, private_key: str) -> str:
    """Signature of ``data``, base64."""
    return base64.b64encode(_nacl().SigningKey(_decode(private_key, 32)).sign(data).signature).decode()


def verify(data: bytes, signature: str, key: str) -> None:
    """Raises SignatureError unless ``signature`` (base64) is that of the owner of public ``key`` over ``data``."""
    nacl_signing = _nacl()
    try:
        nacl_signing.VerifyKey(_decode(key, 32)).verify(data, _decode(signature, 64))
    except nacl_signing.exc.BadSignatureError as error:
        raise SignatureError(
            f"the signature over {len(data)} bytes is not from the key this device trusts",
            hint="enrol the device again if the cloud's key was changed on purpose",
        ) from error


def check_key(key: str) -> None:
    """Whether this machine can verify with public ``key`` at all. Raises DependencyError, SignatureError."""
    _nacl().VerifyKey(_decode(key, 32))


def _decode(text: str, length: int) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise SignatureError("expected base64 text for a key or signature") from error
    if len(raw) != length:
        raise SignatureError(f"expected {length} bytes of key or signature, got {len(raw)}")
    return raw


def _nacl() -> ModuleType:
    try:
        import nacl.signing
    except ImportError as error:
        raise DependencyError(
            "signature verification needs PyNaCl, which is not installed",
            hint="pip install 'cema[verify]', or set verify_updates = false in device.toml if the link is trusted",
        ) from error
    return nacl.signing
