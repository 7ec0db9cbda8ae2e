"""``cema device``: who may talk to the cloud. Works on the store through ``-c cema.toml``, on the cloud's machine.

A token appears once, in the device's own file (mode 0600); the store keeps its sha256. It never stands on a command
line, where other users of the machine could read it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import msgspec

from cema.cli.files import private_file
from cema.cli.output import emit_json, json_option
from cema.cli.store import add_switch, config_option, opened
from cema.cloud.keys import signing_key
from cema.cloud.registry import register_group
from cema.cloud.store import open_store
from cema.cloud.store.rows import device_as_dict, now_ms
from cema.config import DeviceConfig, ServeConfig, is_loopback
from cema.errors import ConfigError, NotFoundError, PlainHttpError
from cema.wire.signing import public_key
from cema.wire.tokens import ENROLMENT_PREFIX, new_token, token_digest

MS_PER_HOUR = 3_600_000
_ANY_HOST = ("", "0.0.0.0", "::")  # noqa: S104 - not listened on, but recognised


@click.group()
def device() -> None:
    """Enrol, list, rotate, pause and revoke devices."""


@device.command()
@config_option
@click.option("--group", required=True, help="Group of the configuration that the device joins.")
@click.option("--name", required=True, help="Name of the device, unique in this cloud.")
@click.option("--url", help="What the device dials; default: server.public_url, else http(s)://host:port.")
@click.option("--out", default="device.toml", show_default=True, help="File to write, - for standard output.")
@click.option("--one-time", is_flag=True, help="Give a token that the device exchanges for a key of its own.")
@click.option("--valid-hours", type=click.FloatRange(0, 24 * 365, min_open=True), default=24, show_default=True,
              help="How long the one-time token can be exchanged.")  # fmt: skip
@click.option("--allow-plain-http", is_flag=True, help="Let the device use http:// beyond this machine: see docs.")
@json_option
def enrol(
    config: ServeConfig, group: str, name: str, url: str | None, out: str, one_time: bool, valid_hours: float,
    allow_plain_http: bool, as_json: bool,
) -> None:  # fmt: skip
    """Give a device its identity: writes the device.toml that it needs."""
    if group not in config.groups:
        raise NotFoundError(f"there is no group {group!r} in the configuration", hint="add it under [groups]")
    token = new_token(ENROLMENT_PREFIX if one_time else "")
    identity: dict[str, Any] = {
        "url": url or _default_url(config),
        "group": group,
        "device_id": name,
        "token": token,
        "public_key": public_key(signing_key(config)),
        "state_dir": f"cema-state/{name}",  # two devices on one machine must not share it
        "uplink": _uplink(config, allow_plain_http),
    }
    _check_identity(identity)
    expires_ms = now_ms() + round(valid_hours * MS_PER_HOUR) if one_time else None
    with private_file(out) as file:
        _enrol(config, group, name, token, expires_ms)
        if file is not None:
            file.write_text(_toml(identity))
    if file is None:
        emit_json(identity) if as_json else click.echo(_toml(identity), nl=False)
    elif as_json:
        emit_json({**{key: value for key, value in identity.items() if key != "token"}, "file": out})
    else:
        secret = f"it is worth something for {valid_hours:g} hours, once" if one_time else "it holds a secret"
        click.echo(f"device {name} joined group {group}: copy {out} to the device; {secret}")


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
        if row["enrolment_until"] and not row["revoked"]:
            state += f"  has to exchange its one-time token until {row['enrolment_until']}"
        elif row["rotate"]:
            state += "  shall take a new key"
        state += "  paused" if row["paused"] else ""
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


@device.command()
@config_option
@click.argument("name")
@json_option
def rotate(config: ServeConfig, name: str, as_json: bool) -> None:
    """Have a device take a new key at its next contact; the old one is valid until the new one is used."""
    with opened(config) as store:
        row = device_as_dict(store.ask_rotation(name))
    if as_json:
        emit_json(row)
    else:
        click.echo(f"device {name} will take a new key at its next contact ('cema device list' shows when it has)")


def _switch(config: ServeConfig, name: str, paused: bool, as_json: bool) -> None:
    with opened(config) as store:
        row = device_as_dict(store.pause_device(name, paused, now_ms()))
    if as_json:
        emit_json(row)
    else:
        click.echo(f"device {name} is paused since {row['paused']}" if paused else f"device {name} is not paused")


add_switch(
    device,
    _switch,
    pause="Switch one device off: it goes back to the source and uploads nothing, from its next poll on.",
    resume="Switch a device on again: it does what its group does.",
)


def _enrol(config: ServeConfig, group: str, name: str, token: str, expires_ms: int | None) -> None:
    store, blobs = open_store(config)
    try:
        try:
            store.group(group)
        except NotFoundError:  # the service has not been started yet
            register_group(config, group, store, blobs, now_ms())
        store.enrol(name, group, token_digest(token), now_ms(), token_expires_ms=expires_ms)
    finally:
        store.close()


def _default_url(config: ServeConfig) -> str:
    server = config.server
    if server.public_url:
        return server.public_url
    if server.port == 0 or server.host in _ANY_HOST:
        raise ConfigError(
            f"expected an address for the device, but the server listens on {server.host} port {server.port} (any)",
            hint="pass --url, or set public_url",
        )
    return f"{'https' if server.tls_certificate else 'http'}://{server.host}:{server.port}"


def _uplink(config: ServeConfig, allow_plain_http: bool) -> dict[str, Any]:
    """What the device has to know about the link. Raises ConfigError for an authority that cannot be read."""
    uplink: dict[str, Any] = {"allow_plain_http": True} if allow_plain_http else {}
    if config.server.tls_ca:
        try:
            uplink["ca_pem"] = Path(config.server.tls_ca).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"expected a certificate (PEM) as server.tls_ca: {error}") from error
    return uplink


def _check_identity(identity: dict[str, Any]) -> None:
    try:
        made = msgspec.convert(identity, DeviceConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"these values make no device.toml: {error}") from error
    address = urlsplit(made.url)
    if address.scheme == "http" and not (made.uplink.allow_plain_http or is_loopback(address.hostname or "")):
        raise PlainHttpError(
            f"expected https for a device on another machine, got {made.url!r}",
            hint="pass --url https://..., or --allow-plain-http where something else encrypts the link",
        )


def _toml(identity: dict[str, Any]) -> str:
    # JSON's strings and booleans are TOML's as long as nothing outside ASCII is escaped.
    tables = {key: value for key, value in identity.items() if isinstance(value, dict)}
    lines = [
        f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in identity.items() if key not in tables
    ]
    return "".join(lines) + "".join(f"\n[{name}]\n{_toml(table)}" for name, table in tables.items() if table)
