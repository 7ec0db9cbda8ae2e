"""``cema tls``: certificates for a cloud of one's own, kept in one folder.

tls/ca.pem      the authority: 'cema device enrol' gives it to the devices (server.tls_ca)
tls/ca.key      signs; best kept away from the cloud's machine
tls/server.pem  server.tls_certificate
tls/server.key  server.tls_key
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import click

from cema.cli.files import private_file
from cema.cli.output import emit_json, json_option
from cema.cloud.certificates import CERTIFICATE_DAYS, Pair, certificate_of, issue, make_authority, names_of
from cema.errors import ConfigError

AUTHORITY_NAME = "cema private authority"
THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
"""In every server's certificate: operators ask from there."""

_folder = click.option("--dir", "folder", default="tls", show_default=True, type=click.Path(path_type=Path),
                       help="Folder of the certificates.")  # fmt: skip
_days = click.option("--days", type=click.IntRange(1, 36_500), default=CERTIFICATE_DAYS, show_default=True,
                     help="How long the certificate is valid.")  # fmt: skip


@click.group()
def tls() -> None:
    """Make certificates for the cloud, and for devices that need one."""


@tls.command()
@_folder
@click.option("--name", "names", multiple=True, required=True, help="Host name or IP address that devices dial; again "
              "for more of them.")  # fmt: skip
@_days
@json_option
def init(folder: Path, names: Sequence[str], days: int, as_json: bool) -> None:
    """Make a private authority and the server's certificate. Never replaces an authority."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder {folder}: {error.strerror}") from error
    authority = make_authority(AUTHORITY_NAME, datetime.now(UTC))
    server = issue(authority, _with_this_machine(names), datetime.now(UTC), days=days)
    with private_file(str(folder / "ca.key")) as file:
        assert file is not None
        file.write_bytes(authority.key)
        _write(folder / "ca.pem", authority.certificate)
    _write(folder / "server.key", server.key, mode=0o600)
    _write(folder / "server.pem", server.certificate)
    settings = {"tls_certificate": "server.pem", "tls_key": "server.key", "tls_ca": "ca.pem"}
    settings = {key: str(folder / name) for key, name in settings.items()}
    if as_json:
        emit_json({"server": settings, "names": names_of(server.certificate)})
        return
    click.echo(f"made in {folder}; put ca.key into a safe place. For cema.toml, under [server]:")
    for key, value in settings.items():
        click.echo(f'{key} = "{value}"')


@tls.command()
@_folder
@click.option("--name", "names", multiple=True, help="Host names and IP addresses; default: those of before.")
@_days
@json_option
def renew(folder: Path, names: Sequence[str], days: int, as_json: bool) -> None:
    """Make the next certificate of the server: same authority, same key. Restart the service to use it."""
    wanted = _with_this_machine(names or names_of(_read(folder / "server.pem")))
    server = issue(_authority(folder), wanted, datetime.now(UTC), days=days, key=_read(folder / "server.key"))
    _write(folder / "server.pem", server.certificate)
    until = certificate_of(server.certificate).not_valid_after_utc.isoformat()
    if as_json:
        emit_json({"file": str(folder / "server.pem"), "names": wanted, "valid_until": until})
    else:
        click.echo(f"{folder / 'server.pem'} is valid until {until}; restart the service")


@tls.command()
@_folder
@click.argument("name")
@_days
@json_option
def client(folder: Path, name: str, days: int, as_json: bool) -> None:
    """Make a device's certificate, for a cloud with server.tls_client_ca (mutual TLS)."""
    made = issue(_authority(folder), [name], datetime.now(UTC), client=True, days=days)
    stem = f"client-{name}"
    if Path(stem).name != stem:
        raise ConfigError(f"expected a name without slashes, got {name!r}")
    with private_file(str(folder / f"{stem}.key")) as file:
        assert file is not None
        file.write_bytes(made.key)
        _write(folder / f"{stem}.pem", made.certificate)
    files = {"client_certificate": str(folder / f"{stem}.pem"), "client_key": str(folder / f"{stem}.key")}
    if as_json:
        emit_json({"uplink": files})
    else:
        click.echo(f"copy {' and '.join(files.values())} to the device; name them under [uplink] in its device.toml")


def _with_this_machine(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys((*names, *THIS_MACHINE)))


def _authority(folder: Path) -> Pair:
    return Pair(_read(folder / "ca.pem"), _read(folder / "ca.key"))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"expected {path}: {error.strerror}", hint="'cema tls init' makes it") from error


def _write(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Complete or not at all: a service may start at any moment."""
    beside = path.with_name(path.name + ".tmp")
    try:
        beside.unlink(missing_ok=True)
        with open(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
