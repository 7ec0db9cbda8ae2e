"""``cema device``: who may talk to the cloud. Works on the store through ``-c cema.toml``, on the cloud's machine.

A token appears once, in the device's own file (mode 0600); the store keeps its sha256. It never stands on a command
line, where other users of the machine could read it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import msgspec

from cema.cli.output import emit_json, json_option
from cema.cli.store import config_option, opened
from cema.cloud.keys import signing_key
from cema.cloud.registry import register_group
from cema.cloud.store import open_store
from cema.cloud.store.rows import device_as_dict, now_ms
from cema.config import DeviceConfig, ServeConfig
from cema.errors import ConfigError, NotFoundError
from cema.wire.signing import public_key

TOKEN_BYTES = 32


@click.group()
def device() -> None:
    """Enrol, list and revoke devices."""


@device.command()
@config_option
@click.option("--group", required=True, help="Group of the configuration that the device joins.")
@click.option("--name", required=True, help="Name of the device, unique in this cloud.")
@click.option("--url", help="What the device dials; default: server.public_url, else http(s)://host:port.")
@click.option("--out", default="device.toml", show_default=True, help="File to write, - for standard output.")
@json_option
def enrol(config: ServeConfig, group: str, name: str, url: str | None, out: str, as_json: bool) -> None:
    """Give a device its identity: writes the device.toml that it needs."""
    token = secrets.token_urlsafe(TOKEN_BYTES)
    identity = {
        "url": url or _default_url(config),
        "group": group,
        "device_id": name,
        "token": token,
        "public_key": public_key(signing_key(config)),
        "state_dir": f"cema-state/{name}",  # two devices on one machine must not share it
    }
    _check_identity(identity)
    with _private_file(out) as file:
        _enrol(config, group, name, token)
        if file is not None:
            file.write_text(_toml(identity))
    if file is None:
        emit_json(identity) if as_json else click.echo(_toml(identity), nl=False)
    elif as_json:
        emit_json({**{key: value for key, value in identity.items() if key != "token"}, "file": out})
    else:
        click.echo(f"device {name} joined group {group}: copy {out} to the device; it holds a secret")


@device.command("list")
@config_option
@click.option("--group", help="Only the devices of this group.")
@json_option
def list_devices(config: ServeConfig, group: str | None, as_json: bool) -> None:
    """Show the enrolled devices and when they last reported."""
    with opened(config) as store:
        found = [device_as_dict(row) for row in store.devices(group)]
    if as_json:
        emit_json({"devices": found})
        return
    for row in found:
        state = f"revoked {row['revoked']}" if row["revoked"] else f"last seen {row['last_seen'] or 'never'}"
        click.echo(f"{row['device_id']}  group {row['group']}  {row['samples_seen']} images  {state}")


@device.command()
@config_option
@click.argument("name")
@json_option
def revoke(config: ServeConfig, name: str, as_json: bool) -> None:
    """Make a device's token worthless, at once and for ever."""
    with opened(config) as store:
        row = device_as_dict(store.revoke(name, now_ms()))
    if as_json:
        emit_json(row)
    else:
        click.echo(f"device {name} is revoked since {row['revoked']}")


def _enrol(config: ServeConfig, group: str, name: str, token: str) -> None:
    if group not in config.groups:
        raise NotFoundError(f"there is no group {group!r} in the configuration", hint="add it under [groups]")
    store, blobs = open_store(config)
    try:
        try:
            store.group(group)
        except NotFoundError:  # the service has not been started yet
            register_group(config, group, store, blobs, now_ms())
        store.enrol(name, group, hashlib.sha256(token.encode()).hexdigest(), now_ms())
    finally:
        store.close()


def _default_url(config: ServeConfig) -> str:
    server = config.server
    if server.public_url:
        return server.public_url
    if server.port == 0:
        raise ConfigError(
            "expected an address for the device, but server.port is 0 (any)", hint="pass --url, or set public_url"
        )
    return f"{'https' if server.tls_certificate else 'http'}://{server.host}:{server.port}"


def _check_identity(identity: dict[str, str]) -> None:
    try:
        msgspec.convert(identity, DeviceConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"these values make no device.toml: {error}") from error


@contextmanager
def _private_file(out: str) -> Iterator[Path | None]:
    """A new file that only its owner can read; removed again if the block fails. None for standard output."""
    if out == "-":
        yield None
        return
    path = Path(out)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except OSError as error:
        raise ConfigError(
            f"cannot create {path}: {error.strerror}", hint="choose another --out; an existing file is never replaced"
        ) from error
    try:
        yield path
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        raise


def _toml(identity: dict[str, str]) -> str:
    # JSON's strings are TOML's basic strings as long as nothing outside ASCII is escaped.
    return "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in identity.items())
