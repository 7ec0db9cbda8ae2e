"""How commands speak: one line of JSON with ``--json``, else plain text; errors on standard error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
import msgspec

from cema.errors import CemaError

F = TypeVar("F", bound=Callable[..., Any])


def json_option(command: F) -> F:
    """The ``--json`` flag that every command has."""
    return click.option("--json", "as_json", is_flag=True, help="Print one line of JSON instead of text.")(command)


def emit_json(value: object) -> None:
    """One line of JSON on standard output."""
    click.echo(msgspec.json.encode(value, enc_hook=str))


def fail(error: CemaError, *, as_json: bool) -> int:
    """Report an error on standard error; returns the exit code."""
    if as_json:
        body = {"code": error.code, "message": error.message, "hint": error.hint}
        click.echo(msgspec.json.encode(body), err=True)
    else:
        click.echo(f"error[{error.code}]: {error.message}", err=True)
        if error.hint:
            click.echo(f"  try: {error.hint}", err=True)
    return error.exit_code
