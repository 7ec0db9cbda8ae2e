"""``cema doctor``: looks at this machine before anything is started; every finding has a number and a fix.

Checks the base install always, a device with ``--device``, the cloud with ``-c``. Runs where torch does not exist.
"""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import click

from cema.cli.output import emit_json, json_option
from cema.config_files import load_device, load_serve
from cema.errors import CemaError, ConfigError, DependencyError, EnrolmentError, StorageError
from cema.wire.tokens import ENROLMENT_PREFIX

MIN_CERTIFICATE_DAYS = 30
"""A server certificate that ends sooner is a finding: when it has, the whole fleet is cut off."""
MIN_FREE_BYTES = 512 * 1024 * 1024
"""Below this a device's outbox (256 MiB by default) or a cloud's database soon meets a full disk."""
MIN_DEVICES = 1000
"""A cloud that cannot hold the connections of so many is a finding."""
CLOUD_PACKAGES = (
    "torch",
    "onnx",
    "onnxscript",
    "fastapi",
    "uvicorn",
    "sqlalchemy",
    "alembic",
    "prometheus_client",
    "cryptography",
)
_MIN_PYTHON = (3, 11)


class Finding(NamedTuple):
    """One check. number: stable, D01... ok: whether it passed. text: what was found. fix: what to do, if not ok."""

    number: str
    ok: bool
    text: str
    fix: str


Check = tuple[str, Callable[[], str]]


@click.command()
@click.option("--device", type=click.Path(dir_okay=False, path_type=Path), help="A device.toml to check.")
@click.option("-c", "--config", "serve", type=click.Path(dir_okay=False, path_type=Path), help="A cema.toml to check.")
@json_option
def doctor(device: Path | None, serve: Path | None, as_json: bool) -> None:
    """Check this machine; numbered findings with a fix. Exit code 1 if something is wrong."""
    findings = [_run(number, check) for number, check in _checks(device, serve)]
    if as_json:
        emit_json([finding._asdict() for finding in findings])
    else:
        for finding in findings:
            click.echo(f"{finding.number} {'ok  ' if finding.ok else 'FAIL'} {finding.text}")
            if not finding.ok and finding.fix:
                click.echo(f"         fix: {finding.fix}")
    sys.exit(0 if all(finding.ok for finding in findings) else 1)


def _checks(device: Path | None, serve: Path | None) -> Iterator[Check]:
    yield "D01", _python
    yield "D02", _onnxruntime
    yield "D03", _disk
    if device is not None:
        yield "D10", lambda: _device(device)
        yield "D11", lambda: _verification(device)
        yield "D12", lambda: _state_folder(device)
        yield "D13", lambda: _cloud_answers(device)
    if serve is not None:
        yield "D20", _cloud_packages
        yield "D21", lambda: _serve(serve)
        yield "D22", lambda: _bundles(serve)
        yield "D23", lambda: _certificate(serve)
        yield "D24", _open_files
        yield "D25", lambda: _database(serve)


def _run(number: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(number, True, check(), "")
    except CemaError as error:
        return Finding(number, False, error.message, error.hint)


def _python() -> str:
    if sys.version_info < _MIN_PYTHON:
        raise ConfigError(f"expected Python 3.11 or newer, got {platform.python_version()}", hint="upgrade Python")
    return f"Python {platform.python_version()} on {platform.machine()}"


def _onnxruntime() -> str:
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise DependencyError(f"onnxruntime cannot be imported: {error}", hint="pip install cema") from error
    return f"onnxruntime {ort.__version__}: {', '.join(ort.get_available_providers())}"


def _disk() -> str:
    free = shutil.disk_usage(Path.cwd()).free
    if free < MIN_FREE_BYTES:
        raise StorageError(
            f"expected {MIN_FREE_BYTES >> 20} MiB free here, got {free >> 20} MiB", hint="free some space"
        )
    return f"{free >> 20} MiB free"


def _device(path: Path) -> str:
    from cema.edge.identity import current_token

    config = load_device(path)
    waits = ", its one-time token is not exchanged yet" if current_token(config).startswith(ENROLMENT_PREFIX) else ""
    return f"{path}: device {config.device_id} of group {config.group}{waits}"


def _verification(path: Path) -> str:
    from cema.edge.verification import trusted_key

    return "updates are verified (Ed25519)" if trusted_key(load_device(path)) else "updates are NOT verified"


def _state_folder(path: Path) -> str:
    folder = Path(load_device(path).state_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return f"state folder {folder} is writable"
    except OSError as error:
        raise StorageError(
            f"the state folder {folder} cannot be written: {error.strerror}", hint="change state_dir or its owner"
        ) from error


def _cloud_answers(path: Path) -> str:
    from cema.edge.client import CloudClient
    from cema.edge.identity import current_token

    config = load_device(path)
    token = current_token(config)
    client = CloudClient(config.url, config.group, token, config=config.uplink)
    try:
        status = client.status()
    except EnrolmentError:
        if not token.startswith(ENROLMENT_PREFIX):
            raise
        return f"{config.url} answers: the agent will exchange the one-time token when it starts"
    finally:
        client.close()
    return f"{config.url} answers: version {status.latest_version}, bundle {status.fingerprint[:12]}"


def _cloud_packages() -> str:
    missing = [name for name in CLOUD_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise DependencyError(f"the cloud needs {', '.join(missing)}", hint="pip install 'cema[cloud]'")
    return "the cloud's packages are installed"


def _serve(path: Path) -> str:
    config = load_serve(path)
    if not config.groups:
        raise ConfigError(f"{path} has no groups", hint="add a [groups.NAME] table, see docs/configuration.md")
    return f"{path}: groups {', '.join(config.groups)}"


def _bundles(path: Path) -> str:
    from cema.wire.bundle import load_bundle

    found = [
        f"{name} {load_bundle(group.bundle).manifest.fingerprint[:12]}"
        for name, group in load_serve(path).groups.items()
    ]
    return f"bundles: {', '.join(found)}"


def _certificate(path: Path) -> str:
    from cema.cloud.tls import check_plain_http, tls_options

    config = load_serve(path)
    server = config.server
    check_plain_http(server.host, server)
    if config.admin.listener == "separate":
        check_plain_http(config.admin.host, server)
    tls_options(server, for_devices=True)
    if not server.tls_certificate:
        return "plain http: this machine alone, or a proxy in front speaks TLS"
    try:
        from cema.cloud.certificates import certificate_of
    except ImportError as error:
        raise DependencyError(f"cannot read certificates: {error}", hint="pip install 'cema[cloud]'") from error
    until = certificate_of(Path(server.tls_certificate).read_bytes()).not_valid_after_utc
    days = (until - datetime.now(UTC)).days
    if days < MIN_CERTIFICATE_DAYS:
        raise ConfigError(
            f"the certificate {server.tls_certificate} ends {until:%Y-%m-%d}", hint="'cema tls renew', then restart"
        )
    return f"TLS: the certificate is valid until {until:%Y-%m-%d}"


def _open_files() -> str:
    from cema.cloud.descriptors import devices_within, hard_limit

    limit = hard_limit()
    if devices_within(limit) < MIN_DEVICES:
        raise ConfigError(
            f"expected open files (hard limit) for {MIN_DEVICES} devices, got {limit}: {devices_within(limit)} devices",
            hint="LimitNOFILE= of the systemd unit, --ulimit nofile= of the container, or ulimit -Hn",
        )
    return f"open files: hard limit {limit}, enough for {devices_within(limit)} devices"


def _database(path: Path) -> str:
    try:
        from cema.cloud.store import database_file
        from cema.cloud.store.intact import check_intact
    except ImportError as error:
        raise DependencyError(f"cannot open the database: {error}", hint="pip install 'cema[cloud]'") from error
    file = database_file(load_serve(path))
    if not file.exists():
        return f"no database yet at {file}"
    check_intact(file)
    return f"database {file} is intact"
