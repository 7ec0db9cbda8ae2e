"""``cema user``: who may look at the cloud over HTTP, and who may administer it. Works on the store.

Whoever can run this on the cloud's machine needs no token: the commands for administration work on the store itself.
"""

from __future__ import annotations

import click
import msgspec

from cema.cli.files import private_file
from cema.cli.output import emit_json, json_option
from cema.cli.store import config_option, opened
from cema.cloud.store.rows import now_ms, user_as_dict
from cema.config import Name, ServeConfig
from cema.errors import ConfigError
from cema.wire.tokens import USER_PREFIX, new_token, token_digest


@click.group()
def user() -> None:
    """Add, list and revoke operators and readers."""


@user.command()
@config_option
@click.argument("name")
@click.option("--role", type=click.Choice(["reader", "operator"]), required=True, help="Look, or also change.")
@click.option("--out", default="-", show_default=True, help="File for the token, - for standard output.")
@json_option
def add(config: ServeConfig, name: str, role: str, out: str, as_json: bool) -> None:
    """Make a token: 'Authorization: Bearer TOKEN' at the address for administration. It is shown once."""
    _check_name(name)
    token = new_token(USER_PREFIX)
    with private_file(out) as file:
        with opened(config) as store:
            row = user_as_dict(store.add_user(name, role, token_digest(token), now_ms()))
        if file is not None:
            file.write_text(token + "\n")
    if as_json:
        emit_json(row | ({"file": out} if file else {"token": token}))
    else:
        click.echo(f"{role} {name}: the token is in {out}" if file else token)


def _check_name(name: str) -> None:
    try:
        msgspec.convert(name, Name)
    except msgspec.ValidationError as error:
        raise ConfigError(f"expected a name of letters, digits, '.', '_' and '-', got {name!r}") from error


@user.command("list")
@config_option
@json_option
def list_users(config: ServeConfig, as_json: bool) -> None:
    """Show all users; not their tokens, which the cloud does not know."""
    with opened(config) as store:
        found = [user_as_dict(row) for row in store.users()]
    if as_json:
        emit_json({"users": found})
        return
    for row in found:
        click.echo(f"{row['user']}  {row['role']}  {'revoked ' + row['revoked'] if row['revoked'] else 'active'}")


@user.command()
@config_option
@click.argument("name")
@json_option
def revoke(config: ServeConfig, name: str, as_json: bool) -> None:
    """Make a user's token worthless, at once and for ever."""
    with opened(config) as store:
        row = user_as_dict(store.revoke_user(name, now_ms()))
    if as_json:
        emit_json(row)
    else:
        click.echo(f"{row['role']} {name} is revoked since {row['revoked']}")
