"""The outbox against a list in memory: bounds, order, counters, restarts, crashes, damage."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cema.config import OutboxConfig
from cema.edge.outbox import Outbox
from cema.errors import StorageError
from cema.wire.messages import Sample, encode_msgpack

CONFIG = OutboxConfig(max_samples=6, max_bytes=2000, expiry_s=10)


def sample(number: int, *, size: int = 10, at_ms: int = 0) -> Sample:
    return Sample(
        sample_id=number.to_bytes(16, "big"), seq=number, codec="png", image=b"x" * size, label=1,
        probability=0.5, entropy=0.5, update_version=0, captured_at_ms=at_ms,
    )  # fmt: skip


@dataclass
class Expected:
    """What has to be in the outbox."""

    samples: list[Sample] = field(default_factory=list)
    counters: Counter[str] = field(default_factory=Counter)

    def drop(self, gone: Sequence[Sample], reason: str | None) -> None:
        ids = {sample.sample_id for sample in gone}
        self.samples = [sample for sample in self.samples if sample.sample_id not in ids]
        if reason is not None:
            self.counters[reason] += len(ids)

    def copy(self) -> Expected:
        return Expected([*self.samples], Counter(self.counters))


cuts = st.none() | st.sampled_from([0.0, 0.01, 0.3, 0.5, 0.7, 0.9, 0.999, 1.0])
"""Where the power fails within an operation: after that share of what it writes; None = it does not."""


class OutboxMachine(RuleBasedStateMachine):
    """Any order of operations, with orderly restarts, crashes after an operation and power cuts within one.

    A cut leaves the database and the first part of what the operation has appended to the write-ahead log: the outbox
    then is as before the operation or as after it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.parent = Path(tempfile.mkdtemp())
        self.lives = 0
        self.folder = self.parent
        self.fingerprint = "a"
        self.outbox = Outbox(self.folder / "outbox.db", CONFIG, self.fingerprint)
        self.model = Expected()
        self.number = 0
        self.added, self.acknowledged = 0, set[bytes]()

    def perform(self, operation: Callable[[Outbox], None], after: Expected, cut: float | None) -> bool:
        """Do it, or the share ``cut`` of it; False if the device came back as if nothing had been asked of it."""
        if cut is None:
            operation(self.outbox)
            self.model = after
            return True
        written = self._log_bytes()
        operation(self.outbox)
        keep = written + round((self._log_bytes() - written) * cut)
        whole = keep == self._log_bytes()
        self._reopen_as_after_a_crash(keep)
        done = whole or self._same_as(after)
        self.model = after if done else self.model
        return done

    def _log_bytes(self) -> int:
        log = self.folder / "outbox.db-wal"
        return log.stat().st_size if log.exists() else 0

    def _reopen_as_after_a_crash(self, log_bytes: int) -> None:
        self.lives += 1
        folder = self.parent / f"life-{self.lives}"
        folder.mkdir()
        shutil.copy(self.folder / "outbox.db", folder)
        if self._log_bytes():
            (folder / "outbox.db-wal").write_bytes((self.folder / "outbox.db-wal").read_bytes()[:log_bytes])
        self.outbox.close()
        self.folder = folder
        self.outbox = Outbox(folder / "outbox.db", CONFIG, self.fingerprint)

    def _same_as(self, expected: Expected) -> bool:
        counted = +Counter(self.outbox.counters()) == +expected.counters
        return counted and self.outbox.peek(100, 10**9) == expected.samples

    @rule(sizes=st.lists(st.integers(1, 900), max_size=8), at_s=st.integers(0, 30), cut=cuts)
    def add(self, sizes: list[int], at_s: int, cut: float | None) -> None:
        new = [sample(self.number + i, size=size, at_ms=at_s * 1000) for i, size in enumerate(sizes)]
        self.number += len(new)
        after = self.model.copy()
        after.samples += new
        while len(after.samples) > CONFIG.max_samples or sum(map(size_of, after.samples)) > CONFIG.max_bytes:
            after.drop(after.samples[:1], "overflow")
        if self.perform(lambda outbox: outbox.add(new), after, cut):
            self.added += len(new)
            self.outbox.add(new[-1:])  # the same id again changes nothing, unless it has been dropped at once

    @rule(count=st.integers(0, 4), max_bytes=st.integers(1, 3000), cut=cuts)
    def take_and_acknowledge(self, count: int, max_bytes: int, cut: float | None) -> None:
        taken = self.outbox.peek(count, max_bytes)
        assert taken == self.model.samples[: len(taken)]
        assert sum(map(size_of, taken)) <= max_bytes or len(taken) == 1
        ids, after = [s.sample_id for s in taken], self.model.copy()
        after.drop(taken, None)
        if self.perform(lambda outbox: outbox.acknowledge(ids), after, cut):
            self.acknowledged.update(ids)

    @rule(count=st.integers(0, 3), cut=cuts)
    def discard(self, count: int, cut: float | None) -> None:
        gone, after = self.model.samples[len(self.model.samples) - count :] if count else [], self.model.copy()
        after.drop(gone, "rejected")
        self.perform(lambda outbox: outbox.discard([s.sample_id for s in gone] + [b"unknown"], "rejected"), after, cut)

    @rule(now_s=st.integers(0, 40), cut=cuts)
    def expire(self, now_s: int, cut: float | None) -> None:
        after = self.model.copy()
        after.drop([s for s in after.samples if s.captured_at_ms < (now_s - 10) * 1000], "expired")
        self.perform(lambda outbox: outbox.expire(now_s * 1000), after, cut)

    @rule(fingerprint=st.sampled_from("ab"), cut=cuts)
    def switch(self, fingerprint: str, cut: float | None) -> None:
        after = self.model.copy()
        if fingerprint != self.fingerprint:
            after.drop(after.samples, "stale")
        self.fingerprint = fingerprint  # a device that comes back runs the bundle that it has switched to
        self.perform(lambda outbox: outbox.switch(fingerprint), after, cut)
        self.model = after

    @rule()
    def restart(self) -> None:
        self.outbox.close()
        self.outbox = Outbox(self.folder / "outbox.db", CONFIG, self.fingerprint)

    @rule()
    def crash(self) -> None:
        self._reopen_as_after_a_crash(self._log_bytes())

    @invariant()
    def same_as_the_model(self) -> None:
        assert self.outbox.peek(100, 10**9) == self.model.samples
        assert +Counter(self.outbox.counters()) == +self.model.counters
        assert len(self.outbox) == len(self.model.samples) <= CONFIG.max_samples
        assert self.outbox.size_bytes == sum(map(size_of, self.model.samples)) <= CONFIG.max_bytes

    @invariant()
    def nothing_acknowledged_comes_back_and_nothing_is_lost_uncounted(self) -> None:
        waiting = {s.sample_id for s in self.outbox.peek(100, 10**9)}
        assert not waiting & self.acknowledged
        assert self.added == len(waiting) + len(self.acknowledged) + sum(self.outbox.counters().values())

    def teardown(self) -> None:
        self.outbox.close()
        shutil.rmtree(self.parent)


def size_of(item: Sample) -> int:
    return len(encode_msgpack(item))


OutboxMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
TestOutbox = OutboxMachine.TestCase


def test_peek_obeys_both_limits_but_always_gives_one(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o.db", OutboxConfig(), "a")
    outbox.add([sample(i, size=100) for i in range(5)])
    assert [s.seq for s in outbox.peek(2, 10**6)] == [0, 1]
    assert [s.seq for s in outbox.peek(5, 3 * size_of(sample(0, size=100)))] == [0, 1, 2]
    assert [s.seq for s in outbox.peek(5, 1)] == [0]
    outbox.close()


def test_what_was_added_survives_without_close(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o.db", OutboxConfig(), "a")
    outbox.add([sample(1)])
    for name in ("o.db", "o.db-wal"):  # what a power cut would leave on the card
        shutil.copy(tmp_path / name, tmp_path / f"cut-{name}")
    outbox.close()
    after = Outbox(tmp_path / "cut-o.db", OutboxConfig(), "a")
    assert [s.seq for s in after.peek(9, 10**6)] == [1]
    after.close()


@pytest.mark.parametrize("damage", [b"this is not a database, not at all", b"SQLite format 3\x00" + b"\xff" * 5000])
def test_a_damaged_file_is_set_aside_counted_and_replaced(tmp_path: Path, damage: bytes) -> None:
    for times in (1, 2):
        (tmp_path / "o.db").write_bytes(damage)
        outbox = Outbox(tmp_path / "o.db", OutboxConfig(), "a")
        outbox.add([sample(7)])
        assert outbox.counters() == {"corrupt": times}
        assert [s.seq for s in outbox.peek(9, 10**6)] == [7]
        outbox.close()
        assert [p.name for p in tmp_path.glob("*.corrupt-*")] == [f"o.db.corrupt-{times}"]


def test_a_row_that_is_no_sample_does_not_block_the_queue(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o.db", OutboxConfig(), "a")
    outbox.add([sample(1)])
    outbox.close()
    database = sqlite3.connect(tmp_path / "o.db")
    with database:
        database.execute("UPDATE samples SET body = x'c1'")
    database.close()
    outbox = Outbox(tmp_path / "o.db", OutboxConfig(), "a")
    assert outbox.peek(9, 10**6) == []
    assert outbox.counters() == {"corrupt": 1}
    outbox.close()


def test_a_folder_that_does_not_exist_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be used"):
        Outbox(tmp_path / "none" / "o.db", OutboxConfig(), "a")


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE samples SET body = CAST(replace(hex(body), '78787878', '78797878') AS BLOB)",
        "UPDATE samples SET body = CAST(body AS TEXT)",
        "UPDATE samples SET id = 'an id that is text'",
        "UPDATE samples SET crc = crc + 1",
        "UPDATE samples SET id = randomblob(16)",
        "UPDATE samples SET id = randomblob(16), crc = NULL",
    ],
)
def test_a_flipped_bit_in_a_row_is_noticed(tmp_path: Path, damage: str) -> None:
    outbox = Outbox(tmp_path / "o.db", OutboxConfig(), "a")
    outbox.add([sample(1)])
    with sqlite3.connect(tmp_path / "o.db") as database:
        assert database.execute(damage).rowcount == 1
    assert outbox.peek(9, 10**6) == []
    assert outbox.counters() == {"corrupt": 1}
    outbox.close()


def test_a_file_of_before_goes_on_without_checksums(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o.db", OutboxConfig(), "a")
    outbox.add([sample(1)])
    outbox.close()
    with sqlite3.connect(tmp_path / "o.db") as database:
        database.execute("ALTER TABLE samples DROP COLUMN crc")
    outbox = Outbox(tmp_path / "o.db", OutboxConfig(), "a")
    outbox.add([sample(2)])
    assert outbox.peek(9, 10**6) == [sample(1), sample(2)]
    outbox.close()


def test_a_patient_outbox_opens_when_its_disk_can_be_used_and_drops_what_is_not_for_it(tmp_path: Path) -> None:
    path = tmp_path / "o.db"
    before = Outbox(path, OutboxConfig(), "other")
    before.add([sample(1)])
    before.close()
    path.rename(tmp_path / "aside")
    path.mkdir()  # no file can be opened there
    outbox = Outbox(path, OutboxConfig(), "a", patient=True)
    assert len(outbox) == 0
    with pytest.raises(StorageError):
        outbox.add([sample(2)])
    path.rmdir()
    (tmp_path / "aside").rename(path)
    outbox.add([sample(3)])
    assert outbox.peek(9, 10**6) == [sample(3)]
    assert outbox.counters() == {"stale": 1}
    outbox.close()
