"""Errors carry a stable code, a status, an exit code, and the values behind their message."""

from __future__ import annotations

import re

import pytest

from cema import errors
from cema.errors import BaseMismatchError, CemaError, SizeLimitError, all_errors


def test_every_error_class_of_the_module_is_listed_once() -> None:
    defined = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, CemaError)}
    listed = [kind for kind in all_errors() if kind.__module__ == errors.__name__]
    assert len(listed) == len(set(listed))
    assert set(listed) == defined


def test_codes_are_unique_and_stable_identifiers() -> None:
    codes = [kind.code for kind in all_errors() if "code" in vars(kind)]
    assert len(codes) == len(set(codes))
    assert all(re.fullmatch(r"[a-z][a-z_]*", code) for code in codes)


@pytest.mark.parametrize("kind", [kind for kind in all_errors() if kind.__module__ == errors.__name__])
def test_every_error_has_its_own_code_a_status_and_an_exit_code(kind: type[CemaError]) -> None:
    assert "code" in vars(kind)
    assert 400 <= kind.http_status < 600
    assert 1 <= kind.exit_code < 20  # 20: the demo ran but adaptation did not help


def test_parents_are_listed_before_their_children() -> None:
    listed = all_errors()
    for kind in listed:
        for parent in kind.__mro__[1:]:
            if parent in listed:
                assert listed.index(parent) < listed.index(kind)


def test_the_tree_in_the_docstring_names_every_class() -> None:
    assert errors.__doc__ is not None
    for kind in all_errors():
        if kind.__module__ == errors.__name__:
            assert kind.__name__ in errors.__doc__


def test_an_error_carries_message_hint_and_values() -> None:
    error = SizeLimitError("expected at most 5 bytes, got 6", hint="send less", limit_bytes=5, size_bytes=6)
    assert str(error) == "expected at most 5 bytes, got 6 (send less)"
    assert (error.message, error.hint) == ("expected at most 5 bytes, got 6", "send less")
    assert error.values == {"limit_bytes": 5, "size_bytes": 6}
    assert error.args == ("expected at most 5 bytes, got 6",)


def test_an_error_without_a_hint_is_its_message() -> None:
    assert str(BaseMismatchError("another bundle")) == "another bundle"
