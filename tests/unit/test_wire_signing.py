"""Signatures against the first test vector of RFC 8032, section 7.1 (an empty message)."""

from __future__ import annotations

import base64

import pytest

from cema.errors import SignatureError
from cema.wire import signing


def base64_of(text: str) -> str:
    return base64.b64encode(bytes.fromhex(text)).decode()


SECRET = base64_of("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC = base64_of("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
SIGNATURE = base64_of(
    "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
    "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
)


def test_key_and_signature_are_those_of_the_standard() -> None:
    assert signing.public_key(SECRET) == PUBLIC
    assert signing.sign(b"", SECRET) == SIGNATURE
    signing.verify(b"", SIGNATURE, PUBLIC)


def test_signature_of_another_message_is_refused() -> None:
    with pytest.raises(SignatureError, match="not from the key"):
        signing.verify(b"x", SIGNATURE, PUBLIC)
