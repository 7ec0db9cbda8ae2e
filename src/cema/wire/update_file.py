"""An update on foot: one file for devices that the cloud cannot reach (``cema update export`` and ``import``).

Bytes = one msgpack map, ``UpdateFile``. Update and bundle in it are byte for byte what the network would have brought,
with the same signatures; whoever reads the file verifies them before he parses either.
"""

from __future__ import annotations

import os

from cema.errors import ConfigError, UpdateError
from cema.wire.bundle import MAX_BUNDLE_BYTES
from cema.wire.messages import PROTOCOL_VERSION, Message, decode_msgpack, encode_msgpack
from cema.wire.update import MAX_UPDATE_BYTES

MAX_FILE_BYTES = MAX_UPDATE_BYTES + MAX_BUNDLE_BYTES + 4096
"""Both contents at their largest, and what lies around them."""


class UpdateFile(Message, frozen=True, kw_only=True):
    """An update that is carried to a device as a file, and perhaps the bundle that it is for, each with its signature.

    The file needs none of its own: what it says besides is not believed.
    """

    update: bytes
    signature: str
    bundle: bytes = b""
    bundle_signature: str = ""
    protocol: int = PROTOCOL_VERSION


def encode_update_file(content: UpdateFile) -> bytes:
    return encode_msgpack(content)


def read_update_file(path: str | os.PathLike[str]) -> UpdateFile:
    """Nothing in it is trusted yet. Raises ConfigError (cannot be read), SizeLimitError, MessageError, UpdateError."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"expected a readable update file at {path}: {error.strerror}") from error
    content = decode_msgpack(data, UpdateFile, limit_bytes=MAX_FILE_BYTES)
    if content.protocol != PROTOCOL_VERSION:
        raise UpdateError(
            f"expected a file of protocol {PROTOCOL_VERSION}, got {content.protocol}",
            hint="upgrade cema on this device",
        )
    return content
