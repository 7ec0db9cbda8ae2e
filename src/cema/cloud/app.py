"""The web process: takes samples, hands out updates and bundles, and never computes.

``create_app`` puts the routes of ``api`` around a store; ``WebServer`` runs them and knows how to stop: no new
connections, waiting polls answered, running requests finished. Devices and operators have a listener each. Torch is
never imported here.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Literal

import uvicorn
from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, FastAPI

from cema import __version__
from cema.cloud.api import admin, bundles, enrolment, groups, health, samples, updates
from cema.cloud.api.admission import Admission
from cema.cloud.api.allowance import Allowance
from cema.cloud.api.answers import install_error_handlers
from cema.cloud.api.context import Context
from cema.cloud.api.differences import Differences
from cema.cloud.api.metrics import Metrics
from cema.cloud.api.newest import NewestUpdates
from cema.cloud.api.schema import install_schema
from cema.cloud.api.watch import VersionWatch
from cema.cloud.connection import MAX_HEAD_BYTES, PatientProtocol
from cema.cloud.descriptors import max_connections
from cema.cloud.keys import signing_key
from cema.cloud.store.base import BlobStore, Store
from cema.cloud.store.rows import now_ms
from cema.cloud.tls import check_plain_http, tls_options
from cema.config import ServeConfig, ServerConfig
from cema.errors import ConfigError

KEEP_ALIVE_S = 75
"""Idle connections stay open longer than a device is ever silent (heartbeat 10 s, poll 55 s, proxies 60 s)."""
BACKLOG = 2048
"""Connections that wait to be accepted: a whole fleet after a power cut."""
STORE_THREADS = 8
"""Threads for store work. SQLite has one writer, and more threads only take the interpreter from the event loop."""
UPLOAD_THREADS = 2
"""Threads for uploads, beside them: one prepares the next while the other waits for the disk."""
SWITCH_INTERVAL_S = 0.001
"""How long a thread may keep the interpreter from the event loop, through which every answer goes several times; with
Python's own 5 ms, all threads being busy, that adds up."""

_DEVICES = (groups.router, samples.router, updates.router, bundles.router, enrolment.router)
_ADMIN = (admin.router, health.metrics_router)


def create_app(config: ServeConfig, store: Store, blobs: BlobStore, *, clock_ms: Callable[[], int] = now_ms) -> FastAPI:
    """What devices ask, and with ``admin.listener = "shared"`` what operators ask, too.

    The store is open. Raises StorageError when there is no signing key to be had.
    """
    watch = VersionWatch(store.latest_versions, config.server.poll_interval_s)
    metrics = Metrics(store, lambda: watch.waiting)
    admission = Admission(config.server, on_refusal=lambda reason: metrics.refused_uploads.labels(reason).inc())
    metrics.uploads_in_flight.set_function(lambda: admission.in_flight)
    metrics.held_bytes.set_function(lambda: admission.held_bytes)
    context = Context(
        config, store, blobs, clock_ms, signing_key(config), watch, NewestUpdates(store, blobs),
        Differences(store, blobs), metrics,
        Allowance(config.server.device_requests_per_s, "server.device_requests_per_s"),
        Allowance(config.server.device_upload_bytes_per_s, "server.device_upload_bytes_per_s"),
        admission, CapacityLimiter(UPLOAD_THREADS),
    )  # fmt: skip
    shared = _ADMIN if config.admin.listener == "shared" else ()
    app = FastAPI(title="cema", version=__version__, summary="Samples in, updates out.", lifespan=_lifespan,
                  redirect_slashes=False)  # fmt: skip
    return _with_routes(app, context, (*_DEVICES, *shared, health.router))


def create_admin_app(app: FastAPI) -> FastAPI:
    """What operators and readers ask, beside ``app`` and on the same store."""
    admin_app = FastAPI(title="cema administration", version=__version__, summary="Look at the cloud, and steer it.",
                        redirect_slashes=False)  # fmt: skip
    return _with_routes(admin_app, app.state.context, (*_ADMIN, health.router))


def _with_routes(app: FastAPI, context: Context, routers: Sequence[APIRouter]) -> FastAPI:
    app.state.context = context
    for router in routers:
        app.include_router(router)
    install_error_handlers(app)
    install_schema(app)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    to_thread.current_default_thread_limiter().total_tokens = STORE_THREADS
    watch: VersionWatch = app.state.context.watch
    task = asyncio.create_task(watch.run())
    yield
    watch.close()
    await task


class AdminServer(uvicorn.Server):
    """The second listener of a web process: started and stopped by the first, which also takes the signals."""

    def __init__(self, app: FastAPI, server: ServerConfig, listener: socket.socket) -> None:
        super().__init__(_uvicorn_config(app, server, lifespan="off", for_devices=False))
        self._listener = listener
        self._ready = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def start(self) -> asyncio.Task[None]:
        """Returns when it accepts; the task ends some time after ``should_exit`` has been set."""
        task = asyncio.create_task(self.serve(sockets=[self._listener]))
        ready = asyncio.create_task(self._ready.wait())
        await asyncio.wait((task, ready), return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        return task

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready.set()


class WebServer(uvicorn.Server):
    """uvicorn on an open socket. on_ready: called when it accepts. on_drain: called when it begins to stop.

    Raises ConfigError for a certificate that cannot be used.
    """

    def __init__(
        self,
        app: FastAPI,
        server: ServerConfig,
        *,
        admin: AdminServer | None = None,
        on_ready: Callable[[], None] = lambda: None,
        on_drain: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(_uvicorn_config(app, server, lifespan="on", for_devices=True))
        self._watch: VersionWatch = app.state.context.watch
        self._admin = admin
        self._admin_task: asyncio.Task[None] | None = None
        self._on_ready = on_ready
        self._on_drain = on_drain

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._admin is not None:
            self._admin_task = await self._admin.start()
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_drain()
        self._watch.close()
        if self._admin is not None:
            self._admin.should_exit = True
        await super().shutdown(sockets)
        if self._admin_task is not None:
            await self._admin_task


def _uvicorn_config(
    app: FastAPI, server: ServerConfig, *, lifespan: Literal["on", "off"], for_devices: bool
) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        **tls_options(server, for_devices=for_devices),
        lifespan=lifespan,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(server.drain_s)),
        backlog=BACKLOG,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        http=PatientProtocol.within(server.receive_timeout_s, max_connections()),
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
    )


def listen(server: ServerConfig) -> socket.socket:
    """An open socket for devices. Raises ConfigError if it cannot be had, PlainHttpError if it must not be."""
    check_plain_http(server.host, server)
    return _listen(server.host, server.port, "server")


def listen_admin(config: ServeConfig, devices: socket.socket) -> socket.socket:
    """As ``listen``, for operators and readers. devices: the other socket; the port behind its own is the default."""
    check_plain_http(config.admin.host, config.server)
    port = config.admin.port
    if port is None:
        port = devices.getsockname()[1] + 1 if config.server.port else 0
    return _listen(config.admin.host, port, "admin")


def _listen(host: str, port: int, table: str) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
        # Inherited by connections. asyncio does not set it on a socket made here, and then the body of every answer on
        # a kept connection waits for the client to acknowledge the headers: 40 ms.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except (OSError, OverflowError, UnicodeError) as error:  # the port after 65535; no host name
        raise ConfigError(
            f"cannot listen on {host} port {port}: {getattr(error, 'strerror', None) or error}",
            hint=f"choose another {table}.host or {table}.port; port 0 takes a free one",
        ) from error


def url_of(server: ServerConfig, listener: socket.socket, host: str | None = None) -> str:
    """The address under which this process answers. host: that of the listener, if not the server's."""
    scheme = "https" if server.tls_certificate else "http"
    host = host or server.host
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
