"""The cloud as a device sees it: five requests over plain HTTPS (docs/protocol.md), one attempt each.

Every failure becomes one of our errors; whoever calls decides about the next attempt (uplink.py). Answers are read
with a size limit, redirects are not followed (they would carry the token elsewhere), and ``close`` ends a request
that is under way, so that a long poll does not hold up shutting down.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeVar
from urllib.parse import SplitResult, quote, urlencode, urlsplit

import urllib3
from urllib3.exceptions import HTTPError, InvalidHeader
from urllib3.response import BaseHTTPResponse
from urllib3.util import parse_url

from cema.config import UplinkConfig, is_loopback
from cema.edge.connections import Connections
from cema.edge.counters import EdgeCounters
from cema.edge.identity import FixedIdentity, Identity
from cema.errors import (
    AuthError,
    BaseMismatchError,
    CemaError,
    ConfigError,
    ConflictError,
    EncodingError,
    EnrolmentError,
    ForbiddenError,
    MessageError,
    NotFoundError,
    OverloadedError,
    PlainHttpError,
    SizeLimitError,
    TransportError,
    shown,
)
from cema.wire.body import DEFLATE, UploadBody, pack_batch
from cema.wire.bundle import MAX_BUNDLE_BYTES
from cema.wire.messages import (
    BASE_HEADER,
    MSGPACK_TYPE,
    SIGNATURE_HEADER,
    STATEMENT_HEADER,
    ErrorBody,
    GroupStatus,
    KeyProposal,
    KeyReceipt,
    Message,
    SampleBatch,
    UploadReceipt,
    decode_json,
    encode_msgpack,
)
from cema.wire.update import MAX_UPDATE_BYTES

MAX_ANSWER_BYTES = 1024 * 1024
"""Of a JSON answer; 256 rejections with their messages take a tenth of it."""
MAX_RETRY_AFTER_S = 3600.0
"""A Retry-After beyond this is taken as this: a typing error in a proxy must not silence a fleet for a year."""
_CHUNK_BYTES = 64 * 1024
_VERSION_DIGITS = 10
_USER_AGENT = "cema-edge"
_ERRORS: Mapping[int, type[CemaError]] = {
    401: AuthError, 403: ForbiddenError, 404: NotFoundError, 409: ConflictError, 413: SizeLimitError,
    415: EncodingError,
}  # fmt: skip
_HINTS: Mapping[type[CemaError], str] = {
    AuthError: "the device's token is unknown or revoked: run 'cema device enrol' again",
    ForbiddenError: "the token belongs to a device of another group",
    NotFoundError: "check url and group in device.toml",
}
A = TypeVar("A", bound=Message)


class Fetched(NamedTuple):
    """data: an update, or what differs from version ``base`` (None: the whole). signature: the update's, base64."""

    data: bytes
    signature: str
    base: int | None


class CloudClient:
    """Requests of one device to one group. Safe to share between threads.

    Parameters
    ----------
    url: http(s)://host[:port][/prefix] of the cloud; http only on this machine, unless the configuration allows it.
    token: the device's, or its identity, which comes by a key. counters: told the bytes of all bodies.

    Raises ConfigError for an address or a certificate that cannot be used, PlainHttpError. All requests raise
    TransportError (no or an unusable answer), AuthError, ForbiddenError, EnrolmentError, NotFoundError, OverloadedError
    (``values["retry_after_s"]``), ConflictError; MessageError and SizeLimitError only when the cloud refuses what was
    sent.
    """

    def __init__(
        self, url: str, group: str, token: str | Identity, *, config: UplinkConfig, counters: EdgeCounters | None = None
    ) -> None:
        parts = _address(url)
        self._base = f"{url.rstrip('/')}/v1/groups/{quote(group, safe='')}"
        if parts.scheme == "http" and not (config.allow_plain_http or is_loopback(parts.hostname or "")):
            raise PlainHttpError(
                f"expected https, got {url!r}: the token and the pictures would cross the network unencrypted",
                hint="give the cloud a certificate ('cema tls init'), or set uplink.allow_plain_http = true "
                "where something else encrypts the link",
            )
        self._identity = FixedIdentity(token) if isinstance(token, str) else token
        self._config = config
        self._counters = counters or EdgeCounters()
        self._connections = Connections(url, config)
        self._cloud_inflates = False
        self._sends_plain = False

    def status(self) -> GroupStatus:
        """What the group runs: ``GET /v1/groups/{group}``."""
        _, body, _ = self._request("GET", "", limit_bytes=MAX_ANSWER_BYTES)
        return _answer(body, GroupStatus)

    def upload(self, batch: SampleBatch) -> UploadReceipt:
        """Hand over samples: ``POST .../samples``. Raises BaseMismatchError as well."""
        return self.upload_body(self.pack(batch))

    def pack(self, batch: SampleBatch) -> UploadBody:
        """What ``upload`` would send: deflated once the cloud has said that it takes that."""
        return pack_batch(batch, deflate=self._cloud_inflates and not self._sends_plain)

    def send_plain(self) -> None:
        """From now on nothing is deflated: the cloud, or something on the way to it, has refused that."""
        self._sends_plain = True

    def upload_body(self, body: UploadBody) -> UploadReceipt:
        """As ``upload``, for a batch that is packed already (its size was needed before). Raises EncodingError, too."""
        self._counters.moved(up=len(body.data))
        _, answer, headers = self._request("POST", "/samples", body=body, limit_bytes=MAX_ANSWER_BYTES)
        receipt = _answer(answer, UploadReceipt)
        taken = headers.get("Accept-Encoding", "").lower()
        self._cloud_inflates = DEFLATE in [coding.partition(";")[0].strip() for coding in taken.split(",")]
        return receipt

    def bundle(self) -> tuple[bytes, str, str]:
        """The group's bundle, its signature and the statement about it (empty if there is none), not verified:
        ``GET .../bundle``."""
        _, body, headers = self._request("GET", "/bundle", limit_bytes=MAX_BUNDLE_BYTES)
        return body, headers.get(SIGNATURE_HEADER, ""), headers.get(STATEMENT_HEADER, "")

    def poll(self, after: int, fingerprint: str, wait_s: float, have: int | None = None) -> Fetched | None:
        """An update newer than ``after``, not verified; None if none came within ``wait_s``.

        have: the version whose bytes are at hand, 0 = source: the cloud may answer with the difference to it.
        Raises BaseMismatchError when the group has another bundle than ``fingerprint``.
        """
        query = urlencode(
            {"after": after, "wait": f"{wait_s:g}", "base": fingerprint} | ({} if have is None else {"from": have})
        )
        status, body, headers = self._request(
            "GET", f"/updates/latest?{query}", limit_bytes=MAX_UPDATE_BYTES, wait_s=wait_s
        )
        if status != 200:
            return None
        base = headers.get(BASE_HEADER)
        if base is not None and not (base.isascii() and base.isdigit() and len(base) <= _VERSION_DIGITS):
            raise TransportError(f"expected a version as {BASE_HEADER}, got {base[:_VERSION_DIGITS]!r}")
        return Fetched(body, headers.get(SIGNATURE_HEADER, ""), None if base is None else int(base))

    def rotate_key(self) -> None:
        """Take a new key: ``POST .../key``. The old one is valid until the new one is used."""
        self._identity.rotate(self._propose)

    def close(self) -> None:
        """End running requests (they raise TransportError) and close all connections."""
        self._connections.shut_down()

    def _propose(self, token: str, proposal: KeyProposal) -> None:
        plain = UploadBody(encode_msgpack(proposal), None)
        _, body, _ = self._send(token, "POST", "/key", body=plain, limit_bytes=MAX_ANSWER_BYTES)
        if _answer(body, KeyReceipt).key_sha256 != proposal.key_sha256:
            raise TransportError("expected the hash of the new key back, got another one")

    def _request(
        self, method: str, path: str, *, limit_bytes: int, body: UploadBody | None = None, wait_s: float = 0.0
    ) -> tuple[int, bytes, Mapping[str, str]]:
        token = self._identity.token(self._propose)
        try:
            return self._send(token, method, path, limit_bytes=limit_bytes, body=body, wait_s=wait_s)
        except AuthError:
            renewed = self._identity.token(self._propose)
            if renewed == token:
                raise
        # the other thread has just taken a new key into use
        return self._send(renewed, method, path, limit_bytes=limit_bytes, body=body, wait_s=wait_s)

    def _send(
        self, token: str, method: str, path: str, *, limit_bytes: int, body: UploadBody | None = None,
        wait_s: float = 0.0,
    ) -> tuple[int, bytes, Mapping[str, str]]:  # fmt: skip
        timeout = urllib3.Timeout(connect=self._config.connect_timeout_s, read=wait_s + self._config.read_timeout_s)
        headers = {"Authorization": f"Bearer {token}", "User-Agent": _USER_AGENT}
        if body is not None:
            headers["Content-Type"] = MSGPACK_TYPE
            if body.encoding is not None:
                headers["Content-Encoding"] = body.encoding
        try:
            response = self._connections.pools.request(
                method, self._base + path, body=body.data if body else None, headers=headers, timeout=timeout,
                retries=False, redirect=False, preload_content=False,
            )  # fmt: skip
            try:
                content = _read(response, limit_bytes)
            finally:
                response.release_conn()
        except (HTTPError, OSError, ValueError) as error:
            raise TransportError(
                f"expected an answer from {self._base}: {error}", hint="check the address, the network and ca_file"
            ) from error
        self._counters.moved(down=len(content))
        if response.status not in (200, 204):
            raise _refusal(response, content)
        return response.status, content, response.headers


def _address(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        parse_url(url)  # what urllib3 can dial is less than what urlsplit can read; a bad port is an error of both
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and url.isprintable()
    except (ValueError, HTTPError):
        good = False
    if not good:
        raise ConfigError(
            f"expected the cloud's address as https://host[:port], got {shown(url)}",
            hint="set url in device.toml to what 'cema serve' prints",
        )
    return parts


def _read(response: BaseHTTPResponse, limit_bytes: int) -> bytes:
    # undecoded: compression was not asked for, and what is not decompressed cannot explode
    parts: list[bytes] = []
    size = 0
    for part in response.stream(_CHUNK_BYTES, decode_content=False):
        size += len(part)
        if size > limit_bytes:
            response.close()
            raise TransportError(f"expected an answer of at most {limit_bytes} bytes, got more")
        parts.append(part)
    return b"".join(parts)


def _answer(body: bytes, kind: type[A]) -> A:
    try:
        return decode_json(body, kind, limit_bytes=MAX_ANSWER_BYTES)
    except MessageError as error:
        raise TransportError(f"expected the cloud's {kind.__name__}: {error.message}", hint=error.hint) from error


def _refusal(response: BaseHTTPResponse, content: bytes) -> CemaError:
    status = response.status
    body = _error_body(content)
    shown = body or ErrorBody(code="", message=f"the cloud answered with status {status}")
    if status in (429, 503):
        pause_s = _retry_after_s(response.headers.get("Retry-After"))
        return OverloadedError(shown.message, hint=shown.hint, retry_after_s=pause_s)
    for said in (BaseMismatchError, EnrolmentError):
        if shown.code == said.code:
            return said(shown.message, hint=shown.hint)
    # a 400 that does not speak our language comes from something in between and says nothing about the content
    kind = MessageError if status == 400 and body else _ERRORS.get(status, TransportError)
    return kind(shown.message, hint=shown.hint or _HINTS.get(kind, ""), status=status)


def _error_body(content: bytes) -> ErrorBody | None:
    try:
        return decode_json(content, ErrorBody, limit_bytes=MAX_ANSWER_BYTES)
    except (MessageError, SizeLimitError):
        return None


def _retry_after_s(header: str | None) -> float:
    if header is None:
        return 0.0
    try:
        return min(float(urllib3.Retry().parse_retry_after(header)), MAX_RETRY_AFTER_S)
    except (InvalidHeader, ValueError, OverflowError):
        return 0.0
