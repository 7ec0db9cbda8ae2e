"""The device's credential: what it shows the cloud, and how it comes by a key of its own.

    device.toml           state/key.json              cloud
    one-time token  -->   next (made here)   -- its sha256 -->   knows next beside the token
                          key                -- first use  -->   knows the key alone

The next key is on disk before its hash is sent, and the cloud takes the same hash as often as it comes: whatever is
lost on the way, power or an answer, the device does the same again. A rotation is the same with the present key in the
place of the token. A token in ``device.toml`` that is not the one of before (the device was enrolled anew) begins anew.
The file lies there twice, since nobody can give a device its key again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from cema.config import DeviceConfig
from cema.config_files import configured_token, device_token
from cema.edge.checked import decode_checked, encode_checked
from cema.edge.slots import StateFolder
from cema.errors import AuthError, StorageError
from cema.wire.messages import KeyProposal
from cema.wire.tokens import ENROLMENT_PREFIX, KEY_PREFIX, new_token, token_digest

KEY_FILE, KEY_COPY = "key.json", "key-copy.json"
Propose = Callable[[str, KeyProposal], None]
"""Hand in a proposal, showing the token: returns when the cloud has it."""


class KeyFile(msgspec.Struct, frozen=True):
    """``key.json`` and its copy. token_sha256: of the configured token. next: proposed, or about to be."""

    token_sha256: str
    key: str | None = None
    next: str | None = None


class Identity:
    """Token or key of one device. Thread-safe.

    Parameters
    ----------
    token: as configured, None if there is none any more. folder: where the key is kept; without one, the token is all
    there is. Raises ConfigError if there is neither token nor key.
    """

    def __init__(self, config: DeviceConfig, folder: StateFolder) -> None:
        self._device_id, self._folder = config.device_id, folder
        self._token = configured_token(config)
        stored = _stored(folder.path, self._token)
        if stored is None:
            self._token = device_token(config)
        self._file = stored or KeyFile(token_digest(self._token or ""))
        self._mutex = threading.Lock()
        if stored is not None and not all(_read(folder.path / name) == stored for name in (KEY_FILE, KEY_COPY)):
            with suppress(StorageError):  # a full disk: there is one, and the next start tries again
                self._write(stored)

    def token(self, propose: Propose) -> str:
        """What to show the cloud. A one-time token is exchanged first: raises what ``propose`` raises."""
        if self._one_time():
            with self._mutex:
                if self._one_time():
                    self._take_new_key(propose)
        return self._current()

    def rotate(self, propose: Propose) -> None:
        """Take a new key in the place of the present one. Raises what ``propose`` raises, StorageError."""
        with self._mutex:
            self._take_new_key(propose)

    def _one_time(self) -> bool:
        return self._current().startswith(ENROLMENT_PREFIX)

    def _current(self) -> str:
        current = self._file.key or self._token
        assert current is not None
        return current

    def _take_new_key(self, propose: Propose) -> None:
        before = self._file.next
        key = before or new_token(KEY_PREFIX)
        self._write(msgspec.structs.replace(self._file, next=key))
        proposal = KeyProposal(device_id=self._device_id, key_sha256=token_digest(key))
        try:
            propose(self._current(), proposal)
        except AuthError as refusal:
            if before is None:
                raise
            try:  # the cloud may have it since last time, when only the answer was lost; the token has expired since
                propose(key, proposal)
            except AuthError:
                raise refusal from None
        self._write(msgspec.structs.replace(self._file, key=key, next=None))

    def _write(self, file: KeyFile) -> None:
        for name in (KEY_FILE, KEY_COPY):
            self._folder.write_private(name, encode_checked(file))
        self._file = file


class FixedIdentity:
    """A token that stays what it is: for programs that ask the cloud beside the agent."""

    def __init__(self, token: str) -> None:
        self._token = token

    def token(self, propose: Propose) -> str:
        return self._token

    def rotate(self, propose: Propose) -> None:
        """Nothing: the agent does."""


def current_token(config: DeviceConfig) -> str:
    """The key of the state folder if the device has one by now, else the configured token. Raises ConfigError."""
    stored = _stored(Path(config.state_dir), configured_token(config))
    return stored.key if stored and stored.key else device_token(config)


def _stored(folder: Path, token: str | None) -> KeyFile | None:
    """The key file or, if that is damaged, its copy; if it belongs to this token, and without one if there is a key."""
    file = _read(folder / KEY_FILE) or _read(folder / KEY_COPY)
    if file is None:
        return None
    belongs = file.key is not None if token is None else file.token_sha256 == token_digest(token)
    return file if belongs else None


def _read(path: Path) -> KeyFile | None:
    try:
        return decode_checked(path.read_bytes(), KeyFile)
    except OSError:
        return None
