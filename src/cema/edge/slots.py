"""The state folder: what survives a power cut, and in which order it is written.

    state/
      lock              held while an agent uses the folder
      pointer.json      which bundle, and which update lies in which slot: names, versions, sha256. The only truth
      bundle-<sha256>   the bundle, with bundle-<sha256>.sig
      slot-a, slot-b    two updates (safetensors), each with .sig: the last good one and the one before
      key.json          the device's own key, once it has one, and key-copy.json the same again (identity.py); only
                        their owner may read them
      outbox.db         samples that wait for the network (outbox.py)
      status.json       what the agent reports about itself; nobody reads it back

Content is written first, to a name or slot the pointer does not rely on; then the pointer is replaced (write beside,
fsync, rename, fsync folder). Whatever instruction is the last one, the pointer names content that is complete; what
does not have the sha256 that the pointer says is treated as absent. If the pointer itself is damaged, a whole bundle is
found by its name, and the device runs the source until the cloud has said more.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec

from cema.edge.checked import decode_checked, encode_checked
from cema.errors import ConflictError, StorageError

POINTER_FILE, LOCK_FILE, STATUS_FILE, OUTBOX_FILE = "pointer.json", "lock", "status.json", "outbox.db"
_BUNDLE_PREFIX = "bundle-"
Slot = Literal["a", "b"]
Adaptation = Literal["on", "off"]
Owner = Literal["cloud", "edge"]


class SlotEntry(msgspec.Struct, frozen=True):
    """What a file must contain. sha256: of the bytes. fingerprint: of the bundle the update is for."""

    sha256: str
    version: int
    fingerprint: str


class Pointer(msgspec.Struct, frozen=True):
    """``pointer.json``. bundle: sha256 of the bundle's bytes. bundle_place: what the cloud's statement gave it among
    those of this group, 0 without one. adaptation: the cloud's last word (kill switch).
    stats_owner: likewise, cloud | edge: whose norm statistics the group's method uses.

    group: whose device this was last, None in files of before.
    """

    bundle: str | None = None
    active: Slot | None = None
    slots: dict[Slot, SlotEntry] = {}
    adaptation: Adaptation = "on"
    group: str | None = None
    stats_owner: Owner = "cloud"
    bundle_place: int = 0


class Stored(msgspec.Struct, frozen=True):
    """Content that has the sha256 it should have. version: 0 for a bundle."""

    data: bytes
    signature: str
    version: int = 0


class StateFolder:
    """Bundle and updates of one device; one agent at a time.

    Raises StorageError when the disk fails, ConflictError when another agent uses the folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(f"expected a writable state folder at {path}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise ConflictError(
                f"the state folder {path} is in use by another agent", hint="give each agent its own state_dir"
            ) from error
        self._pointer = self._read_pointer()

    @property
    def adaptation(self) -> Adaptation:
        """The cloud's last word on this group: ``off`` is remembered while the device is offline, too."""
        return self._pointer.adaptation

    def set_adaptation(self, adaptation: Adaptation) -> None:
        if adaptation != self._pointer.adaptation:
            self._point(msgspec.structs.replace(self._pointer, adaptation=adaptation))

    @property
    def stats_owner(self) -> Owner:
        """The cloud's last word on whose norm statistics devices of this group use: cloud | edge."""
        return self._pointer.stats_owner

    def set_stats_owner(self, owner: Owner) -> None:
        if owner != self._pointer.stats_owner:
            self._point(msgspec.structs.replace(self._pointer, stats_owner=owner))

    @property
    def group(self) -> str | None:
        """The group that the device last belonged to, None if it is not known."""
        return self._pointer.group

    def set_group(self, group: str) -> None:
        """What the cloud said of another group holds for that one alone."""
        if group != self._pointer.group:
            known = self._pointer.group is not None
            said = {"adaptation": "on", "stats_owner": "cloud", "bundle_place": 0} if known else {}
            self._point(msgspec.structs.replace(self._pointer, group=group, **said))

    def bundle(self) -> Stored | None:
        """The stored bundle, None if there is none or it is damaged."""
        sha256 = self._pointer.bundle
        return self._read(_BUNDLE_PREFIX + sha256, sha256) if sha256 else None

    @property
    def bundle_place(self) -> int:
        """What no later bundle of this group may be below; 0 if the cloud has stated none."""
        return self._pointer.bundle_place

    def put_bundle(self, data: bytes, signature: str, place: int | None = None) -> None:
        """Store a verified bundle; the old one is deleted once the pointer names the new one.

        place: by the cloud's statement; None = as before."""
        sha256 = hashlib.sha256(data).hexdigest()
        self._write_content(_BUNDLE_PREFIX + sha256, data, signature)
        place = self.bundle_place if place is None else place
        self._point(msgspec.structs.replace(self._pointer, bundle=sha256, bundle_place=place))
        for old in self.path.glob(_BUNDLE_PREFIX + "*"):
            if sha256 not in old.name:
                with suppress(OSError):
                    old.unlink()

    def updates(self, fingerprint: str) -> list[Stored]:
        """Complete updates for this bundle, the last good one first."""
        slots = [slot for slot in self._order() if self._pointer.slots[slot].fingerprint == fingerprint]
        return [stored for stored in map(self._read_slot, slots) if stored is not None]

    def latest(self) -> Stored | None:
        """The last good update, for whatever bundle; None if there is none, or none that is complete."""
        found = map(self._read_slot, self._order())
        return next((stored for stored in found if stored is not None), None)

    def put_update(self, data: bytes, signature: str, version: int, fingerprint: str) -> None:
        """Store a verified update in the slot that is not active, then make it the active one.

        In the active one, if that is damaged: then the other holds the last good update, and until this one is complete
        it is all there is."""
        slot: Slot = "b" if self._pointer.active == "a" else "a"
        if self._pointer.active is not None and self._read_slot(self._pointer.active) is None:
            slot = self._pointer.active
        self._write_content(f"slot-{slot}", data, signature)
        entry = SlotEntry(hashlib.sha256(data).hexdigest(), version, fingerprint)
        slots = {**self._pointer.slots, slot: entry}
        self._point(msgspec.structs.replace(self._pointer, active=slot, slots=slots))

    def _order(self) -> list[Slot]:
        """The slots that have something, the last good one first."""
        return sorted(self._pointer.slots, key=lambda slot: slot != self._pointer.active)

    def write_status(self, status: dict[str, object]) -> None:
        """Replace ``status.json``: readers see the old or the new one, never half of one."""
        self._replace(STATUS_FILE, msgspec.json.format(msgspec.json.encode(status)), durable=False)

    def write_private(self, name: str, data: bytes) -> None:
        """Replace a file that only its owner may read."""
        self._replace(name, data, mode=0o600)

    def close(self) -> None:
        """Release the folder for other agents."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _read_pointer(self) -> Pointer:
        with suppress(OSError):
            pointer = decode_checked((self.path / POINTER_FILE).read_bytes(), Pointer)
            if pointer is not None:
                return pointer
        return Pointer(bundle=self._whole_bundle())

    def _whole_bundle(self) -> str | None:
        """The sha256 of the newest bundle that is what its name says."""
        files = sorted(self.path.glob(_BUNDLE_PREFIX + "?" * 64), key=lambda file: file.stat().st_mtime, reverse=True)
        names = [file.name.removeprefix(_BUNDLE_PREFIX) for file in files]
        return next((sha256 for sha256 in names if self._read(_BUNDLE_PREFIX + sha256, sha256)), None)

    def _point(self, pointer: Pointer) -> None:
        self._replace(POINTER_FILE, encode_checked(pointer))
        self._pointer = pointer

    def _read_slot(self, slot: Slot) -> Stored | None:
        """None for what is damaged, and for a slot that the pointer does not know."""
        entry = self._pointer.slots.get(slot)
        return None if entry is None else self._read(f"slot-{slot}", entry.sha256, entry.version)

    def _read(self, name: str, sha256: str, version: int = 0) -> Stored | None:
        try:
            data = (self.path / name).read_bytes()
            signature = (self.path / f"{name}.sig").read_text()
        except (OSError, UnicodeDecodeError):
            return None
        return Stored(data, signature, version) if hashlib.sha256(data).hexdigest() == sha256 else None

    def _write_content(self, name: str, data: bytes, signature: str) -> None:
        # both renamed into place before the pointer learns of them; a cut in between leaves a sha256 nobody points to
        self._replace(f"{name}.sig", signature.encode())
        self._replace(name, data)

    def _replace(self, name: str, data: bytes, *, durable: bool = True, mode: int = 0o666) -> None:
        beside = self.path / f"{name}.tmp"
        try:
            beside.unlink(missing_ok=True)  # what a power cut left behind has the mode of another time
            with open(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode), "wb") as file:
                file.write(data)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            os.replace(beside, self.path / name)
            if durable:
                self._sync_folder()
        except OSError as error:
            raise StorageError(f"expected to write {name} in {self.path}: {error.strerror}") from error

    def _sync_folder(self) -> None:
        folder = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
