"""Samples that wait for the network: a bounded queue that survives a power cut (SQLite, WAL, synchronous=FULL).

In: selected samples, encoded. Out: the oldest ones, until the cloud has acknowledged them. What has to go is dropped
oldest first and counted by reason. A damaged file is set aside and counted: prediction matters more than its queue.
"""

from __future__ import annotations

import sqlite3
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from cema.config import OutboxConfig
from cema.errors import StorageError
from cema.wire.messages import Sample

JOURNAL_LIMIT_BYTES = 4 * 1024 * 1024
"""The write-ahead log is cut back to this size; it may not grow to a second copy of the queue."""
OVERFLOW, EXPIRED, STALE, REJECTED, CORRUPT = "overflow", "expired", "stale", "rejected", "corrupt"

_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_PRIMARY_CODE = 0xFF
_DELETE_CHUNK = 500
_UNDATED = -1
"""As time of capture: the device's clock may be years off, and nobody has told it the time yet."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS samples (
    row INTEGER PRIMARY KEY AUTOINCREMENT, id BLOB NOT NULL UNIQUE, fingerprint TEXT NOT NULL,
    captured_at_ms INTEGER NOT NULL, size INTEGER NOT NULL, body BLOB NOT NULL, crc INTEGER);
CREATE INDEX IF NOT EXISTS samples_age ON samples (captured_at_ms, size);
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
"""
T = TypeVar("T")


class Outbox:
    """The queue of one device. All methods may be called from several threads; each is one transaction.

    Parameters
    ----------
    path: the database file, created if absent. config: bounds. fingerprint: of the bundle in use; samples of
    another one are dropped and counted as ``stale``.

    patient: a disk that fails now is no reason not to start; the file is opened as soon as it can be.

    Raises StorageError when the disk fails (full, read-only); a damaged file is no error.
    """

    def __init__(self, path: Path, config: OutboxConfig, fingerprint: str, *, patient: bool = False) -> None:
        self._path, self._config, self._fingerprint = path, config, fingerprint
        self._mutex = threading.RLock()
        self._database: sqlite3.Connection | None = None
        self._length = self._size_bytes = 0
        self.counters_before: dict[str, int] | None = None  # once the file has been opened
        try:
            self.switch(fingerprint)
        except StorageError:
            if not patient:
                raise

    def __len__(self) -> int:
        return self._length

    @property
    def size_bytes(self) -> int:
        """Encoded samples in the queue."""
        return self._size_bytes

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def switch(self, fingerprint: str) -> None:
        """From now on samples are for this bundle; waiting ones of others are dropped as ``stale``."""
        with self._mutex:
            self._fingerprint, self._switched = fingerprint, False
            self._run(lambda database: None)

    def add(self, samples: Sequence[Sample], *, dated: bool = True) -> None:
        """Queue samples, durable when it returns. Beyond the bounds the oldest go, counted as ``overflow``.

        dated: whether ``captured_at_ms`` can be believed; if not, they are as old as the next ``expire``."""
        if not samples:
            return
        rows = [
            (s.sample_id, self._fingerprint, s.captured_at_ms if dated else _UNDATED, msgspec.msgpack.encode(s))
            for s in samples
        ]

        def insert(database: sqlite3.Connection) -> None:
            database.executemany(
                "INSERT OR IGNORE INTO samples (id, fingerprint, captured_at_ms, size, body, crc) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                [(*row[:3], len(row[3]), row[3], _crc(row[0], row[3])) for row in rows],
            )
            self._trim(database)

        self._run(insert)

    def peek(self, max_samples: int, max_bytes: int) -> list[Sample]:
        """The oldest samples within both limits, at least one if there is any; they stay until acknowledged."""

        def read(database: sqlite3.Connection) -> list[Sample]:
            found: list[Sample] = []
            room = max_bytes
            query = "SELECT id, body, crc FROM samples ORDER BY row LIMIT ?"
            for sample_id, body, crc in database.execute(query, (max_samples,)):
                sample = _decode(sample_id, body, crc)
                room -= len(body)
                if found and room < 0:
                    break
                found.append(sample)
            return found

        return self._run(read)

    def acknowledge(self, ids: Sequence[bytes]) -> int:
        """The cloud has them: delete. Returns how many were still there; unknown ids are ignored."""
        return self._run(lambda database: _delete(database, ids))

    def discard(self, ids: Sequence[bytes], reason: str) -> None:
        """Nobody will ever take them: delete and count."""
        self._run(lambda database: _count(database, reason, _delete(database, ids)))

    def expire(self, now_ms: int) -> None:
        """Drop what was captured more than ``expiry_s`` before ``now_ms``; counted as ``expired``."""
        limit = now_ms - round(self._config.expiry_s * 1000)

        def drop(database: sqlite3.Connection) -> None:
            database.execute("UPDATE samples SET captured_at_ms = ? WHERE captured_at_ms = ?", (now_ms, _UNDATED))
            cursor = database.execute("DELETE FROM samples WHERE captured_at_ms < ?", (limit,))
            _count(database, EXPIRED, cursor.rowcount)

        self._run(drop)

    def count(self, name: str, amount: int) -> int:
        """Raise a durable counter; returns its new value (0 adds nothing and just reads)."""

        def add(database: sqlite3.Connection) -> int:
            _count(database, name, amount)
            row = database.execute("SELECT value FROM counters WHERE name = ?", (name,)).fetchone()
            return int(row[0]) if row else 0

        return self._run(add)

    def counters(self) -> dict[str, int]:
        """Everything counted since the file was made."""
        return self._run(_counters)

    def close(self) -> None:
        """Close the file; it is opened again on use."""
        with self._mutex:
            if self._database is not None:
                self._database.close()
                self._database = None

    def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._mutex:
            try:
                return self._attempt(work)
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    raise StorageError(f"the outbox {self._path} cannot be used: {error}") from error
            except _DamagedRowError:
                pass
            self._set_aside()
            try:
                return self._attempt(work)
            except sqlite3.DatabaseError as error:
                raise StorageError(f"a new outbox {self._path} cannot be made: {error}") from error

    def _attempt(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._database is None:
            self._database = _open(self._path)
        with _transaction(self._database):
            if not self._switched:
                cursor = self._database.execute("DELETE FROM samples WHERE fingerprint != ?", (self._fingerprint,))
                _count(self._database, STALE, cursor.rowcount)
            counters = _counters(self._database) if self.counters_before is None else self.counters_before
            result = work(self._database)
            row = self._database.execute("SELECT count(*), coalesce(sum(size), 0) FROM samples").fetchone()
        self._length, self._size_bytes = row
        self._switched, self.counters_before = True, counters
        return result

    def _trim(self, database: sqlite3.Connection) -> None:
        count, size = database.execute("SELECT count(*), coalesce(sum(size), 0) FROM samples").fetchone()
        excess = max(0, count - self._config.max_samples)
        dropped: list[tuple[int]] = []
        for row, bytes_ in database.execute("SELECT row, CAST(size AS INTEGER) FROM samples ORDER BY row"):
            if len(dropped) >= excess and size <= self._config.max_bytes:
                break
            dropped.append((row,))
            size -= bytes_
        database.executemany("DELETE FROM samples WHERE row = ?", dropped)
        _count(database, OVERFLOW, len(dropped))

    def _set_aside(self) -> None:
        self.close()
        folder, name = self._path.parent, self._path.name
        older = list(folder.glob(f"{name}.corrupt-*"))
        numbers = [file.name.rpartition("-")[2] for file in older]
        number = 1 + max((int(text) for text in numbers if text.isdigit()), default=0)
        try:
            self._path.rename(folder / f"{name}.corrupt-{number}")
            # only the newest is kept for inspection: damaged files may not fill the card
            for leftover in (*older, folder / f"{name}-wal", folder / f"{name}-shm"):
                leftover.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"the damaged outbox {self._path} cannot be set aside: {error.strerror}") from error
        self._attempt(lambda database: _count(database, CORRUPT, number))


class _DamagedRowError(Exception):
    """A row that SQLite gave back but that is not a sample."""


def _open(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute(f"PRAGMA journal_size_limit = {JOURNAL_LIMIT_BYTES}")
        database.executescript(_SCHEMA)
        if "crc" not in {name for _, name, *_ in database.execute("PRAGMA table_info(samples)")}:  # a file of before
            database.execute("ALTER TABLE samples ADD COLUMN crc INTEGER")
    except sqlite3.DatabaseError:
        database.close()
        raise
    return database


@contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:  # not SQLite's: Python could not read a text, which was none when it was written
        return isinstance(error, sqlite3.OperationalError)
    return bool(code & _PRIMARY_CODE in _DAMAGED)


def _decode(sample_id: object, body: object, crc: object) -> Sample:
    # SQLite does not notice a flipped bit in a row, not even in its types, and the cloud would be taught by it
    if not isinstance(sample_id, bytes) or not isinstance(body, bytes):
        raise _DamagedRowError
    if crc is not None and crc != _crc(sample_id, body):
        raise _DamagedRowError
    try:
        sample = msgspec.msgpack.decode(body, type=Sample)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _DamagedRowError from error
    if sample.sample_id != sample_id:  # it could never be acknowledged
        raise _DamagedRowError
    return sample


def _crc(sample_id: bytes, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(sample_id))


def _delete(database: sqlite3.Connection, ids: Sequence[bytes]) -> int:
    deleted = 0
    for start in range(0, len(ids), _DELETE_CHUNK):
        chunk = ids[start : start + _DELETE_CHUNK]
        marks = ",".join("?" * len(chunk))
        deleted += database.execute(f"DELETE FROM samples WHERE id IN ({marks})", chunk).rowcount  # noqa: S608
    return deleted


def _counters(database: sqlite3.Connection) -> dict[str, int]:
    return dict(database.execute("SELECT name, CAST(value AS INTEGER) FROM counters").fetchall())


def _count(database: sqlite3.Connection, name: str, amount: int) -> None:
    if amount > 0:
        database.execute(
            "INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
            (name, amount),
        )
