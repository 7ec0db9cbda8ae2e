"""From files to configuration: ``device.toml``, ``cema.toml`` and token files, read strictly and within limits.

Paths in a file are relative to it and come out absolute.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import TypeVar

import msgspec

from cema.config import DeviceConfig, Section, ServeConfig
from cema.errors import ConfigError

MAX_FILE_BYTES = 1024 * 1024
"""Of a configuration or token file; certificates written out in it (``uplink.ca_pem``) take a few kilobytes."""
_MAX_DOTS = 100  # tomllib's memory grows with the square of a key's parts
_TOKEN = re.compile(r"[!-~]+")
"""What can stand behind ``Bearer`` in a header."""

S = TypeVar("S", bound=Section)


def load_device(path: str | os.PathLike[str]) -> DeviceConfig:
    """Read ``device.toml``; ``state_dir`` and files are made absolute. Raises ConfigError."""
    config, base = _load(path, DeviceConfig), Path(path)
    uplink = _anchored(config.uplink, base, ("ca_file", "client_certificate", "client_key"))
    return _anchored(msgspec.structs.replace(config, uplink=uplink), base, ("state_dir", "token_file"))


def load_serve(path: str | os.PathLike[str]) -> ServeConfig:
    """Read ``cema.toml``; paths are made absolute. Raises ConfigError."""
    config, base = _load(path, ServeConfig), Path(path)
    files = ("data_dir", "sample_key_file", "tls_certificate", "tls_key", "tls_ca", "tls_client_ca")
    server = _anchored(config.server, base, files)
    models = ("bundle", "edge_weights", "foundation_weights")
    groups = {name: _anchored(group, base, models) for name, group in config.groups.items()}
    return msgspec.structs.replace(config, server=server, groups=groups)


def configured_token(config: DeviceConfig) -> str | None:
    """The bearer token: environment (CEMA_TOKEN), else token_file, else the file itself. Raises ConfigError."""
    if os.environ.get("CEMA_TOKEN"):
        return _checked_token(os.environ["CEMA_TOKEN"].strip(), "CEMA_TOKEN")
    if config.token_file:
        return _checked_token(_read(config.token_file, "token").strip(), config.token_file)
    return config.token and _checked_token(config.token, "'token' of device.toml")


def _checked_token(token: str, source: str) -> str:
    if _TOKEN.fullmatch(token):
        return token
    # not shown: it may be all but the right one
    raise ConfigError(
        f"expected a token of printable ASCII characters without blanks in {source}, "
        + (f"got {len(token)} characters with others" if token else "it is empty"),
        hint="copy the token again, as 'cema device enrol' wrote it",
    )


def device_token(config: DeviceConfig) -> str:
    """As ``configured_token``; to have none is a ConfigError, too."""
    if token := configured_token(config):
        return token
    hint = "run 'cema device enrol' in the cloud, or set CEMA_TOKEN or token_file"
    raise ConfigError("this device has no token", hint=hint)


def _load(path: str | os.PathLike[str], kind: type[S]) -> S:
    return parse(_read(path, "configuration"), kind, source=str(path))


def _read(path: str | os.PathLike[str], content: str) -> str:
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        text = data.decode("utf-8")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a path that cannot be
        message = f"expected a readable {content} file at {str(path)!r}: {error}"
        raise ConfigError(message, hint="a text file in UTF-8") from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"expected a {content} file of at most {MAX_FILE_BYTES} bytes at {path}, got more")
    return text


def parse(text: str, kind: type[S], *, source: str = "<text>") -> S:
    """TOML text to a configuration table; strict. Raises ConfigError that names the key."""
    if max((line.count(".") for line in text.splitlines() if not line.startswith("#")), default=0) > _MAX_DOTS:
        raise ConfigError(f"expected TOML with at most {_MAX_DOTS} dots in a line in {source}, got more")
    try:
        return msgspec.convert(tomllib.loads(text), type=kind)
    except msgspec.ValidationError as error:
        hint = "docs/configuration.md lists every key with unit and range"
        raise ConfigError(f"{source}: {error}", hint=hint) from error
    except (ValueError, RecursionError) as error:  # more than TOMLDecodeError: numbers of thousands of digits
        raise ConfigError(f"{source} is not TOML: {error}", hint="https://toml.io says how it is written") from error


def _anchored(section: S, base: Path, fields: tuple[str, ...]) -> S:
    folder = base.resolve().parent
    changes = {f: str(folder / getattr(section, f)) for f in fields if getattr(section, f)}
    return msgspec.structs.replace(section, **changes)
