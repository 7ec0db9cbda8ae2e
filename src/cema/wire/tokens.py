"""Bearer tokens: 32 random bytes with a word in front that says what they are; the cloud keeps only their sha256.

With that much chance in a token nobody finds one by trying, so a plain hash is enough: what slows down the guessing of
passwords (salt, many rounds) would only slow down the cloud.
"""

from __future__ import annotations

import hashlib
import secrets

ENROLMENT_PREFIX = "cema-enrol-"
"""A one-time token: good for nothing but to hand in the hash of the device's own key."""
KEY_PREFIX = "cema-key-"
"""A key that the device made itself; those that ``cema device enrol`` hands out directly have no prefix."""
USER_PREFIX = "cema-user-"
TOKEN_BYTES = 32


def new_token(prefix: str = "") -> str:
    """A new secret, printable and without blanks."""
    return prefix + secrets.token_urlsafe(TOKEN_BYTES)


def token_digest(token: str) -> str:
    """sha256 of a token, hexadecimal: what the cloud stores and looks up."""
    return hashlib.sha256(token.encode()).hexdigest()
