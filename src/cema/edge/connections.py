"""Connections that can be ended from another thread, and the way to them: certificates, proxy of the environment.

urllib3 closes idle connections only; a device that shuts down cannot wait for the end of a long poll.
"""

from __future__ import annotations

import socket
import ssl
import threading
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError

from cema.config import UplinkConfig, is_loopback
from cema.errors import ConfigError, shown


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


def _tls_options(config: UplinkConfig) -> dict[str, Any]:
    """The device's authority replaces the public ones: nobody else's certificate is accepted then."""
    given = {
        "ca_certs": config.ca_file, "ca_cert_data": config.ca_pem,
        "cert_file": config.client_certificate, "key_file": config.client_key,
    }  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if config.ca_file or config.ca_pem:
            context.load_verify_locations(config.ca_file, cadata=config.ca_pem)
        if config.client_certificate:
            context.load_cert_chain(config.client_certificate, config.client_key, password=lambda: "")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"expected usable certificates in [uplink], got {error}",
            hint="ca_file, ca_pem, client_certificate and client_key are PEM; keys without a password",
        ) from error
    return {name: value for name, value in given.items() if value}


def _pool_manager(url: str, config: UplinkConfig) -> urllib3.PoolManager:
    parts = urlsplit(url)
    options: dict[str, Any] = {"maxsize": 2, "retries": False} | _tls_options(config)
    proxy = config.proxy
    if proxy is None and not proxy_bypass(parts.netloc) and not is_loopback(parts.hostname or ""):
        proxy = getproxies().get(parts.scheme)
    try:
        return urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)
    except (HTTPError, AssertionError) as error:  # ProxySchemeUnknown is both
        raise ConfigError(
            f"expected a proxy as http://host:port, got {shown(proxy)}",
            hint="set uplink.proxy in device.toml, or HTTPS_PROXY in the environment",
        ) from error
