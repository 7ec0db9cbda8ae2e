"""OpenAPI for bodies that FastAPI does not see: the wire's msgspec structs, described once.

The routes answer ready-made bytes; these helpers say in ``/docs`` what is in them.
"""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI

from cema.wire.messages import ErrorBody, GroupStatus, KeyProposal, KeyReceipt, Message, SampleBatch, UploadReceipt

_REF = "#/components/schemas/{name}"
_MESSAGES: tuple[type[Message], ...] = (ErrorBody, GroupStatus, KeyProposal, KeyReceipt, SampleBatch, UploadReceipt)
_MEANING = {
    204: "Nothing new within the time",
    304: "The client already holds this content",
    400: "The body is not the protocol",
    401: "No token, or an unknown one",
    403: "The token is of another group or role",
    404: "There is no such thing",
    408: "The body did not come in time",
    409: "The request contradicts what is stored",
    413: "More bytes or samples than allowed",
    415: "A Content-Encoding that is not taken here; Accept-Encoding says which are",
    422: "A parameter is missing or out of range",
    429: "Too much at once: wait at least Retry-After",
    503: "The store does not answer, or what it holds is damaged",
}
_BODILESS = (204, 304)
_SCHEMAS: dict[str, dict[str, Any]] = {"application/json": {"type": "object"}, "text/plain": {"type": "string"}}
"""Of answers that are not messages; other media types are bytes."""
_FRAMEWORKS_OWN = ("HTTPValidationError", "ValidationError")
"""What FastAPI says it answers where it finds parameters; ours are ``ErrorBody``, and only where one can be wrong."""


def body_of(media_type: str, kind: type[Message]) -> dict[str, Any]:
    """``openapi_extra`` of a route that reads its body itself."""
    return {"requestBody": {"required": True, "content": {media_type: {"schema": _ref(kind)}}}}


def answers(ok: type[Message] | str | tuple[str, ...], *others: int) -> dict[int | str, dict[str, Any]]:
    """``responses`` of a route. ok: message of a 200, or the media types that its bytes may have. others: further
    statuses."""
    if isinstance(ok, str | tuple):
        kinds = (ok,) if isinstance(ok, str) else ok
        content = {kind: {"schema": _SCHEMAS.get(kind, {"type": "string", "format": "binary"})} for kind in kinds}
    else:
        content = {"application/json": {"schema": _ref(ok)}}
    described: dict[int | str, dict[str, Any]] = {200: {"description": "Success", "content": content}}
    for status in others:
        described[status] = {"description": _MEANING[status]}
        if status not in _BODILESS:
            described[status]["content"] = {"application/json": {"schema": _ref(ErrorBody)}}
    return described


def install_schema(app: FastAPI) -> None:
    """Add the messages to the application's OpenAPI document."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        _, schemas = msgspec.json.schema_components(_MESSAGES, ref_template=_REF)
        described = document.setdefault("components", {}).setdefault("schemas", {})
        described.update(schemas)
        for name in _FRAMEWORKS_OWN:
            described.pop(name, None)
        for operation in (each for path in document["paths"].values() for each in path.values()):
            if _FRAMEWORKS_OWN[0] in str(operation["responses"].get("422")):
                del operation["responses"]["422"]
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # the way FastAPI's documentation names


def _ref(kind: type[Message]) -> dict[str, str]:
    return {"$ref": _REF.format(name=kind.__name__)}
