"""Everything that can go wrong, by name: one class per stable code.

Libraries raise these; only the command line turns them into exit codes, and only the HTTP layer turns
them into the wire's error shape ``{code, message, hint}``. The message says what was expected and what
came, the hint says what to do, the values travel as attributes so that callers never parse text.

CemaError
├── ConfigError            a file or an option that cannot be used
│   └── PlainHttpError     secrets would cross a network unencrypted
├── WireError              bytes that are not the protocol
│   ├── MessageError, EncodingError, BodyTimeoutError, ImageError, SizeLimitError
│   ├── UpdateError        ├── SignatureError, BaseMismatchError, UpdateContentError
│   └── BundleError
├── ExportError            a torch model that cannot become a bundle
├── AuthError              ├── ForbiddenError
│                          └── EnrolmentError
├── NotFoundError          a group, a version or a bundle that is not there
├── ConflictError          the request contradicts what is stored
├── OverloadedError        try later
├── StorageError           disk or database
│   └── DamagedError       stored bytes that are no longer what was stored
├── TransportError         the cloud could not be reached
├── DependencyError        an extra that is not installed
├── DemoError              a process of the demo failed
└── BenchError             a part of a benchmark could not be run
"""

from __future__ import annotations

from typing import ClassVar

SHOWN_CHARS = 80
"""Of a text from outside, in a message: whoever sent a megabyte is told its beginning."""


def shown(text: object) -> str:
    """The beginning of what came, quoted."""
    return repr(str(text)[:SHOWN_CHARS])


class CemaError(Exception):
    """Base of all errors raised by cema.

    Parameters
    ----------
    message: what was expected and what came.
    hint: what to do about it; empty when the message says it all.
    values: the facts behind the message, kept in ``self.values``.
    """

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "", **values: object) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.values = values

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(CemaError):
    """A file, an option or a data set that cannot be used."""

    code, http_status, exit_code = "config_invalid", 500, 2


class PlainHttpError(ConfigError):
    """Plain http beyond this machine: tokens and pictures would cross the network for everyone to read."""

    code = "plain_http"


class WireError(CemaError):
    """Bytes that are not the protocol."""

    code, http_status, exit_code = "wire_invalid", 400, 3


class MessageError(WireError):
    """A body or an answer that is not the message expected, or values in it that cannot be."""

    code = "message_invalid"


class EncodingError(WireError):
    """A body in a Content-Encoding that the cloud does not take."""

    code, http_status = "encoding_unsupported", 415


class BodyTimeoutError(WireError):
    """A request that did not come in within the time it is given; nothing of it was used."""

    code, http_status = "body_timeout", 408


class ImageError(WireError):
    """An array or bytes that are not a picture."""

    code = "image_invalid"


class SizeLimitError(WireError):
    """More bytes, pixels or samples than allowed; nothing was allocated."""

    code, http_status = "too_large", 413


class UpdateError(WireError):
    """Bytes that are not an update of this protocol."""

    code = "update_invalid"


class SignatureError(UpdateError):
    """Content that is not signed by the key this device trusts; it was not parsed."""

    code = "signature_invalid"


class BaseMismatchError(UpdateError):
    """Samples or an update of another bundle than the one that runs."""

    code, http_status = "base_mismatch", 409


class UpdateContentError(UpdateError):
    """An update whose names, shapes or values do not fit the bundle's norm tensors."""

    code = "update_content_invalid"


class BundleError(WireError):
    """A file that is not a complete bundle."""

    code = "bundle_invalid"


class ExportError(CemaError):
    """A torch model that cannot become a bundle."""

    code, http_status, exit_code = "export_failed", 500, 4


class AuthError(CemaError):
    """No token, or one that is unknown or revoked."""

    code, http_status, exit_code = "unauthenticated", 401, 5


class ForbiddenError(AuthError):
    """A valid token, but of another group, device or role."""

    code, http_status = "forbidden", 403


class EnrolmentError(AuthError):
    """A one-time token where a key is needed, or one that another device has used."""

    code, http_status = "enrolment_invalid", 403


class NotFoundError(CemaError):
    """A group, a version or a bundle that is not there."""

    code, http_status, exit_code = "not_found", 404, 6


class ConflictError(CemaError):
    """A request that contradicts what is stored."""

    code, http_status, exit_code = "conflict", 409, 6


class OverloadedError(CemaError):
    """The cloud asks to try again later."""

    code, http_status, exit_code = "overloaded", 429, 7


class StorageError(CemaError):
    """Disk or database failed."""

    code, http_status, exit_code = "storage_failed", 503, 8


class DamagedError(StorageError):
    """Stored bytes are no longer what was stored: trying again does not help."""

    code = "content_damaged"


class TransportError(CemaError):
    """The cloud could not be reached, or what answered was not the cloud."""

    code, http_status, exit_code = "cloud_unreachable", 502, 9


class DependencyError(CemaError):
    """An extra that is not installed."""

    code, http_status, exit_code = "dependency_missing", 500, 10


class DemoError(CemaError):
    """A process of the demo ended or did not start."""

    code, http_status, exit_code = "demo_failed", 500, 11


class BenchError(CemaError):
    """A part of a benchmark could not be run; what was finished is kept."""

    code, http_status, exit_code = "bench_failed", 500, 12


def all_errors(root: type[CemaError] = CemaError) -> list[type[CemaError]]:
    """Every error class, parents before children (the docs table and its test are made from it)."""
    found = [root]
    for child in root.__subclasses__():
        found.extend(all_errors(child))
    return found
