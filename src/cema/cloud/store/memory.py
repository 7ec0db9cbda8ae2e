"""MemoryStore: the contract in one process, for the benchmark's lock-step simulator and for tests.

Nothing survives it. One lock makes every method a transaction; a step is checked completely before the first change.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Concatenate, ParamSpec, TypeVar

from cema.cloud.store.base import DeviceRow, GroupRow, NewUpdate, StepCommit, UpdateRow, UserRow
from cema.cloud.store.checks import base_mismatches, check_lineage, check_step, check_version
from cema.cloud.store.memory_credentials import MemoryCredentials
from cema.cloud.store.memory_group import MemoryGroup
from cema.cloud.store.samples import Condition, StoredSample, Waiting
from cema.errors import NotFoundError
from cema.wire.messages import SampleBatch, UploadReceipt

P = ParamSpec("P")
R = TypeVar("R")


def _locked(method: Callable[Concatenate[MemoryStore, P], R]) -> Callable[Concatenate[MemoryStore, P], R]:
    def transaction(self: MemoryStore, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self._lock:
            return method(self, *args, **kwargs)

    return transaction


class MemoryStore:
    """Store in dictionaries."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._groups: dict[str, MemoryGroup] = {}
        self._credentials = MemoryCredentials()
        self._rows = 0
        self._garbage: set[str] = set()

    def ping(self) -> None:
        """Always answers."""

    def close(self) -> None:
        """Nothing to close."""

    # groups

    @_locked
    def put_group(self, name: str, fingerprint: str, bundle_blob: str, adaptation: str, now_ms: int) -> GroupRow:
        old = self._groups.get(name)
        if old is not None and old.row.fingerprint == fingerprint:
            old.row = replace(old.row, adaptation=adaptation)
            return old.public()
        lineage, version = (1, 0) if old is None else (old.row.lineage + 1, old.row.latest_version)
        row = GroupRow(name, fingerprint, lineage, bundle_blob, version, 0, 0, 0, None, False, 0, adaptation)
        self._groups[name] = new = MemoryGroup(row)
        if old is not None:
            new.row = replace(row, revision=old.row.revision, paused_ms=old.row.paused_ms)
            new.served, new.ids, new.updates = old.served, old.ids, old.updates
            new.learned = {v: ids for v, ids in old.learned.items() if v <= version}
            new.owners, new.deleted = old.owners, old.deleted
            self._discard([old.row.bundle_blob, old.row.checkpoint])
        return new.public()

    @_locked
    def group(self, name: str) -> GroupRow:
        return self._find(name).public()

    state = group

    @_locked
    def groups(self) -> list[GroupRow]:
        return [self._groups[name].public() for name in sorted(self._groups)]

    @_locked
    def pause(self, group: str, paused: bool, now_ms: int) -> GroupRow:
        found = self._find(group)
        found.pause(paused, now_ms)
        return found.public()

    @_locked
    def latest_versions(self) -> dict[str, int]:
        return {name: group.row.latest_version for name, group in self._groups.items()}

    # devices

    @_locked
    def enrol(
        self, device_id: str, group: str, token_sha256: str, now_ms: int, *, token_expires_ms: int | None = None
    ) -> DeviceRow:
        self._find(group)
        return self._credentials.enrol(
            DeviceRow(device_id, group, now_ms, None, 0, 0, {}, token_expires_ms), token_sha256
        )

    @_locked
    def revoke(self, device_id: str, now_ms: int) -> DeviceRow:
        return self._credentials.revoke(device_id, now_ms)

    @_locked
    def devices(self, group: str | None = None) -> list[DeviceRow]:
        return [d for _, d in sorted(self._credentials.devices.items()) if group is None or d.group == group]

    @_locked
    def device_by_token(self, token_sha256: str) -> DeviceRow | None:
        return self._credentials.use(token_sha256)

    @_locked
    def propose_key(self, token_sha256: str, key_sha256: str) -> DeviceRow | None:
        return self._credentials.propose(token_sha256, key_sha256)

    @_locked
    def devices_changed_ms(self) -> int:
        rows = self._credentials.devices.values()
        return max((max(row.created_ms, row.revoked_ms or 0) for row in rows), default=0)

    @_locked
    def ask_rotation(self, device_id: str) -> DeviceRow:
        return self._credentials.ask_rotation(device_id)

    @_locked
    def pause_device(self, device_id: str, paused: bool, now_ms: int) -> DeviceRow:
        return self._credentials.pause(device_id, paused, now_ms)

    # users

    @_locked
    def add_user(self, name: str, role: str, token_sha256: str, now_ms: int) -> UserRow:
        return self._credentials.add_user(UserRow(name, role, now_ms, None), token_sha256)

    @_locked
    def revoke_user(self, name: str, now_ms: int) -> UserRow:
        return self._credentials.revoke_user(name, now_ms)

    @_locked
    def users(self) -> list[UserRow]:
        return [user for _, user in sorted(self._credentials.users.items())]

    @_locked
    def user_by_token(self, token_sha256: str) -> UserRow | None:
        return self._credentials.user(token_sha256)

    # samples

    @_locked
    def add_samples(self, group: str, batch: SampleBatch, now_ms: int) -> UploadReceipt:
        found = self._find(group)
        growth = self._credentials.account_for_boot(batch, now_ms)
        fits, accepted = batch.fingerprint == found.row.fingerprint, 0
        if fits:
            found.row = replace(found.row, samples_seen=found.row.samples_seen + growth)
        for sample in batch.samples if fits else ():
            if sample.sample_id not in found.ids:
                self._rows += 1
                accepted += 1
                found.add(
                    StoredSample(
                        self._rows, sample.sample_id, sample.codec, sample.image, batch.device_id, sample.known_domain
                    ),
                    now_ms,
                )
        return UploadReceipt(
            accepted=accepted,
            duplicates=len(batch.samples) - accepted if fits else 0,
            rejected=[] if fits else base_mismatches(batch, found.row.fingerprint),
            latest_version=found.row.latest_version,
            server_time_ms=now_ms,
        )

    @_locked
    def pending(self, group: str, limit: int, condition: Condition | None = None) -> list[StoredSample]:
        return self._find(group).oldest(limit, condition)

    @_locked
    def waiting(self, group: str) -> dict[Condition, Waiting]:
        found: dict[Condition, Waiting] = {}
        for row_id, sample in self._find(group).pending.items():
            before = found.get(sample.condition, Waiting(0, 0))
            found[sample.condition] = Waiting(before.uploads + 1, max(before.newest, row_id))
        return found

    @_locked
    def replay(self, group: str, after_row: int = 0) -> list[StoredSample]:
        return [sample for row, sample in sorted(self._find(group).replay.items()) if row > after_row]

    @_locked
    def delete_samples(self, device_id: str, group: str | None = None) -> dict[str, int]:
        self._credentials.find(device_id)
        names = self._groups if group is None else [group]
        counts = ((name, self._find(name).delete_of_device(device_id)) for name in names)
        return {name: count for name, count in counts if count}

    @_locked
    def expire_samples(self, before_ms: int, keep: int) -> dict[str, int]:
        counts = ((name, found.expire(before_ms, keep)) for name, found in self._groups.items())
        return {name: count for name, count in counts if count}

    # work

    @_locked
    def claim(
        self, worker: str, now_ms: int, *, lease_ms: int, tick_images: int, publish_interval_ms: int
    ) -> GroupRow | None:
        for group in sorted(self._groups.values(), key=lambda group: (group.served, group.row.name)):
            if group.due(now_ms, lease_ms, tick_images, publish_interval_ms):
                group.worker, group.lease_until_ms = worker, now_ms + lease_ms
                group.served = max(g.served for g in self._groups.values()) + 1
                return group.public()
        return None

    @_locked
    def renew(self, group: str, worker: str, now_ms: int, lease_ms: int) -> bool:
        found = self._groups.get(group)
        if found is None or found.worker != worker:
            return False
        found.lease_until_ms = now_ms + lease_ms
        return True

    @_locked
    def release(self, group: str, worker: str) -> None:
        found = self._groups.get(group)
        if found is not None and found.worker == worker:
            found.worker, found.lease_until_ms = None, 0

    @_locked
    def commit_step(self, step: StepCommit, now_ms: int) -> None:
        group = self._find(step.group)
        check_step(step, group.worker, group.row.lineage, group.row.latest_version)
        group.move(step.consumed, step.evicted)
        row = replace(group.row, ticks_done=step.ticks_done, ticks_dropped=step.ticks_dropped)
        if step.checkpoint is not None:
            self._discard([row.checkpoint])
            row = replace(row, checkpoint=step.checkpoint, dirty=True)
        group.row = row
        if step.update is not None:
            group.publish(step.update, now_ms)

    @_locked
    def roll_back(self, group: str, lineage: int, update: NewUpdate, now_ms: int) -> GroupRow:
        found = self._find(group)
        check_lineage(group, lineage, found.row.lineage)
        check_version(group, update.version, found.row.latest_version)
        self._discard([found.row.checkpoint])
        found.roll_back(update, now_ms)
        return found.public()

    # updates

    @_locked
    def update(self, group: str, version: int) -> UpdateRow:
        found = self._groups.get(group)
        if found is None or version not in found.updates:
            raise NotFoundError(f"group {group!r} has no version {version}")
        return found.updates[version]

    @_locked
    def updates(self, group: str, limit: int = 100) -> list[UpdateRow]:
        updates = self._find(group).updates
        return [updates[version] for version in sorted(updates, reverse=True)[:limit]]

    @_locked
    def update_samples(self, group: str, version: int) -> list[bytes]:
        self.update(group, version)
        return list(self._find(group).learned.get(version, ()))

    # house-keeping

    @_locked
    def forget(self, now_ms: int, *, id_memory_ms: int, keep_versions: int) -> list[str]:
        for group in self._groups.values():
            self._discard(group.forget(now_ms - id_memory_ms, keep_versions))
        self._credentials.forget_boots(now_ms - id_memory_ms)
        rows = [group.row for group in self._groups.values()]
        living = {row.bundle_blob for row in rows} | {row.checkpoint for row in rows}
        living |= {update.blob for group in self._groups.values() for update in group.updates.values()}
        unreferred, self._garbage = sorted(self._garbage - living), set()
        return unreferred

    def _find(self, name: str) -> MemoryGroup:
        if name not in self._groups:
            raise NotFoundError(f"there is no group {name!r}")
        return self._groups[name]

    def _discard(self, blobs: Iterable[str | None]) -> None:
        self._garbage.update(blob for blob in blobs if blob is not None)
