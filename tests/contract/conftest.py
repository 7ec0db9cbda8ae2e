"""Every implementation of the store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cema.cloud.store.base import Store
from cema.cloud.store.memory import MemoryStore
from cema.cloud.store.sealing import NO_KEYS, SampleKeys
from cema.cloud.store.sql import SqlStore


@pytest.fixture(params=["memory", "sqlite", "sqlite-sealed"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "memory":
        made: Store = MemoryStore()
    else:
        keys = NO_KEYS
        if request.param == "sqlite-sealed":
            keys = SampleKeys(tmp_path / "samples.key", seals=True)
            keys.add()
        made = SqlStore.open(f"sqlite:///{tmp_path / 'cema.db'}", keys)
    yield made
    made.close()
