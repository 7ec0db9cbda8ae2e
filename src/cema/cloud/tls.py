"""What the web process listens with: https, or plain http where nobody else can listen in."""

from __future__ import annotations

import ssl
from typing import Any

from cema.config import ServerConfig, is_loopback
from cema.errors import ConfigError, PlainHttpError


def check_plain_http(host: str, server: ServerConfig) -> None:
    """Raises PlainHttpError if ``host`` is more than this machine and nothing encrypts what crosses the network."""
    if server.tls_certificate or server.behind_tls_proxy or is_loopback(host):
        return
    raise PlainHttpError(
        f"expected a TLS certificate to listen on {host}: tokens and pictures would cross the network unencrypted",
        hint="'cema tls init' makes one for server.tls_certificate and server.tls_key; "
        "behind a proxy that speaks TLS, set server.behind_tls_proxy = true",
    )


def tls_options(server: ServerConfig, *, for_devices: bool) -> dict[str, Any]:
    """uvicorn's options for the certificate of ``cema.toml``; mutual TLS is for devices alone. Raises ConfigError."""
    if not server.tls_certificate and not server.tls_key:
        return {}
    if not server.tls_certificate or not server.tls_key:
        raise ConfigError("expected both server.tls_certificate and server.tls_key, got one of them")
    client_ca = server.tls_client_ca if for_devices else None
    _check_files(server.tls_certificate, server.tls_key, client_ca)
    options = {"ssl_certfile": server.tls_certificate, "ssl_keyfile": server.tls_key}
    return options | ({"ssl_ca_certs": client_ca, "ssl_cert_reqs": ssl.CERT_REQUIRED} if client_ca else {})


def _check_files(certificate: str, key: str, client_ca: str | None) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, password=lambda: "")  # without it, OpenSSL would ask the terminal
    except OSError as error:
        raise ConfigError(
            f"expected a certificate with its unencrypted key in {certificate} and {key}: {error}"
        ) from error
    try:
        if client_ca:
            context.load_verify_locations(client_ca)
    except OSError as error:
        raise ConfigError(f"expected a certificate authority in {client_ca}: {error}") from error
