"""The state folder as a state machine: any operations, a power cut within any of them, damaged files, restarts.

The disk is a real folder. A cut ends the operation before one of its system calls and takes back what was not on disk
yet: content that was not synced is torn, a rename whose folder was not synced may not have happened.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cema.edge.slots import POINTER_FILE, StateFolder, Stored

FINGERPRINTS = ("a" * 64, "b" * 64)
cuts = st.none() | st.tuples(st.integers(0, 30), st.booleans())
"""Before which system call the power fails, and whether a rename that was under way is lost; None = it does not."""


class PowerCut(BaseException):
    """The process is gone."""


class Disk:
    """System calls of one operation, until the power fails."""

    def __init__(self, calls: int, rename_lost: bool) -> None:
        self.calls, self.rename_lost = calls, rename_lost
        self.synced: set[int] = set()
        self.torn: list[Path] = []
        self.renamed: tuple[Path, bytes | None] | None = None

    @contextmanager
    def failing(self) -> Iterator[None]:
        wrapped = {name: self._counted(name) for name in ("open", "unlink", "replace", "fsync")}
        with patch.multiple(os, **wrapped):
            yield

    def _counted(self, name: str) -> Callable[..., Any]:
        real, note, mine = getattr(os, name), getattr(self, f"_{name}", None), threading.get_ident()

        def call(*args: Any, **options: Any) -> Any:
            if threading.get_ident() != mine:  # another test's server that has not ended yet: its power does not fail
                return real(*args, **options)
            if self.calls == 0:
                raise PowerCut
            self.calls -= 1
            if note is not None:
                note(*args)
            return real(*args, **options)

        return call

    def _fsync(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            self.renamed = None
        self.synced.add(status.st_ino)

    def _replace(self, source: Path, target: Path) -> None:
        self.renamed = target, target.read_bytes() if target.exists() else None
        if source.stat().st_ino not in self.synced:
            self.torn.append(target)

    def lose_what_was_not_written(self) -> None:
        if self.renamed is not None and self.rename_lost:
            target, before = self.renamed
            target.unlink() if before is None else target.write_bytes(before)
        for path in self.torn:
            if path.exists():
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


class SlotsMachine(RuleBasedStateMachine):
    """``updates`` is what the folder has to offer, newest first, with the fingerprint that each is for."""

    def __init__(self) -> None:
        super().__init__()
        self.path = Path(tempfile.mkdtemp())
        self.folder = StateFolder(self.path)
        self.updates: list[tuple[Stored, str]] = []
        self.bundle: Stored | None = None
        self.switch = "on"
        self.number = 0

    def perform(self, operation: Callable[[], None], cut: tuple[int, bool] | None) -> bool:
        """Whether it came to its end; if not, the device is back after a power cut."""
        if cut is None:
            operation()
            return True
        disk = Disk(*cut)
        try:
            with disk.failing():
                operation()
            return True
        except PowerCut:
            self.folder.close()
            disk.lose_what_was_not_written()
            self.folder = StateFolder(self.path)
            return False

    @rule(fingerprint=st.sampled_from(FINGERPRINTS), size=st.integers(0, 9000), cut=cuts)
    def put_update(self, fingerprint: str, size: int, cut: tuple[int, bool] | None) -> None:
        self.number += 1
        new = Stored(b"update %d " % self.number + bytes(size), f"signature {self.number}", self.number)
        done = self.perform(lambda: self.folder.put_update(new.data, new.signature, new.version, fingerprint), cut)
        found = self.offered()
        if done or found[:1] == [(new, fingerprint)]:
            self.updates = [(new, fingerprint), *self.updates[:1]]
        else:  # the slot of the older one may have been written to already, but nothing else
            assert found[:1] == self.updates[:1]
            assert {stored.data for stored, _ in found} <= {stored.data for stored, _ in self.updates}
            self.updates = found

    def offered(self) -> list[tuple[Stored, str]]:
        found = [(stored, key) for key in FINGERPRINTS for stored in self.folder.updates(key)]
        return sorted(found, key=lambda pair: -pair[0].version)

    @rule(size=st.integers(0, 9000), cut=cuts)
    def put_bundle(self, size: int, cut: tuple[int, bool] | None) -> None:
        self.number += 1
        new = Stored(b"bundle %d " % self.number + bytes(size), f"signature {self.number}")
        if self.perform(lambda: self.folder.put_bundle(new.data, new.signature), cut) or self.folder.bundle() == new:
            self.bundle = new

    @rule(adaptation=st.sampled_from(["on", "off"]), cut=cuts)
    def set_adaptation(self, adaptation: Any, cut: tuple[int, bool] | None) -> None:
        if self.perform(lambda: self.folder.set_adaptation(adaptation), cut) or self.folder.adaptation == adaptation:
            self.switch = adaptation

    @rule(cut=cuts)
    def write_status(self, cut: tuple[int, bool] | None) -> None:
        self.perform(lambda: self.folder.write_status({"uploads": 3}), cut)

    @initialize()
    def begin_with_two_updates(self) -> None:
        for _ in range(2):
            self.put_update(fingerprint=FINGERPRINTS[0], size=0, cut=None)

    @precondition(lambda self: self.updates)
    @rule(newest=st.booleans(), torn=st.booleans())
    def damage_a_slot(self, newest: bool, torn: bool) -> None:
        """Of one of the updates that are offered: it is no more, the other one is not touched."""
        victim, _ = self.updates.pop(0 if newest else -1)
        (file,) = [p for p in self.path.glob("slot-?") if p.read_bytes() == victim.data]
        file.write_bytes(victim.data[:-1] if torn else b"\xff" + victim.data[1:])

    @precondition(lambda self: self.bundle is not None)
    @rule()
    def damage_the_bundle(self) -> None:
        assert self.bundle is not None
        (file,) = [p for p in self.path.glob("bundle-*") if p.read_bytes() == self.bundle.data]
        file.write_bytes(self.bundle.data[:-1])
        self.bundle = None

    @precondition(lambda self: self.updates)
    @rule(place=st.integers(0, 2000), torn=st.booleans())
    def damage_the_pointer(self, place: int, torn: bool) -> None:
        """All that is known is gone but a whole bundle, and the device begins as a new one."""
        pointer = self.path / POINTER_FILE
        data = bytearray(pointer.read_bytes())
        place %= len(data)
        data[place] ^= 4
        pointer.write_bytes(data[:place] if torn else data)
        self.updates, self.switch = [], "on"
        self.restart()
        found = self.folder.bundle()
        # a power cut may have left a newer one that the pointer had not learned of: whole, and verified before
        assert found is None or found.signature == f"signature {found.data.split()[1].decode()}"
        assert self.bundle is None or found is not None
        self.bundle = found

    @rule()
    def restart(self) -> None:
        self.folder.close()
        self.folder = StateFolder(self.path)

    @invariant()
    def it_starts_with_the_newest_that_is_whole(self) -> None:
        assert self.offered() == self.updates
        for key in FINGERPRINTS:
            assert self.folder.updates(key) == [stored for stored, own in self.updates if own == key]
        assert self.folder.bundle() == self.bundle
        assert self.folder.adaptation == self.switch

    @invariant()
    def the_folder_does_not_grow(self) -> None:
        assert len([p for p in self.path.glob("slot-*") if p.suffix != ".tmp"]) <= 4

    def teardown(self) -> None:
        self.folder.close()
        shutil.rmtree(self.path)


SlotsMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestSlots = SlotsMachine.TestCase
