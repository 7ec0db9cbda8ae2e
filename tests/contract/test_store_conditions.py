"""What a database of before makes of its samples: they are all of one unnamed device, in one world."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine

from cema.cloud.store.migrate import MIGRATIONS
from cema.cloud.store.sql import SqlStore
from cema.wire.messages import Sample, SampleBatch

GOLDEN = Path(__file__).parents[1] / "golden"


def url(folder: Path) -> str:
    return f"sqlite:///{folder / 'cema.db'}"


def columns(folder: Path) -> set[str]:
    raw = sqlite3.connect(folder / "cema.db")
    found = {row[1] for row in raw.execute("PRAGMA table_info(samples)")}
    raw.close()
    return found


def first_schema(folder: Path) -> None:
    raw = sqlite3.connect(folder / "cema.db")
    raw.executescript((GOLDEN / "store-0001.sql").read_text())
    raw.close()


def test_samples_of_the_first_schema_are_of_no_named_device_and_of_one_world(tmp_path: Path) -> None:
    first_schema(tmp_path)
    assert not {"device_id", "domain"} & columns(tmp_path)
    store = SqlStore.open(url(tmp_path))
    kept = [*store.pending("doors", 9), *store.replay("doors")]
    assert len(kept) > 2
    assert {(sample.device_id, sample.domain) for sample in kept} == {("", 0)}
    store.close()


def test_new_samples_beside_old_ones_have_their_own_world(tmp_path: Path) -> None:
    first_schema(tmp_path)
    store = SqlStore.open(url(tmp_path))
    old = len(store.pending("doors", 99))
    sample = Sample(
        sample_id=b"s" * 16, seq=0, codec="png", image=b"new", label=0, probability=0.5, entropy=1.0, update_version=0,
        captured_at_ms=0, domain=1 << 53,
    )  # fmt: skip
    fingerprint = store.group("doors").fingerprint
    batch = SampleBatch(
        device_id="gate-1", boot_id=b"b" * 16, fingerprint=fingerprint, samples_seen=1, samples=[sample]
    )
    assert store.add_samples("doors", batch, 5).accepted == 1
    newest = store.pending("doors", 99)[old:]
    assert [(each.device_id, each.domain, each.image) for each in newest] == [("gate-1", 1 << 53, b"new")]
    store.close()


def test_the_way_back_takes_the_columns_and_nothing_else(tmp_path: Path) -> None:
    first_schema(tmp_path)
    store = SqlStore.open(url(tmp_path))
    before = [(sample.row_id, sample.image) for sample in store.pending("doors", 99)]
    store.close()
    full = columns(tmp_path)
    engine, config = create_engine(url(tmp_path)), Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0002")
    engine.dispose()
    assert full - columns(tmp_path) == {"device_id", "domain", "key_name"}
    again = SqlStore.open(url(tmp_path))
    assert [(sample.row_id, sample.image) for sample in again.pending("doors", 99)] == before
    again.close()
