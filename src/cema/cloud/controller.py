"""The cloud's loop for one group, as in the paper's figure: uploads -> replay -> adapt step -> gate -> publish.

A worker calls ``tick`` when the group has seen another ``tick_images`` images. Every step ends in one transaction
of the store (used samples, replay, checkpoint, perhaps a new version), so that a crash at any instant loses no
sample and trains on none twice. The same class runs in the service and in the benchmark's simulator.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch

from cema.cloud.adapt.base import Adapter, Metrics, State, restarted
from cema.cloud.checkpoint import Checkpoint, decode_checkpoint, encode_checkpoint
from cema.cloud.due import due, steps
from cema.cloud.gate import Gate
from cema.cloud.replay import Replay
from cema.cloud.sharing import SharedAdapter
from cema.cloud.store.base import BlobStore, GroupRow, NewUpdate, StepCommit, Store
from cema.cloud.store.samples import Condition, StoredSample
from cema.cloud.worlds import Members, Worlds
from cema.errors import DamagedError, NotFoundError, UpdateContentError, WireError
from cema.types import Uint8Array
from cema.wire import signing
from cema.wire.bundle import Bundle
from cema.wire.messages import UpdateManifest
from cema.wire.preprocess import fit_encoded, scale_and_shift
from cema.wire.update import Encoding, encode_update, fits_float16, open_update

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Publishing:
    """How versions are made. private_key: Ed25519, None = unsigned (simulator). interval_ms: at most one per this.
    encoding: float16, for groups whose values it can hold, or float32. Training goes on from the unrounded values."""

    method: str
    private_key: str | None
    interval_ms: int
    encoding: Encoding = "float32"


class Controller:
    """Adapts one lineage of one group. ``worker`` is the name under which the group is leased."""

    def __init__(
        self,
        row: GroupRow,
        bundle: Bundle,
        shared: SharedAdapter,
        store: Store,
        blobs: BlobStore,
        publishing: Publishing,
        *,
        worker: str,
        seed: int,
        clock_ms: Callable[[], int],
        replay_dir: Path | None = None,
        seal_replay: bool = False,
    ) -> None:
        self.group, self.lineage, self.worker = row.name, row.lineage, worker
        self.bundle, self.shared, self.publishing = bundle, shared, publishing
        self.schedule = shared.schedule
        self.store, self.blobs, self.clock_ms = store, blobs, clock_ms
        self.rng = np.random.default_rng(seed)
        self.replay = Replay(self.schedule.replay_capacity, replay_dir, sealed=seal_replay)
        self.row = row
        self.checkpoint, self.revision = row.checkpoint, row.revision
        self.members = Members(store, row.name)
        self._surplus: list[int] = []  # of the store's replay, beyond what this method keeps
        self._start = self._starting_state()
        self._resume()
        self.gate = Gate()
        self._moved = False
        self._good: State = self._saved()  # what the gate goes back to: the state of the last published version

    @property
    def adapter(self) -> Adapter:
        """The shared models, with this group's state in them."""
        return self.shared.held_by(self, self._saved)

    def tick(self, row: GroupRow, stop: Callable[[], bool] = lambda: False) -> int:
        """Do what is due: full steps on the oldest uploads, else a replay step, else only count. Returns the steps.

        stop: asked before each full step; when it says so, the tick is not over, and the rest of it stays due.

        Raises ConflictError when the lease, the bundle or the version changed under us: load the group anew.
        """
        self.row = row
        schedule, made = self.schedule, 0
        # What arrives during this tick waits for the next: a busy group must not keep the worker from the others.
        conditions = self._due(row.pending)
        for condition in conditions:
            if stop():
                return made
            made += 1
            self._full_step(condition, conditions[-1], over=made == len(conditions))
        tick_due = row.samples_seen // schedule.tick_images > row.ticks_done
        if tick_due and not made and schedule.replay_only and len(self.replay) >= schedule.replay_min:
            self._replay_step()
            made += 1
        if not made:
            self._commit(self._update_if_due(row.dirty))
        return made

    def _due(self, pending: int) -> list[Condition | None]:
        """Of what to make a full step each; None: of whatever is oldest."""
        schedule = self.schedule
        if self.shared.stats_owner == "cloud" or pending < schedule.least_uploads:
            return [None] * steps(pending, schedule)
        return [*due(self.store.waiting(self.group), self.worlds.now, schedule)]

    def _full_step(self, condition: Condition | None, last: Condition | None, *, over: bool) -> None:
        """Uploads and replay -> adapter -> gate -> one transaction. Uploads join replay after their step. last: what
        the tick ends with, over: whether this is it. What a group's only device has left again is not published."""
        uploads = self.store.pending(self.group, self.schedule.step_uploads, condition)
        good, images = self._decode(uploads)
        metrics = self._learn(images, condition) if good else None
        rows, usable = [sample.row_id for sample in uploads], [sample.row_id for sample in good]
        bad = sorted(set(rows) - set(usable))
        evicted = self.replay.extend(usable, images, [sample.condition for sample in good])
        visit = bool(self.worlds.of_one) and condition != last
        self._finish(metrics, consumed=rows, evicted=[*evicted, *bad], publish=not visit, over=over)

    def _learn(self, images: Sequence[Uint8Array], condition: Condition | None) -> Metrics | None:
        """One adapt step on uploads and replay, of one condition where that counts; None if it was not made."""
        if condition is not None and self.worlds.enter(condition, self.adapter, self.members.now()):
            self._good, self._moved = self.adapter.state(), True
        schedule, uploads_BCHW, replayed_BCHW = self.schedule, self._input(images), None
        held = len(self.replay) if condition is None else self.replay.count(condition)
        if held >= schedule.replay_min:
            replayed_BCHW = self._input(self.replay.draw(schedule.replay_draw, self.rng, condition))
        self.gate.before(self.adapter, uploads_BCHW)
        return self.adapter.step(uploads_BCHW, replayed_BCHW)

    def _replay_step(self) -> None:
        images_BCHW = self._input(self.replay.draw(self.schedule.replay_only, self.rng))
        self.gate.before(self.adapter, images_BCHW)
        self._finish(self.adapter.replay_step(images_BCHW))

    def _finish(
        self,
        metrics: Metrics | None,
        *,
        consumed: Sequence[int] = (),
        evicted: Sequence[int] = (),
        publish: bool = True,
        over: bool = True,
    ) -> None:
        """Gate, checkpoint, publish if due, commit."""
        refusal = self.gate.refusal(self.adapter) if metrics is not None else None
        if refusal:
            log.warning("group %s: step taken back: %s", self.group, refusal)
            self.adapter.load_state(self._good)
        moved, self._moved = self._moved, False
        changed = moved or (metrics is not None and not refusal)
        update = self._update_if_due(changed, metrics or {}) if publish else None
        checkpoint = None
        if moved or metrics is not None:
            method, worlds = self.publishing.method, self.worlds
            saved = Checkpoint(self.adapter.state(), self.rng, worlds.of_one, worlds.learned, method)
            checkpoint = self.checkpoint = self.blobs.put(encode_checkpoint(saved))
        self._commit(update, consumed, evicted, checkpoint, over=over)

    def _update_if_due(self, changed: bool, metrics: Metrics | None = None) -> NewUpdate | None:
        """The next version, if something changed and the last one is old enough."""
        now = self.clock_ms()
        too_soon = 0 <= now - self.row.last_published_ms < self.publishing.interval_ms  # below 0: a clock set back
        if too_soon or not (changed or self.row.dirty):
            return None
        version, parameters = self.row.latest_version + 1, self.adapter.edge_parameters()
        manifest = UpdateManifest(
            group=self.group,
            version=version,
            fingerprint=self.bundle.manifest.fingerprint,
            method=self.publishing.method,
            created_at_ms=now,
            encoding=self.publishing.encoding if fits_float16(parameters) else "float32",
            stats_owner=self.adapter.stats_owner,
            domain=self.worlds.good_in(self.members.now()) or msgspec.UNSET,
        )
        try:
            data = encode_update(manifest, parameters)
            open_update(data, self.bundle.manifest)
        except UpdateContentError as error:
            log.warning("group %s: version %d not published: %s", self.group, version, error)
            self.adapter.load_state(self._good)
            return None
        self._good = self.adapter.state()
        key = self.publishing.private_key
        signature = signing.sign(data, key) if key else ""
        return NewUpdate(version, self.blobs.put(data), signature, len(data), manifest.method, metrics or {})

    def _commit(
        self,
        update: NewUpdate | None,
        consumed: Sequence[int] = (),
        evicted: Sequence[int] = (),
        checkpoint: str | None = None,
        *,
        over: bool = True,
    ) -> None:
        now, row = self.clock_ms(), self.row
        due = max(row.samples_seen // self.schedule.tick_images, row.ticks_done) if over else row.ticks_done
        missed = max(due - row.ticks_done - 1, 0)
        self.store.commit_step(
            StepCommit(
                group=self.group,
                worker=self.worker,
                lineage=self.lineage,
                ticks_done=due,
                ticks_dropped=row.ticks_dropped + missed,
                consumed=consumed,
                evicted=[*self._surplus, *evicted],
                checkpoint=checkpoint,
                update=update,
            ),
            now,
        )
        self._surplus = []
        self.row = self.store.group(self.group)

    def _resume(self) -> None:
        """Random numbers, replay and worlds as the last committed step left them."""
        last = self._last_step()
        if last is not None:
            self.rng = last.rng
        kept, images = self._decode(self.store.replay(self.group))
        rows, conditions = [sample.row_id for sample in kept], [sample.condition for sample in kept]
        self._surplus = self.replay.extend(rows, images, conditions)
        now: dict[str, int] = {}
        if self.shared.stats_owner == "edge":
            members = self.members.now()
            now = dict(condition for condition in conditions if not members or condition.device_id in members)
            now |= last.now if last else {}
        self.worlds = Worlds(self.shared.initial, now, last.learned if last else {})

    def _saved(self) -> State:
        """The adapter's state as of the last committed step."""
        last = self._last_step()
        return self._start if last is None else last.state

    def _last_step(self) -> Checkpoint | None:
        """What the last step left; None before the first. A damaged file is as good as none: a group that learns
        again from the source is better off than one that never learns again. So is another method's."""
        if self.checkpoint is None:
            return None
        try:
            last = decode_checkpoint(self.blobs.get(self.checkpoint))
        except (DamagedError, NotFoundError) as error:
            log.error("group %s: learning begins anew, the last checkpoint is lost: %s", self.group, error)
            return None
        method = self.publishing.method
        if last.method not in ("", method) or not self.shared.initial.keys() <= last.state.keys():
            log.info("group %s: learning begins anew, by %s: the last step was another method's", self.group, method)
            return None
        return last

    def _starting_state(self) -> State:
        """Without a checkpoint: the source, or what a rollback has just restored."""
        initial, row = self.shared.initial, self.row
        if self.checkpoint is not None or row.latest_version == 0:
            return initial
        latest = self.store.update(self.group, row.latest_version)
        if not latest.restores or latest.fingerprint != row.fingerprint:
            return initial
        try:
            restored = open_update(self.blobs.get(latest.blob), self.bundle.manifest)
        except (DamagedError, NotFoundError) as error:
            log.error("group %s: learning begins at the source, the restored version is lost: %s", self.group, error)
            return initial
        return restarted(initial, restored.parameters)

    def _decode(self, samples: Sequence[StoredSample]) -> tuple[list[StoredSample], list[Uint8Array]]:
        """Pixels at the model's size; what cannot be decoded is left out and logged."""
        good, images = [], []
        for sample in samples:
            try:
                images.append(fit_encoded(sample.image, self.bundle.manifest.preprocess, sample.codec))
                good.append(sample)
            except WireError as error:
                log.warning("group %s: sample %s skipped: %s", self.group, sample.sample_id.hex(), error)
        return good, images

    def _input(self, images: Sequence[Uint8Array] | Uint8Array) -> torch.Tensor:
        """As ``normalise``, to the bit, in channels-last order: what comes out of the replay buffer is so already."""
        scale, shift = (
            torch.from_numpy(each).view(1, 3, 1, 1) for each in scale_and_shift(self.bundle.manifest.preprocess)
        )
        pixels_BHWC = torch.from_numpy(images if isinstance(images, np.ndarray) else np.stack(images))
        return pixels_BHWC.permute(0, 3, 1, 2).to(torch.float32).mul_(scale).add_(shift)
