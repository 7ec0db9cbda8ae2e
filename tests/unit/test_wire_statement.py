"""What the cloud states about a bundle: only its own words are read."""

from __future__ import annotations

import base64

import pytest

from cema.errors import CemaError, MessageError, SignatureError
from cema.wire import signing
from cema.wire.statement import MAX_STATEMENT_CHARS, BundleStatement, encode_statement, open_statement

KEY = signing.generate_key()
PUBLIC = signing.public_key(KEY)
STATEMENT = BundleStatement(group="doors", sha256="a" * 64, sequence=3)


def test_what_was_stated_is_read_and_fits_for_the_longest_name() -> None:
    longest = BundleStatement(group="g" * 64, sha256="a" * 64, sequence=1 << 62)
    for statement in (STATEMENT, longest):
        text = encode_statement(statement, KEY)
        assert open_statement(text, PUBLIC) == statement
        assert len(text) < MAX_STATEMENT_CHARS


def test_another_key_and_changed_words_are_refused() -> None:
    text = encode_statement(STATEMENT, KEY)
    with pytest.raises(SignatureError):
        open_statement(text, signing.public_key(signing.generate_key()))
    said, _, signature = text.partition(".")
    other = base64.b64encode(base64.b64decode(said).replace(b"3", b"4")).decode()
    with pytest.raises(SignatureError):
        open_statement(f"{other}.{signature}", PUBLIC)


def test_a_signature_over_the_same_bytes_for_another_purpose_is_none() -> None:
    said = encode_statement(STATEMENT, KEY).partition(".")[0]
    with pytest.raises(SignatureError):
        open_statement(f"{said}.{signing.sign(base64.b64decode(said), KEY)}", PUBLIC)


@pytest.mark.parametrize("text", ["", "abc", ".", "!.!", "e30=.e30=", "x" * 5000 + ".y"])
def test_what_is_no_statement_is_refused(text: str) -> None:
    with pytest.raises(CemaError) as caught:
        open_statement(text, PUBLIC)
    assert isinstance(caught.value, MessageError | SignatureError)
