"""What a request and its answer said, read without a line of the product's code."""

from __future__ import annotations

import json
import re
import zlib
from typing import Any

import msgspec

MAX_PLAIN_BYTES = 64 * 1024 * 1024
Message = tuple[bytes, bytes]
_START = re.compile(rb"^([A-Z]+) (/v1/groups/([^/? ]+)[^? ]*)(\S*) ")


def described(request: Message, answer: Message) -> dict[str, Any]:
    """method, path, group, status; of an upload: device, ids (hex), refused; of an update: version, signature."""
    start = _START.match(request[0])
    facts: dict[str, Any] = {"status": int(answer[0].split(b" ", 2)[1])}
    if start is None:
        return {**facts, "path": request[0][:80].decode("latin-1")}
    facts |= {"method": start[1].decode(), "path": start[2].decode(), "group": start[3].decode()}
    if facts["path"].endswith("/samples") and facts["method"] == "POST":
        facts |= _upload(request) | (_receipt(answer[1]) if facts["status"] == 200 else {})
    if "/updates/" in facts["path"] and facts["status"] == 200:
        facts |= {
            "version": int(_header(answer, "cema-update-version")),
            "signature": _header(answer, "cema-signature"),
        }
    return facts


def _upload(request: Message) -> dict[str, Any]:
    body = request[1]
    try:
        if _header(request, "content-encoding") == "deflate":
            body = zlib.decompressobj().decompress(body, MAX_PLAIN_BYTES)
        batch = msgspec.msgpack.decode(body)
        return {"device": batch["device_id"], "ids": [sample["sample_id"].hex() for sample in batch["samples"]]}
    except (zlib.error, msgspec.MsgspecError, KeyError, TypeError):
        return {"device": None, "ids": []}


def _receipt(body: bytes) -> dict[str, Any]:
    receipt = json.loads(body)
    return {
        "refused": [each["sample_id"] for each in receipt["rejected"]],
        "accepted": receipt["accepted"],
        "duplicates": receipt["duplicates"],
    }


def _header(message: Message, name: str) -> str:
    found = re.search(rb"\r\n" + name.encode() + rb": *([^\r]*)", message[0], re.IGNORECASE)
    return found[1].decode("latin-1").strip() if found else ""
