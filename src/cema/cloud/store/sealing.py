"""Pictures on the disk: encrypted with a key that lies beside the signing key, or on another volume (docs/adr/0016).

XChaCha20-Poly1305 of libsodium (PyNaCl). Each picture is bound to its group and sample id: a row that was put in the
place of another does not open. The file holds one key per line, base64; the last one seals, all of them open.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import logging
from pathlib import Path

from nacl.exceptions import CryptoError
from nacl.secret import Aead
from nacl.utils import random

from cema.cloud.keys import replace_private, write_once
from cema.errors import StorageError

log = logging.getLogger(__name__)

_NAME_DIGITS = 16
"""Of a key's sha256: enough to tell the keys of one file apart."""


class SampleKeys:
    """The keys of a file that need not exist (None: there is none). seals: whether new pictures are encrypted at all.

    Raises StorageError for a file that cannot be read or holds something else.
    """

    def __init__(self, path: Path | None, *, seals: bool) -> None:
        self.path, self.seals = path, seals
        self._boxes: dict[str, Aead] = {}
        try:
            lines = path.read_text().split() if path and path.exists() else []
        except (OSError, UnicodeDecodeError) as error:
            raise StorageError(f"expected a file of sample keys at {path}: {error}") from error
        for number, line in enumerate(lines, 1):
            self._take(line, f"line {number} of {path}")

    @property
    def names(self) -> list[str]:
        """Of all keys, the one that seals last."""
        return list(self._boxes)

    def add(self) -> str:
        """The name of a new key, on the disk before it is used. Raises StorageError."""
        assert self.path is not None
        key = base64.b64encode(random(Aead.KEY_SIZE)).decode()
        try:
            if self._boxes:
                replace_private(self.path, f"{self.path.read_text().rstrip()}\n{key}\n")
            else:
                write_once(self.path, key + "\n")  # of several processes that start at once, one makes it
                key = self.path.read_text().strip()
        except OSError as error:
            raise StorageError(f"cannot write a sample key to {self.path}: {error.strerror}") from error
        self._take(key, str(self.path))
        return self.names[-1]

    def check(self, used: set[str]) -> None:
        """Raises StorageError if one of these keys is not there: their pictures could not be read."""
        if missing := sorted(used - self._boxes.keys()):
            raise self._missing(missing[0])

    def seal(self, image: bytes, group: str, sample_id: bytes) -> tuple[str | None, bytes]:
        """The key's name and what is stored; None and the image itself if nothing is encrypted. Raises StorageError."""
        if not self.seals:
            return None, image
        if not self._boxes:
            raise self._missing("any")
        name = self.names[-1]
        return name, bytes(self._boxes[name].encrypt(image, _bound_to(group, sample_id)))

    def open(self, name: str | None, stored: bytes, group: str, sample_id: bytes) -> bytes:
        """The image; empty if it is damaged, which is then no picture and left out like others that are none.

        Raises StorageError if the key is not there: nothing is wrong with the picture.
        """
        if name is None:
            return stored
        if name not in self._boxes:
            raise self._missing(name)
        try:
            return self._boxes[name].decrypt(stored, _bound_to(group, sample_id))
        except (CryptoError, ValueError):
            log.warning("group %s: sample %s is damaged: it is not what was encrypted", group, sample_id.hex())
            return b""

    def _take(self, line: str, where: str) -> None:
        try:
            key = base64.b64decode(line, validate=True)
            self._boxes[hashlib.sha256(key).hexdigest()[:_NAME_DIGITS]] = Aead(key)
        except (binascii.Error, ValueError) as error:
            raise StorageError(
                f"expected a key of {Aead.KEY_SIZE} bytes in base64 in {where}", hint="restore the file of sample keys"
            ) from error

    def _missing(self, name: str) -> StorageError:
        return StorageError(
            f"expected sample key {name} in {self.path}, which has {', '.join(self.names) or 'none'}",
            hint="bring the file back (is its volume mounted?), or delete the pictures with 'cema sample delete'",
        )


NO_KEYS = SampleKeys(None, seals=False)


def _bound_to(group: str, sample_id: bytes) -> bytes:
    return group.encode() + b"\0" + sample_id
