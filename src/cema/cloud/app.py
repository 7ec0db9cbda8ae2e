"""The web process: takes samples, hands out updates and bundles, and never computes.

``create_app`` puts the routes of ``api`` around a store; ``WebServer`` runs them and knows how to stop: no new
connections, waiting polls answered, running requests finished. Torch is never imported here.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import uvicorn
from anyio import to_thread
from fastapi import FastAPI

from cema import __version__
from cema.cloud.api import bundles, groups, health, samples, updates
from cema.cloud.api.answers import install_error_handlers
from cema.cloud.api.context import Context
from cema.cloud.api.differences import Differences
from cema.cloud.api.metrics import Metrics
from cema.cloud.api.newest import NewestUpdates
from cema.cloud.api.schema import install_schema
from cema.cloud.api.watch import VersionWatch
from cema.cloud.keys import signing_key
from cema.cloud.store.base import BlobStore, Store
from cema.cloud.store.rows import now_ms
from cema.config import ServeConfig, ServerConfig
from cema.errors import ConfigError

KEEP_ALIVE_S = 75
"""Idle connections stay open longer than a device is ever silent (heartbeat 10 s, poll 55 s, proxies 60 s)."""
BACKLOG = 2048
"""Connections that wait to be accepted: a whole fleet after a power cut."""
STORE_THREADS = 8
"""Threads for store work. SQLite has one writer, and more threads only take the interpreter from the event loop."""


def create_app(config: ServeConfig, store: Store, blobs: BlobStore, *, clock_ms: Callable[[], int] = now_ms) -> FastAPI:
    """The application around an open store. Raises StorageError when there is no signing key to be had."""
    watch = VersionWatch(store.latest_versions, config.server.poll_interval_s)
    metrics = Metrics(store, lambda: watch.waiting)
    key = signing_key(config)
    app = FastAPI(title="cema", version=__version__, summary="Samples in, updates out.", lifespan=_lifespan)
    app.state.context = Context(
        config, store, blobs, clock_ms, key, watch, NewestUpdates(store, blobs), Differences(store, blobs), metrics
    )
    for part in (groups, samples, updates, bundles, health):
        app.include_router(part.router)
    install_error_handlers(app)
    install_schema(app)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    to_thread.current_default_thread_limiter().total_tokens = STORE_THREADS
    watch: VersionWatch = app.state.context.watch
    task = asyncio.create_task(watch.run())
    yield
    watch.close()
    await task


class WebServer(uvicorn.Server):
    """uvicorn on an open socket. on_ready: called when it accepts. on_drain: called when it begins to stop."""

    def __init__(
        self,
        app: FastAPI,
        server: ServerConfig,
        *,
        on_ready: Callable[[], None] = lambda: None,
        on_drain: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                ssl_certfile=server.tls_certificate,
                ssl_keyfile=server.tls_key,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=max(1, round(server.drain_s)),
                backlog=BACKLOG,
                log_config=None,
                access_log=False,
                server_header=False,
                ws="none",
            )
        )
        self._watch: VersionWatch = app.state.context.watch
        self._on_ready = on_ready
        self._on_drain = on_drain

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_drain()
        self._watch.close()
        await super().shutdown(sockets)


def listen(server: ServerConfig) -> socket.socket:
    """An open socket on the configured address. Raises ConfigError if it cannot be had."""
    try:
        family = socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((server.host, server.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {server.host} port {server.port}: {error.strerror}",
            hint="choose another server.host or server.port; port 0 takes a free one",
        ) from error


def url_of(server: ServerConfig, listener: socket.socket) -> str:
    """The address under which this process answers."""
    scheme = "https" if server.tls_certificate else "http"
    host = f"[{server.host}]" if ":" in server.host else server.host
    return f"{scheme}://{host}:{listener.getsockname()[1]}"
