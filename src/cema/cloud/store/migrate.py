"""Brings a database to the schema of this version (Alembic; the revisions are part of the wheel).

Every process that opens the store calls this first. A lock file serialises those that start at once; each upgrade
is one transaction, so a crash leaves the old schema or the new one.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine

MIGRATIONS = Path(__file__).parent / "migrations"


def migrate(engine: Engine) -> None:
    """Upgrade to the newest revision. Raises OSError and SQLAlchemyError."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    with _one_process(engine):
        with engine.connect() as connection:
            # Outside of any transaction, as SQLite wants it; the setting stays in the file.
            raw = connection.connection.dbapi_connection
            assert raw is not None
            raw.cursor().execute("PRAGMA journal_mode=WAL")
        with engine.execution_options(immediate=True).begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


@contextmanager
def _one_process(engine: Engine) -> Iterator[None]:
    with open(f"{engine.url.database}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
