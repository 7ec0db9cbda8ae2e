"""SqlStore: the Store contract on SQLAlchemy Core; SQLite by default (WAL, synchronous=FULL, BEGIN IMMEDIATE).

This file owns engine and transactions. What happens inside them is in ``sql_credentials`` (devices, users),
``sql_samples`` (uploads), ``sql_work`` (groups, leases and adapt steps) and ``sql_updates`` (versions, house-keeping).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, create_engine, event, select, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import SQLAlchemyError

from cema.cloud.store import sql_credentials, sql_deletion, sql_samples, sql_updates, sql_work
from cema.cloud.store.base import DeviceRow, GroupRow, GroupState, NewUpdate, StepCommit, UpdateRow, UserRow
from cema.cloud.store.intact import damaged, is_damage
from cema.cloud.store.migrate import migrate
from cema.cloud.store.samples import Condition, StoredSample, Waiting
from cema.cloud.store.sealing import NO_KEYS, SampleKeys
from cema.cloud.store.sql_tables import (
    as_device,
    as_group,
    counted_group,
    group_rows,
    group_state,
    groups,
)
from cema.errors import StorageError
from cema.wire.messages import SampleBatch, UploadReceipt

log = logging.getLogger(__name__)

BUSY_TIMEOUT_MS = 20_000
"""How long a writer waits for another process; a transaction takes milliseconds, so this means "stuck"."""
CUT_TIMEOUT_MS = 1000
"""How long cutting the log may wait for readers: writers wait with it."""
POOL_CONNECTIONS = 40
"""As many as the web process has threads: nobody waits for a connection."""


class SqlStore:
    """Store on a database that several processes share. keys: that its pictures are encrypted with."""

    def __init__(self, engine: Engine, keys: SampleKeys = NO_KEYS) -> None:
        self._engine, self._keys = engine, keys
        self._writer = engine.execution_options(immediate=True)
        # SQLite's own waiting is a lottery of sleeps; threads of one process queue up fairly here instead.
        self._write_lock = threading.Lock()

    @classmethod
    def open(cls, url: str, keys: SampleKeys = NO_KEYS) -> SqlStore:
        """Connect and bring the schema up to date, safe for processes that start at once. Raises StorageError."""
        engine = create_engine(url, pool_size=POOL_CONNECTIONS, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000})
        event.listen(engine, "connect", _set_pragmas)
        event.listen(engine, "begin", _begin)
        try:
            migrate(engine)
        except (SQLAlchemyError, OSError) as error:
            engine.dispose()
            if isinstance(error, SQLAlchemyError) and is_damage(error.__cause__):
                raise damaged(engine.url.database, error.__cause__) from error
            raise StorageError(f"cannot open the database {url}: {error}") from error
        return cls(engine, keys)

    def close(self) -> None:
        self._engine.dispose()

    def ping(self) -> None:
        with self._read() as connection:
            connection.execute(text("SELECT 1"))

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise self._storage_error(error) from error

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        try:
            with self._write_lock, self._writer.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise self._storage_error(error) from error

    def _storage_error(self, error: SQLAlchemyError) -> StorageError:
        if is_damage(error.__cause__):
            return damaged(self._engine.url.database, error.__cause__)
        return StorageError(f"the database failed: {error}", hint="check free space and permissions of data_dir")

    def _cut_log(self) -> None:
        """What was deleted is in the write-ahead log as well, until that is written back and cut."""
        raw = self._engine.raw_connection()
        try:
            cursor = raw.cursor()
            cursor.execute(f"PRAGMA busy_timeout={CUT_TIMEOUT_MS}")
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            answer = cursor.fetchone()  # whether somebody was in the way, and two counts
            cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
        finally:
            raw.close()
        if answer is None or answer[0]:
            log.warning("deleted pictures stay in the database's -wal file until nobody reads: delete once more then")

    # groups

    def put_group(self, name: str, fingerprint: str, bundle_blob: str, adaptation: str, now_ms: int) -> GroupRow:
        with self._write() as connection:
            return sql_work.put_group(connection, name, fingerprint, bundle_blob, adaptation)

    def group(self, name: str) -> GroupRow:
        with self._read() as connection:
            return counted_group(connection, name)

    def state(self, name: str) -> GroupState:
        with self._read() as connection:
            return group_state(connection, name)

    def groups(self) -> list[GroupRow]:
        with self._read() as connection:
            return [as_group(row) for row in connection.execute(group_rows.order_by(groups.c.name)).mappings()]

    def pause(self, group: str, paused: bool, now_ms: int) -> GroupRow:
        with self._write() as connection:
            return sql_work.pause(connection, group, paused, now_ms)

    def latest_versions(self) -> dict[str, int]:
        with self._read() as connection:
            rows = connection.execute(select(groups.c.name, groups.c.latest_version))
            return {row.name: row.latest_version for row in rows}

    # devices

    def enrol(
        self, device_id: str, group: str, token_sha256: str, now_ms: int, *, token_expires_ms: int | None = None
    ) -> DeviceRow:
        with self._write() as connection:
            return sql_credentials.enrol(connection, device_id, group, token_sha256, now_ms, token_expires_ms)

    def revoke(self, device_id: str, now_ms: int) -> DeviceRow:
        with self._write() as connection:
            return sql_credentials.revoke(connection, device_id, now_ms)

    def devices(self, group: str | None = None) -> list[DeviceRow]:
        with self._read() as connection:
            return sql_credentials.listed(connection, group)

    def device_by_token(self, token_sha256: str) -> DeviceRow | None:
        with self._read() as connection:
            row = sql_credentials.known(connection, token_sha256)
        if row is not None and row["next_sha256"] == token_sha256:  # only the first use of a key writes
            with self._write() as connection:
                row = sql_credentials.use(connection, token_sha256)
        return None if row is None else as_device(row)

    def propose_key(self, token_sha256: str, key_sha256: str) -> DeviceRow | None:
        with self._write() as connection:
            return sql_credentials.propose(connection, token_sha256, key_sha256)

    def devices_changed_ms(self) -> int:
        with self._read() as connection:
            return sql_credentials.changed_ms(connection)

    def ask_rotation(self, device_id: str) -> DeviceRow:
        with self._write() as connection:
            return sql_credentials.ask_rotation(connection, device_id)

    def pause_device(self, device_id: str, paused: bool, now_ms: int) -> DeviceRow:
        with self._write() as connection:
            return sql_credentials.pause(connection, device_id, paused, now_ms)

    # users

    def add_user(self, name: str, role: str, token_sha256: str, now_ms: int) -> UserRow:
        with self._write() as connection:
            return sql_credentials.add_user(connection, name, role, token_sha256, now_ms)

    def revoke_user(self, name: str, now_ms: int) -> UserRow:
        with self._write() as connection:
            return sql_credentials.revoke_user(connection, name, now_ms)

    def users(self) -> list[UserRow]:
        with self._read() as connection:
            return sql_credentials.listed_users(connection)

    def user_by_token(self, token_sha256: str) -> UserRow | None:
        with self._read() as connection:
            return sql_credentials.user(connection, token_sha256)

    # samples

    def add_samples(self, group: str, batch: SampleBatch, now_ms: int) -> UploadReceipt:
        with self._write() as connection:
            return sql_samples.add(connection, group, batch, now_ms, self._keys)

    def pending(self, group: str, limit: int, condition: Condition | None = None) -> list[StoredSample]:
        with self._read() as connection:
            return sql_samples.pending(connection, group, limit, condition, self._keys)

    def waiting(self, group: str) -> dict[Condition, Waiting]:
        with self._read() as connection:
            return sql_samples.waiting(connection, group)

    def replay(self, group: str, after_row: int = 0) -> list[StoredSample]:
        with self._read() as connection:
            return sql_samples.replay(connection, group, after_row, self._keys)

    def sealed_with(self) -> set[str]:
        """Names of the keys that the pictures are encrypted with."""
        with self._read() as connection:
            return sql_samples.sealed_with(connection)

    def delete_samples(self, device_id: str, group: str | None = None) -> dict[str, int]:
        with self._write() as connection:
            # nothing of the pictures may be left in the pages of the file that are free now
            connection.exec_driver_sql("PRAGMA secure_delete = ON")
            counts = sql_deletion.delete_of_device(connection, device_id, group)
            connection.exec_driver_sql("PRAGMA secure_delete = OFF")
        self._cut_log()
        return counts

    def expire_samples(self, before_ms: int, keep: int) -> dict[str, int]:
        with self._write() as connection:
            return sql_deletion.expire(connection, before_ms, keep)

    # work

    def claim(
        self, worker: str, now_ms: int, *, lease_ms: int, tick_images: int, publish_interval_ms: int
    ) -> GroupRow | None:
        due = sql_work.due(now_ms, lease_ms, tick_images, publish_interval_ms)
        with self._read() as connection:  # workers look far more often than they find: no lock for nothing
            if connection.execute(due).first() is None:
                return None
        with self._write() as connection:
            return sql_work.claim(connection, due, worker, now_ms + lease_ms)

    def renew(self, group: str, worker: str, now_ms: int, lease_ms: int) -> bool:
        with self._write() as connection:
            return sql_work.renew(connection, group, worker, now_ms + lease_ms)

    def release(self, group: str, worker: str) -> None:
        with self._write() as connection:
            sql_work.release(connection, group, worker)

    def commit_step(self, step: StepCommit, now_ms: int) -> None:
        with self._write() as connection:
            sql_work.commit_step(connection, step, now_ms)

    def roll_back(self, group: str, lineage: int, update: NewUpdate, now_ms: int) -> GroupRow:
        with self._write() as connection:
            return sql_work.roll_back(connection, group, lineage, update, now_ms)

    # updates

    def update(self, group: str, version: int) -> UpdateRow:
        with self._read() as connection:
            return sql_updates.find(connection, group, version)

    def updates(self, group: str, limit: int = 100) -> list[UpdateRow]:
        with self._read() as connection:
            return sql_updates.newest(connection, group, limit)

    def update_samples(self, group: str, version: int) -> list[bytes]:
        with self._read() as connection:
            return sql_updates.learned_from(connection, group, version)

    # house-keeping

    def forget(self, now_ms: int, *, id_memory_ms: int, keep_versions: int) -> list[str]:
        with self._write() as connection:
            return sql_updates.forget(connection, now_ms - id_memory_ms, keep_versions)


def _set_pragmas(connection: DBAPIConnection, _record: object) -> None:
    connection.isolation_level = None  # the driver opens no transactions of its own: _begin does
    for pragma in ("synchronous=FULL", f"busy_timeout={BUSY_TIMEOUT_MS}", "foreign_keys=ON"):
        connection.cursor().execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    # A writer that began as a reader could not wait for the lock, it would fail: so it says at once that it writes.
    immediate = connection.get_execution_options().get("immediate", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")
