"""One group of the MemoryStore: its queue, its replay and its versions. The store's lock is held by the caller."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

from cema.cloud.store.base import GroupRow, NewUpdate, UpdateRow
from cema.cloud.store.checks import descendants
from cema.cloud.store.samples import Condition, StoredSample
from cema.errors import ConflictError


@dataclass
class MemoryGroup:
    """row.pending is filled in when the row is handed out. learned: ids by the version that first used them.

    owners: the device of every id that is remembered. deleted: ids that were deleted on somebody's wish.
    """

    row: GroupRow
    worker: str | None = None
    lease_until_ms: int = 0
    served: int = 0
    pending: dict[int, StoredSample] = field(default_factory=dict)
    replay: dict[int, StoredSample] = field(default_factory=dict)
    ids: dict[bytes, int] = field(default_factory=dict)  # sample id -> received_ms
    learned: dict[int, list[bytes]] = field(default_factory=dict)
    updates: dict[int, UpdateRow] = field(default_factory=dict)
    owners: dict[bytes, str] = field(default_factory=dict)
    deleted: set[bytes] = field(default_factory=set)

    def public(self) -> GroupRow:
        return replace(self.row, pending=len(self.pending))

    def due(self, now_ms: int, lease_ms: int, tick_images: int, publish_interval_ms: int) -> bool:
        """Whether there is something to do for a worker, and nobody holds a living lease."""
        row = self.row
        tick_due = row.samples_seen // tick_images > row.ticks_done
        publication_due = row.dirty and not now_ms - publish_interval_ms < row.last_published_ms <= now_ms
        free = self.worker is None or not now_ms < self.lease_until_ms <= now_ms + 2 * lease_ms
        return row.adapting and (tick_due or publication_due) and free

    def add(self, sample: StoredSample, now_ms: int) -> None:
        self.ids[sample.sample_id], self.owners[sample.sample_id] = now_ms, sample.device_id
        self.pending[sample.row_id] = sample

    def oldest(self, limit: int, condition: Condition | None) -> list[StoredSample]:
        queue = self.pending.values()
        return [sample for sample in queue if condition in (None, sample.condition)][:limit]

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
            deleted_samples=self._deleted(new),
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
        self.row = replace(self.row, checkpoint=None)
        self._take_away()

    def delete_of_device(self, device_id: str) -> int:
        """Returns how many samples it was."""
        theirs = {sample_id for sample_id, owner in self.owners.items() if owner == device_id}
        if theirs:
            learned = {version: len(theirs.intersection(ids)) for version, ids in self.learned.items()}
            for version, count in descendants(self.updates.values(), learned).items():
                update = self.updates[version]
                self.updates[version] = replace(update, deleted_samples=update.deleted_samples + count)
            self._drop(lambda sample: sample.sample_id in theirs)
            self.deleted |= theirs
            self.owners.update(dict.fromkeys(theirs, ""))
            self._take_away()
        return len(theirs)

    def expire(self, before_ms: int, keep: int) -> int:
        """Returns how many samples it was."""
        there = sorted([*self.pending, *self.replay], reverse=True)
        kept = set(there[:keep])
        dropped = self._drop(lambda sample: sample.row_id not in kept or self.ids[sample.sample_id] < before_ms)
        if dropped:
            self._take_away()
        return dropped

    def forget(self, before_ms: int, keep_versions: int) -> list[str]:
        """Drop ids and versions that are old enough; returns the blobs of the latter."""
        kept = {sample.sample_id for sample in (*self.pending.values(), *self.replay.values())}
        self.ids = {i: at for i, at in self.ids.items() if i in kept or at >= before_ms}
        self.owners = {i: owner for i, owner in self.owners.items() if i in self.ids}
        self.deleted.intersection_update(self.ids)
        self.learned = {v: [i for i in ids if i in self.ids] for v, ids in self.learned.items()}
        old = [v for v in self.updates if v <= self.row.latest_version - keep_versions]
        return [self.updates.pop(version).blob for version in old]

    def _drop(self, chosen: Callable[[StoredSample], bool]) -> int:
        """Returns how many samples are no more there."""
        before = len(self.pending) + len(self.replay)
        self.pending = {row: sample for row, sample in self.pending.items() if not chosen(sample)}
        self.replay = {row: sample for row, sample in self.replay.items() if not chosen(sample)}
        return before - len(self.pending) - len(self.replay)

    def _deleted(self, new: NewUpdate) -> int:
        parent = self.updates.get(self.row.latest_version if new.restores is None else new.restores)
        inherited = parent.deleted_samples if parent and parent.fingerprint == self.row.fingerprint else 0
        return inherited + len(self.deleted.intersection(self.learned.get(new.version, ())))

    def _take_away(self) -> None:
        """Whoever holds the lease loses it, who has the group in memory loads it anew."""
        self.row = replace(self.row, revision=self.row.revision + 1)
        self.worker, self.lease_until_ms = None, 0


def _check_rows(wanted: Sequence[int], there: Collection[int], state: str) -> None:
    missing = [row for row in wanted if row not in there]
    if missing or len(set(wanted)) != len(wanted):
        raise ConflictError(f"expected {len(wanted)} distinct {state} rows, got {len(missing)} that are not")
