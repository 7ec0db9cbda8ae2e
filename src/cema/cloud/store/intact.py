"""Whether a database file is still one, before anything trusts it: SQLite itself notices damage only where it reads."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from cema.errors import DamagedError, StorageError

RESTORE_HINT = "stop the service and restore cema.db from a backup (docs/operations.md); keep the damaged file"
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def check_intact(path: Path) -> None:
    """Walk through the whole file, about 3 s per GB. A file that is not there is fine.

    Raises DamagedError if pages or their order are damaged (not if only bytes within a picture are), StorageError if it
    cannot be read.
    """
    if not path.exists():
        return
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True)) as database:
            found = database.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.Error as error:
        if is_damage(error):
            raise damaged(path, error) from error
        raise StorageError(f"cannot open the database {path}: {error}") from error
    if found != "ok":
        raise damaged(path, found)


def is_damage(error: BaseException | None) -> bool:
    """Whether it says that the file is damaged, rather than busy, full or out of reach."""
    return isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGE


def damaged(path: object, what: object) -> DamagedError:
    return DamagedError(f"the database {path} is damaged: {what}", hint=RESTORE_HINT)
