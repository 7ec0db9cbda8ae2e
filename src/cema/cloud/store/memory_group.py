"""One group of the MemoryStore: its queue, its replay and its versions. The store's lock is held by the caller."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from cema.cloud.store.base import GroupRow, NewUpdate, StoredSample, UpdateRow
from cema.errors import ConflictError


@dataclass
class MemoryGroup:
    """row.pending is filled in when the row is handed out. learned: ids by the version that first used them."""

    row: GroupRow
    worker: str | None = None
    lease_until_ms: int = 0
    served: int = 0
    pending: dict[int, StoredSample] = field(default_factory=dict)
    replay: dict[int, StoredSample] = field(default_factory=dict)
    ids: dict[bytes, int] = field(default_factory=dict)  # sample id -> received_ms
    learned: dict[int, list[bytes]] = field(default_factory=dict)
    updates: dict[int, UpdateRow] = field(default_factory=dict)

    def public(self) -> GroupRow:
        return replace(self.row, pending=len(self.pending))

    def add(self, sample: StoredSample, now_ms: int) -> None:
        self.ids[sample.sample_id] = now_ms
        self.pending[sample.row_id] = sample

    def move(self, consumed: Sequence[int], evicted: Sequence[int]) -> None:
        """pending -> replay -> gone. Raises ConflictError before anything is changed."""
        _check_rows(consumed, self.pending, "pending")
        _check_rows([row for row in evicted if row not in consumed], self.replay, "replay")
        for row_id in consumed:
            self.replay[row_id] = sample = self.pending.pop(row_id)
            self.learned.setdefault(self.row.latest_version + 1, []).append(sample.sample_id)
        for row_id in evicted:
            del self.replay[row_id]

    def publish(self, new: NewUpdate, now_ms: int) -> None:
        """Samples used since the last version are the lineage of this one."""
        self.updates[new.version] = UpdateRow(
            group=self.row.name,
            version=new.version,
            blob=new.blob,
            signature=new.signature,
            fingerprint=self.row.fingerprint,
            method=new.method,
            created_ms=now_ms,
            size_bytes=new.size_bytes,
            rollback_of=new.rollback_of,
            samples=len(self.learned.get(new.version, ())),
            metrics=dict(new.metrics),
            restores=new.restores,
        )
        self.row = replace(self.row, dirty=False, latest_version=new.version, last_published_ms=now_ms)

    def pause(self, paused: bool, now_ms: int) -> None:
        """Switch off or on; whoever holds the lease loses it."""
        if paused != (self.row.paused_ms is not None):
            self.row = replace(self.row, paused_ms=now_ms if paused else None)
            if paused:
                self.worker, self.lease_until_ms = None, 0

    def roll_back(self, new: NewUpdate, now_ms: int) -> None:
        """Back to where the group was at ``new.restores``."""
        assert new.restores is not None
        self.learned.pop(new.version, None)  # used since the last version: that learning is thrown away
        kept = {sample_id for version, ids in self.learned.items() if version <= new.restores for sample_id in ids}
        self.replay = {row: sample for row, sample in self.replay.items() if sample.sample_id in kept}
        self.publish(new, now_ms)
        self.row = replace(self.row, checkpoint=None, revision=self.row.revision + 1)
        self.worker, self.lease_until_ms = None, 0


def _check_rows(wanted: Sequence[int], there: Collection[int], state: str) -> None:
    missing = [row for row in wanted if row not in there]
    if missing or len(set(wanted)) != len(wanted):
        raise ConflictError(f"expected {len(wanted)} distinct {state} rows, got {len(missing)} that are not")
