"""Connections that can be ended from another thread, and the way to them: private CA, proxy of the environment.

urllib3 closes idle connections only; a device that shuts down cannot wait for the end of a long poll.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from cema.config import UplinkConfig


class Connections:
    """A connection pool whose running requests can be interrupted: ``shut_down``."""

    def __init__(self, url: str, config: UplinkConfig) -> None:
        self._live: set[HTTPConnection] = set()
        self._mutex = threading.Lock()
        self._closed = False
        self.pools = _pool_manager(url, config)
        self.pools.pool_classes_by_scheme = {
            "http": _pool_class(urllib3.HTTPConnectionPool, _tracked(HTTPConnection, self)),
            "https": _pool_class(urllib3.HTTPSConnectionPool, _tracked(HTTPSConnection, self)),
        }

    def opened(self, connection: HTTPConnection) -> None:
        with self._mutex:
            self._live.add(connection)
            closed = self._closed
        if closed:
            _interrupt(connection)

    def dropped(self, connection: HTTPConnection) -> None:
        with self._mutex:
            self._live.discard(connection)

    def shut_down(self) -> None:
        """End running requests, now and of connections that are just being made; close idle ones."""
        with self._mutex:
            self._closed = True
            live = list(self._live)
        for connection in live:
            _interrupt(connection)
        self.pools.clear()


def _interrupt(connection: HTTPConnection) -> None:
    # the plain socket's method: that of a TLS socket would pull its state away under a reading thread
    if isinstance(connection.sock, socket.socket):
        with suppress(OSError):
            socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)


def _tracked(base: type[Any], owner: Connections) -> type[Any]:
    class Tracked(base):  # type: ignore[misc]  # the base is chosen at run time: plain or TLS
        def connect(self) -> None:
            super().connect()
            owner.opened(self)

        def close(self) -> None:
            owner.dropped(self)
            super().close()

    return Tracked


def _pool_class(base: type[Any], connection: type[Any]) -> type[Any]:
    return type(base.__name__, (base,), {"ConnectionCls": connection})


def _pool_manager(url: str, config: UplinkConfig) -> urllib3.PoolManager:
    parts = urlsplit(url)
    options: dict[str, Any] = {"maxsize": 2, "retries": False}
    if config.ca_file:
        options["ca_certs"] = config.ca_file
    proxy = config.proxy
    if proxy is None and not proxy_bypass(parts.netloc):
        proxy = getproxies().get(parts.scheme)
    return urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)
