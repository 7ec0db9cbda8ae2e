"""What only a database has to promise: durability, migrations, several processes."""

from __future__ import annotations

import hashlib
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import create_engine, event, inspect

from cema.cloud.store import open_store
from cema.cloud.store.sql import SqlStore
from cema.cloud.store.sql_tables import metadata
from cema.config import ServeConfig, ServerConfig
from cema.errors import StorageError
from cema.wire.messages import SampleBatch

GOLDEN = Path(__file__).parents[1] / "golden"
CLAIM = """
import sys
from cema.cloud.store.sql import SqlStore
store = SqlStore.open(sys.argv[1])
store.put_group("g", "f1", "bundle1", "on", 1)
print("ready", flush=True)
sys.stdin.readline()
row = store.claim(sys.argv[2], 100, lease_ms=1000, tick_images=64, publish_interval_ms=1)
print("won" if row else "lost", flush=True)
"""


def url(folder: Path) -> str:
    return f"sqlite:///{folder / 'cema.db'}"


def test_what_an_upload_costs_does_not_depend_on_the_backlog(tmp_path: Path) -> None:
    store, statements = SqlStore.open(url(tmp_path)), list[str]()
    store.put_group("g", "f1", "bundle1", "on", 1)
    event.listen(store._engine, "before_cursor_execute", lambda *call: statements.append(call[2]))
    batch = SampleBatch(device_id="cam", boot_id=b"b" * 16, fingerprint="f1", samples_seen=1, samples=[])
    store.add_samples("g", batch, 1)
    written = [statement.lower() for statement in statements]
    assert any(statement.startswith("insert into boots") for statement in written)
    assert not [statement for statement in written if "count(" in statement]
    store.close()


def test_migrations_make_exactly_the_tables_of_the_code(tmp_path: Path) -> None:
    SqlStore.open(url(tmp_path)).close()
    engine = create_engine(url(tmp_path))
    made = inspect(engine)
    assert set(made.get_table_names()) == {*metadata.tables, "alembic_version"}
    for table in metadata.tables.values():
        columns = {c["name"]: (str(c["type"]), c["nullable"]) for c in made.get_columns(table.name)}
        assert columns == {c.name: (str(c.type.compile(engine.dialect)), c.nullable) for c in table.columns}
        assert {i["name"] for i in made.get_indexes(table.name)} == {i.name for i in table.indexes}
        assert made.get_pk_constraint(table.name)["constrained_columns"] == [c.name for c in table.primary_key]
        assert len(made.get_foreign_keys(table.name)) == len(table.foreign_keys)
    engine.dispose()


def everything(path: Path) -> dict[str, list[dict[str, object]]]:
    """All rows of all tables but the version of the schema."""
    raw = sqlite3.connect(path)
    raw.row_factory = sqlite3.Row
    names = [row["name"] for row in raw.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
    found = {name: list(map(dict, raw.execute(f"SELECT * FROM {name} ORDER BY rowid"))) for name in names}
    raw.close()
    del found["alembic_version"]
    return found


def test_a_store_of_the_first_schema_is_taken_over_without_loss(tmp_path: Path) -> None:
    raw = sqlite3.connect(tmp_path / "cema.db")
    raw.executescript((GOLDEN / "store-0001.sql").read_text())
    raw.close()
    before = everything(tmp_path / "cema.db")
    store = SqlStore.open(url(tmp_path))
    after = everything(tmp_path / "cema.db")
    for table, rows in before.items():
        assert len(after[table]) == len(rows)
        for row, kept in zip(rows, after[table], strict=True):
            assert kept.items() >= row.items()
    device = store.device_by_token(hashlib.sha256(b"token-of-gate-1").hexdigest())
    assert device is not None
    assert (device.device_id, device.token_expires_ms, device.rotate) == ("gate-1", None, False)
    assert store.device_by_token(hashlib.sha256(b"token-of-gate-2").hexdigest()) is None, "revoked stays revoked"
    assert [sample.image for sample in store.pending("doors", 9)] == [b"image 4", b"image 5"]
    assert store.users() == []
    store.close()


def test_processes_that_start_at_once_share_one_schema_and_one_lease(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CLAIM, url(tmp_path)]
    children = [
        subprocess.Popen([*command, f"w{i}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for i in range(4)
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    store = SqlStore.open(url(tmp_path))
    raw = sqlite3.connect(tmp_path / "cema.db", timeout=30)
    raw.execute("UPDATE groups SET samples_seen = 64")
    raw.commit()
    raw.close()
    answers = [child.communicate("go\n", timeout=60)[0] for child in children]
    assert sorted(answers) == ["lost\n", "lost\n", "lost\n", "won\n"]
    store.close()


def test_every_connection_is_durable(tmp_path: Path) -> None:
    store = SqlStore.open(url(tmp_path))
    with store._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    store.close()


def test_rows_survive_reopening(tmp_path: Path) -> None:
    store = SqlStore.open(url(tmp_path))
    row = store.put_group("g", "f1", "bundle1", "on", 1)
    store.close()
    again = SqlStore.open(url(tmp_path))
    assert again.group("g") == row
    again.close()


def test_a_table_that_vanished_is_a_storage_error(tmp_path: Path) -> None:
    store = SqlStore.open(url(tmp_path))
    raw = sqlite3.connect(tmp_path / "cema.db")
    raw.execute("DROP TABLE boots")
    raw.execute("DROP TABLE garbage")
    raw.commit()
    raw.close()
    with pytest.raises(StorageError, match="database failed"):
        store.forget(1, id_memory_ms=1, keep_versions=1)
    store.close()


def test_open_store_makes_the_folder_of_the_configuration(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "data"
    store, blobs = open_store(ServeConfig(server=ServerConfig(data_dir=str(folder))))
    assert blobs.get(blobs.put(b"x")) == b"x"
    store.ping()
    store.close()
    assert (folder / "cema.db").exists()


def test_open_store_names_the_folder_it_cannot_make(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="data_dir"):
        open_store(ServeConfig(server=ServerConfig(data_dir=str(tmp_path / "file" / "data"))))
