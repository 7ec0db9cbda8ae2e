"""``cema serve``: the web process, and the adaptation workers as its children.

Start: open the store, register the groups, listen. Stop (SIGTERM, SIGINT): accept nothing more, answer waiting polls,
let running requests and steps finish within ``server.drain_s``, leave no process behind.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from types import FrameType

import click

from cema.cli.output import emit_json, json_option
from cema.cloud.app import AdminServer, WebServer, create_admin_app, create_app, listen, listen_admin, url_of
from cema.cloud.descriptors import raise_limit
from cema.cloud.parent import exit_with_parent
from cema.cloud.registry import register_groups
from cema.cloud.store import open_store
from cema.cloud.store.rows import now_ms
from cema.cloud.supervisor import Supervisor, worker_command
from cema.config import ServeConfig
from cema.config_files import load_serve
from cema.telemetry import configure_logging


@click.command()
@click.option("-c", "--config", "path", required=True, type=click.Path(path_type=Path), help="The cloud's cema.toml.")
@json_option
def serve(path: Path, as_json: bool) -> None:
    """Run the cloud: the web service and its adaptation workers."""
    configure_logging()
    exit_with_parent()
    raise_limit()
    _run(load_serve(path), str(path.resolve()), as_json)


def _run(config: ServeConfig, path: str, as_json: bool) -> None:
    store, blobs = open_store(config, for_pictures=True, checked=True)
    supervisor = Supervisor([worker_command(path, index) for index in range(config.worker.processes)])
    deadline = [time.monotonic() + config.server.drain_s]

    def announce() -> None:
        supervisor.start()
        admin_url = url_of(config.server, admin_listener, config.admin.host) if admin_listener else url
        _announce(url, admin_url, list(config.groups), as_json)

    def drain() -> None:
        deadline[0] = time.monotonic() + config.server.drain_s
        supervisor.terminate()

    try:
        register_groups(config, store, blobs, now_ms())
        listener = listen(config.server)
        url, app = url_of(config.server, listener), create_app(config, store, blobs)
        admin_listener = listen_admin(config, listener) if config.admin.listener == "separate" else None
        admin = AdminServer(create_admin_app(app), config.server, admin_listener) if admin_listener else None
        server = WebServer(app, config.server, admin=admin, on_ready=announce, on_drain=drain)
        _stop_on_signals(server)
        server.run(sockets=[listener])
    finally:
        supervisor.stop(max(0.0, deadline[0] - time.monotonic()))
        store.close()


def _stop_on_signals(server: WebServer) -> None:
    """For a signal that comes before uvicorn listens to signals, and for the one that it raises again when it is done:
    the default action would end this process before its workers."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def _announce(url: str, admin_url: str, groups: list[str], as_json: bool) -> None:
    if as_json:
        emit_json({"url": url, "admin_url": admin_url, "groups": groups})
    else:
        click.echo(f"cema serving {len(groups)} groups on {url}, administration on {admin_url}")
    sys.stdout.flush()
