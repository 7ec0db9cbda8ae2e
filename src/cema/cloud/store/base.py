"""What web process and workers agree on: rows, and the Store protocol (tests/contract runs on every implementation).

Every method is one transaction and is durable when it returns. Times are Unix milliseconds, passed in by the
caller, so that tests own the clock. All methods may be called from several threads and processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cema.cloud.store.samples import Condition, StoredSample, Waiting
from cema.wire.messages import SampleBatch, UploadReceipt


@dataclass(frozen=True)
class GroupState:
    """Of a group. lineage: rises when a new bundle replaces the old one. latest_version: 0 = source.

    samples_seen: images predicted by all devices, cumulative within the lineage. ticks_done: of the schedule.
    checkpoint: blob of the adaptation state, None before the first step and after a rollback. dirty: stepped since the
    last publication. revision: rises when an operator changes what has been learned: a worker that has the group in
    memory loads it anew. adaptation: on | off, as configured. paused_ms: since when an operator has it switched off.
    """

    name: str
    fingerprint: str
    lineage: int
    bundle_blob: str
    latest_version: int
    samples_seen: int
    ticks_done: int
    ticks_dropped: int
    checkpoint: str | None
    dirty: bool
    last_published_ms: int
    adaptation: str
    revision: int = 0
    paused_ms: int | None = None

    @property
    def adapting(self) -> bool:
        """Whether both configuration and operators want the group to adapt."""
        return self.adaptation == "on" and self.paused_ms is None


@dataclass(frozen=True)
class GroupRow(GroupState):
    """pending: samples that no step has used yet; counting them takes the longer the more there are."""

    pending: int = 0


@dataclass(frozen=True)
class DeviceRow:
    """An enrolled device. samples_seen, dropped: as last reported. last_seen_ms: 0 = never.

    token_expires_ms: end of the one-time token that it still has to exchange, None = it has a key. rotate: it has been
    asked to take a new one. paused_ms: since when an operator has switched it off.
    """

    device_id: str
    group: str
    created_ms: int
    revoked_ms: int | None
    last_seen_ms: int
    samples_seen: int
    dropped: Mapping[str, int]
    token_expires_ms: int | None = None
    rotate: bool = False
    paused_ms: int | None = None


@dataclass(frozen=True)
class UserRow:
    """Somebody who looks at the cloud, or administers it. role: reader | operator."""

    name: str
    role: str
    created_ms: int
    revoked_ms: int | None


@dataclass(frozen=True)
class UpdateRow:
    """A published version. blob: sha256 of its bytes (= content id). samples: how many new ones it was trained on.

    rollback_of: the version that it takes back; restores: the one whose parameters it has again, 0 = source. Both None
    for a version that was learned. deleted_samples: how many of those that it, or what it goes back to, learned from
    were deleted since on somebody's wish.
    """

    group: str
    version: int
    blob: str
    signature: str
    fingerprint: str
    method: str
    created_ms: int
    size_bytes: int
    rollback_of: int | None
    samples: int
    metrics: Mapping[str, float]
    restores: int | None = None
    deleted_samples: int = 0


@dataclass(frozen=True)
class NewUpdate:
    """A version to be published: its bytes are in the blob store. rollback_of, restores: as in ``UpdateRow``."""

    version: int
    blob: str
    signature: str
    size_bytes: int
    method: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    rollback_of: int | None = None
    restores: int | None = None


@dataclass(frozen=True)
class StepCommit:
    """The end of an adapt step, all or nothing.

    worker: must still hold the group's lease. lineage: must still be the group's. consumed: rows that leave
    "pending" for "replay". evicted: rows that leave replay; their payload is deleted, their id is remembered.
    ticks_done, ticks_dropped: new totals. checkpoint: blob of the new state. update: published in the same transaction;
    None leaves the group dirty.
    """

    group: str
    worker: str
    lineage: int
    ticks_done: int
    ticks_dropped: int
    consumed: Sequence[int] = ()
    evicted: Sequence[int] = ()
    checkpoint: str | None = None
    update: NewUpdate | None = None


class Store(Protocol):
    """Rows of the cloud. Raises StorageError when disk or database fail, NotFoundError for unknown names."""

    # groups
    def put_group(self, name: str, fingerprint: str, bundle_blob: str, adaptation: str, now_ms: int) -> GroupRow:
        """Create a group, or give it another bundle: a new lineage (pending samples and replay are dropped,
        samples_seen, ticks and checkpoint start again; versions go on rising). The same bundle again changes
        nothing but adaptation."""

    def group(self, name: str) -> GroupRow: ...

    def state(self, name: str) -> GroupState:
        """As ``group``, cheap however much waits: what is looked up for each request of a device."""

    def groups(self) -> list[GroupRow]: ...

    def pause(self, group: str, paused: bool, now_ms: int) -> GroupRow:
        """Switch adaptation of a group off or on, whatever its configuration says. Whoever holds the lease loses it: no
        version comes after this. The same again changes nothing."""

    def latest_versions(self) -> dict[str, int]:
        """Latest version of every group, cheap: the long poll looks here."""

    # devices
    def enrol(
        self, device_id: str, group: str, token_sha256: str, now_ms: int, *, token_expires_ms: int | None = None
    ) -> DeviceRow:
        """token_expires_ms: the token is a one-time token until then; None: it is the device's key.
        Raises ConflictError if the device exists and is not revoked; a revoked one is enrolled anew."""

    def revoke(self, device_id: str, now_ms: int) -> DeviceRow: ...

    def devices(self, group: str | None = None) -> list[DeviceRow]: ...

    def device_by_token(self, token_sha256: str) -> DeviceRow | None:
        """The device of that token or key, None if unknown or revoked. A proposed key that comes here for the first
        time is in use: what the device had before is worthless from now on."""

    def propose_key(self, token_sha256: str, key_sha256: str) -> DeviceRow | None:
        """Let the device of that token have this key as well (in the place of one proposed before); the same again is
        fine. None if the token is unknown or revoked. Raises EnrolmentError if it is a one-time token that has bought
        another key, ConflictError if somebody else has the key."""

    def devices_changed_ms(self) -> int:
        """When a device was last enrolled or revoked; 0 = never."""

    def ask_rotation(self, device_id: str) -> DeviceRow:
        """Note that a device shall take a new key; forgotten once it has. Revoked ones are not found."""

    def pause_device(self, device_id: str, paused: bool, now_ms: int) -> DeviceRow:
        """As ``pause``, for one device: it runs the source and uploads nothing. Revoked ones are not found."""

    # users
    def add_user(self, name: str, role: str, token_sha256: str, now_ms: int) -> UserRow:
        """Raises ConflictError if the user exists and is not revoked."""

    def revoke_user(self, name: str, now_ms: int) -> UserRow: ...

    def users(self) -> list[UserRow]: ...

    def user_by_token(self, token_sha256: str) -> UserRow | None:
        """The user of that token, None if unknown or revoked."""

    # samples
    def add_samples(self, group: str, batch: SampleBatch, now_ms: int) -> UploadReceipt:
        """Store a batch once: ids seen before are counted as duplicates; wrong fingerprints are rejected per sample.
        Also takes over samples_seen (cumulative per boot: the growth is added to the group) and the drop counters."""

    def pending(self, group: str, limit: int, condition: Condition | None = None) -> list[StoredSample]:
        """The oldest samples that no step has used, in order of arrival; of one condition, or of all."""

    def waiting(self, group: str) -> dict[Condition, Waiting]:
        """What of each condition no step has used; the one with the oldest sample first."""

    def replay(self, group: str, after_row: int = 0) -> list[StoredSample]:
        """Samples in replay with row_id > after_row, in order."""

    def delete_samples(self, device_id: str, group: str | None = None) -> dict[str, int]:
        """Delete the pictures of a device, of one group or all, for good, and forget whose the samples were. Returns
        how many it was by group, groups without any left out. Versions that learned from one of them say so from now
        on (``UpdateRow.deleted_samples``), and so will those that go on from there. The random ids are remembered as
        usual, so that a late repetition brings nothing back. Whoever holds the lease of such a group loses it.
        Raises NotFoundError for an unknown device or group."""

    def expire_samples(self, before_ms: int, keep: int) -> dict[str, int]:
        """Delete the pictures of samples that came before ``before_ms``, and of all but the newest ``keep`` of each
        group. Returns how many it was, as ``delete_samples``; whoever holds the lease of such a group loses it."""

    # work
    def claim(
        self, worker: str, now_ms: int, *, lease_ms: int, tick_images: int, publish_interval_ms: int
    ) -> GroupRow | None:
        """Lease one group that has a tick due (samples_seen // tick_images > ticks_done), or is dirty and was last
        published at least publish_interval_ms ago; not under a living lease (not even its own), adapting.
        Least recently served first. A publication in the future, and a lease that ends later than twice lease_ms from
        now, are of a clock that has been set back since: neither counts."""

    def renew(self, group: str, worker: str, now_ms: int, lease_ms: int) -> bool:
        """Prolong the lease; False if it is lost."""

    def release(self, group: str, worker: str) -> None: ...

    def commit_step(self, step: StepCommit, now_ms: int) -> None:
        """Raises ConflictError if lease, lineage or version are no longer ours: nothing is changed."""

    def roll_back(self, group: str, lineage: int, update: NewUpdate, now_ms: int) -> GroupRow:
        """Publish a rollback, and take the group back to where it was at ``update.restores``: no checkpoint, and what
        was learned later leaves replay (its payload is deleted). Whoever holds the lease loses it, so that a step under
        way changes nothing. Raises ConflictError if lineage or version are no longer what ``update`` was made for."""

    # updates
    def update(self, group: str, version: int) -> UpdateRow: ...

    def updates(self, group: str, limit: int = 100) -> list[UpdateRow]:
        """Newest first."""

    def update_samples(self, group: str, version: int) -> list[bytes]:
        """Ids of the samples that this version learned from and its predecessor had not."""

    # house-keeping
    def forget(self, now_ms: int, *, id_memory_ms: int, keep_versions: int) -> list[str]:
        """Drop expired sample ids and old versions; returns the blobs that nothing refers to any more."""

    def ping(self) -> None:
        """Raises StorageError if the store cannot answer."""

    def close(self) -> None: ...


class BlobStore(Protocol):
    """Immutable bytes by sha256 (hex)."""

    def put(self, data: bytes) -> str:
        """Durable (fsync of file and folder) when it returns; the same bytes twice is fine."""

    def get(self, blob: str) -> bytes:
        """Raises NotFoundError; DamagedError if the content no longer has its hash; StorageError."""

    def delete(self, blob: str) -> None: ...
