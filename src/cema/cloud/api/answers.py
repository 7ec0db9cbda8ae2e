"""How the web process answers: typed JSON, immutable content with an ETag, and one shape for every error."""

from __future__ import annotations

import logging
import math
from http import HTTPStatus

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from cema.errors import CemaError, MessageError, NotFoundError
from cema.wire.messages import ErrorBody

log = logging.getLogger(__name__)
SHOWN_CHARS = 200
"""Of a request's first line, in a message."""
IMMUTABLE = "public, max-age=31536000, s-maxage=0, immutable"
"""A version never changes: the client may keep it for a year (RFC 8246). So may caches between cloud and fleet, but
they have to ask the cloud each time (s-maxage, RFC 9111): it looks at the token and answers without the bytes."""


def json_answer(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def not_modified(request: Request, content_id: str) -> bool:
    """Whether the client already holds the content (If-None-Match)."""
    return f'"{content_id}"' in request.headers.get("if-none-match", "")


def install_error_handlers(app: FastAPI) -> None:
    """From now on every error of ``app`` is ``{code, message, hint}``."""
    app.add_exception_handler(CemaError, _cema_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(Exception, _unexpected_error)


def _answer(request: Request, status: int, body: ErrorBody, headers: dict[str, str] | None = None) -> Response:
    request.app.state.context.metrics.errors.labels(body.code).inc()
    answer = json_answer(body, status)
    answer.headers.update(headers or {})
    return answer


async def _cema_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, CemaError)
    if error.http_status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("%s %s: %s", request.method, request.url.path, error)
    headers = {"WWW-Authenticate": "Bearer"} if error.http_status == HTTPStatus.UNAUTHORIZED else {}
    if error.http_status in (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.REQUEST_TIMEOUT):
        headers["Connection"] = "close"  # the rest of the body will not be read
    if error.http_status == HTTPStatus.UNSUPPORTED_MEDIA_TYPE:
        headers["Accept-Encoding"] = str(error.values["taken"])  # RFC 7694
    pause_s = error.values.get("retry_after_s")
    if isinstance(pause_s, int | float):
        headers["Retry-After"] = str(max(1, math.ceil(pause_s)))
    return _answer(
        request, error.http_status, ErrorBody(code=error.code, message=error.message, hint=error.hint), headers
    )


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = NotFoundError.code if error.status_code == HTTPStatus.NOT_FOUND else MessageError.code
    message = f"{request.method} {request.url.path}"[:SHOWN_CHARS] + f": {error.detail}"
    hint = "/docs lists what this service answers"
    body = ErrorBody(code=code, message=message, hint=hint)
    return _answer(request, error.status_code, body, dict(error.headers or {}))


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
    body = ErrorBody(code=MessageError.code, message=faults, hint="/docs lists parameters and their ranges")
    return _answer(request, HTTPStatus.UNPROCESSABLE_ENTITY, body)


async def _unexpected_error(request: Request, error: Exception) -> Response:
    # The server logs the traceback; the client learns nothing about the inside.
    body = ErrorBody(code=CemaError.code, message="the cloud failed to answer", hint="try again; its log has details")
    return _answer(request, HTTPStatus.INTERNAL_SERVER_ERROR, body)
