"""The outbox against a list in memory: bounds, order, counters, restarts, damage."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections import Counter
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


class OutboxMachine(RuleBasedStateMachine):
    """Any order of operations, with restarts in between."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.fingerprint = "a"
        self.outbox = Outbox(self.folder / "outbox.db", CONFIG, self.fingerprint)
        self.model: list[Sample] = []
        self.counters: Counter[str] = Counter()
        self.number = 0

    @rule(sizes=st.lists(st.integers(1, 900), max_size=8), at_s=st.integers(0, 30))
    def add(self, sizes: list[int], at_s: int) -> None:
        new = [sample(self.number + i, size=size, at_ms=at_s * 1000) for i, size in enumerate(sizes)]
        self.number += len(new)
        self.outbox.add(new)
        self.outbox.add(new[-1:])  # the same id again changes nothing, unless it has been dropped at once
        self.model += new
        while len(self.model) > CONFIG.max_samples or sum(map(size_of, self.model)) > CONFIG.max_bytes:
            self.model.pop(0)
            self.counters["overflow"] += 1

    @rule(count=st.integers(0, 4))
    def acknowledge(self, count: int) -> None:
        self.outbox.acknowledge([s.sample_id for s in self.model[:count]])
        del self.model[:count]

    @rule(count=st.integers(0, 3))
    def discard(self, count: int) -> None:
        gone, self.model = self.model[-count:] if count else [], self.model[:-count] if count else self.model
        self.outbox.discard([s.sample_id for s in gone] + [b"unknown"], "rejected")
        self.counters["rejected"] += len(gone)

    @rule(now_s=st.integers(0, 40))
    def expire(self, now_s: int) -> None:
        self.outbox.expire(now_s * 1000)
        kept = [s for s in self.model if s.captured_at_ms >= (now_s - 10) * 1000]
        self.counters["expired"] += len(self.model) - len(kept)
        self.model = kept

    @rule()
    def restart(self) -> None:
        self.outbox.close()
        self.outbox = Outbox(self.folder / "outbox.db", CONFIG, self.fingerprint)

    @rule(fingerprint=st.sampled_from("ab"))
    def switch(self, fingerprint: str) -> None:
        self.outbox.switch(fingerprint)
        if fingerprint != self.fingerprint:
            self.counters["stale"] += len(self.model)
            self.model = []
            self.fingerprint = fingerprint

    @invariant()
    def same_as_the_model(self) -> None:
        assert self.outbox.peek(100, 10**9) == self.model
        assert len(self.outbox) == len(self.model)
        assert self.outbox.size_bytes == sum(map(size_of, self.model))
        assert +Counter(self.outbox.counters()) == +self.counters

    def teardown(self) -> None:
        self.outbox.close()
        shutil.rmtree(self.folder)


def size_of(item: Sample) -> int:
    return len(encode_msgpack(item))


OutboxMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
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
