"""The device: reads as the paper's figure (CEMA, Chen et al., ICLR 2024, Fig. 1, left half).

    images -> preprocess -> session -> softmax, entropy -> selection -> predictions
                               ^                 |            |
              poller -> updater <- follower <----+     writer -> outbox -> sender -> cloud

``predict`` touches memory only: never disk, network or cloud. All that waits lives in uplink.py's threads; a new
version is a reference that is exchanged between two batches (updater.py).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import numpy as np

from cema.config import DeviceConfig, SelectionConfig
from cema.config_files import load_device
from cema.edge.client import CloudClient
from cema.edge.clock import ServerClock
from cema.edge.counters import EdgeCounters
from cema.edge.follower import Follower, Seen
from cema.edge.identity import Identity
from cema.edge.outbox import Outbox
from cema.edge.pacing import PacedSelector
from cema.edge.pictures import BeforeUpload, Image, fitted, guard, passed_through
from cema.edge.routing import Session
from cema.edge.selection import BoolArray, FollowsStream, SampleSelector, Selector
from cema.edge.session import Answers
from cema.edge.slots import OUTBOX_FILE, StateFolder
from cema.edge.updater import Updater
from cema.edge.uplink import Uplink
from cema.edge.verification import open_bundle, place_of, trusted_key
from cema.edge.writer import Captured
from cema.errors import ConflictError, WireError
from cema.types import Prediction, Uint8Array
from cema.wire.bundle import Bundle


class EdgeAgent:
    """Predicts on a device and keeps its model up to date.

    Parameters
    ----------
    config: ``device.toml``. bundle: the model; None takes the one of the state folder, else fetches the group's.
    make_selector: other sample filters than the method's. clock: Unix seconds.
    before_upload: has the last word on every picture: uint8 [H, W, 3] of the model's size in, what may leave out, None
    for nothing (counted as ``withheld``). What it raises withholds the picture, too. Runs in a background thread.

    Raises ConfigError, DependencyError, StorageError, ConflictError (state folder in use), BundleError; without a
    stored bundle also what fetching one raises.

    >>> with EdgeAgent.from_file("device.toml") as agent:  # doctest: +SKIP
    ...     agent.predict([image_HWC])
    """

    def __init__(
        self,
        config: DeviceConfig,
        *,
        bundle: Bundle | None = None,
        make_selector: Callable[[SelectionConfig, int], SampleSelector] | None = None,
        before_upload: BeforeUpload | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        key = trusted_key(config)
        self._config, self._make_selector, self._wall_clock = config, make_selector, clock
        self._clock = ServerClock(clock)
        self._guard = guard(config.uplink, before_upload)
        self.counters = EdgeCounters()
        self._mutex = threading.Lock()
        self._seq = 0
        self._closed = False
        self._last_status: dict[str, object] | None = None
        self._folder = StateFolder(config.state_dir)
        try:
            self._start(bundle, key)
        except BaseException:
            self._folder.close()
            raise

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> EdgeAgent:
        """An agent as ``device.toml`` describes it."""
        return cls(load_device(path))

    def predict(self, images: Sequence[Image]) -> list[Prediction]:
        """Predict a batch and queue what is worth sending. Thread-safe; never waits for disk, network or cloud.

        images: uint8 [H, W, 3] each, of any size, or encoded bytes (jpeg, png, webp); an empty list gives one.
        Raises ImageError (``values["index"]`` says which; the agent is as before), ConflictError after ``close``.
        """
        if self._closed:
            raise ConflictError("this agent is closed", hint="make a new EdgeAgent")
        if len(images) == 0:
            return []
        started_s = time.perf_counter()
        session = self._updater.session
        recipe = session.bundle.manifest.preprocess
        fitted_HWC = [fitted(index, image, recipe) for index, image in enumerate(images)]
        fitted_BHWC = np.stack(fitted_HWC) if len(fitted_HWC) > 1 else fitted_HWC[0][np.newaxis]
        session, answers = self._answer(session, fitted_BHWC)
        domain = self._follower.domain
        kept = self._select(session, answers, domain).tolist()
        predictions = _predictions(answers, kept, session)
        self._hand_over(session, images, fitted_BHWC, predictions, domain)
        self.counters.predicted(len(images), sum(kept), time.perf_counter() - started_s)
        self._follower.wake()
        return predictions

    @property
    def classes(self) -> list[str]:
        """Names of the model's classes, by label."""
        return self._updater.session.bundle.manifest.classes

    def status(self) -> dict[str, object]:
        """Version, counters, queues, latency and the last error, ready for JSON; after ``close``, the last ones."""
        if self._last_status is not None:
            return self._last_status
        counters, session = self.counters, self._updater.session
        p50_ms, p99_ms = counters.latency_ms()
        sender = self._uplink.sender
        return {
            "group": self._config.group,
            "device_id": self._config.device_id,
            "fingerprint": session.fingerprint,
            "version": session.version,
            "stats_revision": session.revision,
            "looks": self._follower.looks,
            "adaptation": "on" if self._updater.adapting else "off",
            "samples_seen": counters.samples_seen,
            "selected": counters.selected,
            "uploads": counters.uploads,
            "uploaded": counters.uploaded,
            "dropped": sender.dropped() if sender else dict(counters.dropped),
            "memory_samples": len(self._uplink.writer),
            "outbox_samples": len(self._outbox),
            "outbox_bytes": self._outbox.size_bytes,
            "bytes_up": counters.bytes_up,
            "bytes_down": counters.bytes_down,
            "updates_applied": counters.updates_applied,
            "updates_refused": counters.updates_refused,
            "latency_ms_p50": p50_ms,
            "latency_ms_p99": p99_ms,
            "last_error": counters.last_error,
            "written_at_ms": round(self._wall_clock() * 1000),
        }

    def settle(self, timeout_s: float) -> bool:
        """Wait until everything selected so far has reached the cloud; False if it has not within ``timeout_s``."""
        return self._uplink.settle(timeout_s)

    def close(self) -> None:
        """Stop the threads and commit what is in memory; waiting samples are sent after the next start."""
        with self._mutex:
            if self._closed:
                return
            self._closed = True
        self._uplink.close()
        self._last_status = self.status()
        self._outbox.close()
        self._folder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, given: Bundle | None, key: str | None) -> None:
        config = self._config
        self._drop_what_must_not_leave()
        client = self._client() if config.runtime.adaptation == "on" else None
        bundle = given or self._stored_bundle(key) or self._fetched_bundle(client or self._client(), key)
        self._updater = Updater(bundle, config, self._folder, self.counters)
        self._outbox = Outbox(self._folder.path / OUTBOX_FILE, config.outbox, self._updater.fingerprint, patient=True)
        self._follower = Follower(self._updater, config, self.counters, np.random.default_rng())
        self._uplink = Uplink(
            client, self._outbox, self._updater, config, self.counters,
            write_status=lambda: self._folder.write_status(self.status()), clock=self._clock,
            follower=self._follower, guard=self._guard,
        )  # fmt: skip
        self._renew_selector(self._updater.session, self._updater.following)
        self._uplink.start()

    def _drop_what_must_not_leave(self) -> None:
        """Samples of the group that this device was in before, and all if none may be sent any more."""
        config, group = self._config, self._folder.group
        if group not in (None, config.group) or not config.uplink.send_samples:
            Outbox(self._folder.path / OUTBOX_FILE, config.outbox, fingerprint="").close()
        self._folder.set_group(config.group)

    def _client(self) -> CloudClient:
        config = self._config
        identity = Identity(config, self._folder)
        return CloudClient(config.url, config.group, identity, config=config.uplink, counters=self.counters)

    def _stored_bundle(self, key: str | None) -> Bundle | None:
        stored = self._folder.bundle()
        if stored is None:
            return None
        try:
            return open_bundle(stored.data, stored.signature, key)
        except WireError as error:  # damaged, or signed by a key of before: the cloud has a good one
            self.counters.failed(error)
            return None

    def _fetched_bundle(self, client: CloudClient, key: str | None) -> Bundle:
        data, signature, statement = client.bundle()
        bundle = open_bundle(data, signature, key)
        place = place_of(statement, data, key, self._config.group, self._folder.bundle_place)
        self._folder.put_bundle(data, signature, place)
        return bundle

    def _renew_selector(self, session: Session, following: bool) -> None:
        paced = following and self._config.selection.enabled
        make = self._make_selector or (PacedSelector if paced else Selector)
        self._selector = make(self._config.selection, len(session.bundle.manifest.classes))
        self._paced = self._selector if following and isinstance(self._selector, FollowsStream) else None
        self._selects_for = session.fingerprint, following

    def _select(self, session: Session, answers: Answers, domain: int) -> BoolArray:
        with self._mutex:
            following = self._updater.following
            if (session.fingerprint, following) != self._selects_for:
                self._renew_selector(session, following)
            lost = following and domain == 0  # the cloud could not tell in what world a sample was seen
            if self._paced is not None:
                follower = self._follower
                self._paced.follow(follower.trust, follower.take_change(), follower.narrow or lost)
            kept_B = self._selector.select(answers.probabilities_BK, answers.entropy_B)
        sends = self._updater.adapting and self._config.uplink.send_samples
        return kept_B if sends and not lost else np.zeros_like(kept_B)

    def _answer(self, session: Session, fitted_BHWC: Uint8Array) -> tuple[Session, Answers]:
        """What the model says, by statistics that follow the stream and in the light of the classes that show."""
        given = session.predict(fitted_BHWC)
        answers = self._follower.correct(session.fingerprint, given)
        if self._follower.look(Seen(session.fingerprint, fitted_BHWC, answers.label_B.tolist())):
            renewed = self._updater.session
            if renewed.fingerprint == session.fingerprint:  # else another model, which wants other pictures
                session, given = renewed, renewed.predict(fitted_BHWC)
                answers = self._follower.correct(session.fingerprint, given)
        self._follower.note(session.fingerprint, given.probabilities_BK, answers.label_B.tolist())
        return session, answers

    def _hand_over(
        self,
        session: Session,
        images: Sequence[Image],
        fitted_BHWC: Uint8Array,
        predictions: list[Prediction],
        domain: int,
    ) -> None:
        kept = [index for index, prediction in enumerate(predictions) if prediction.selected]
        if not kept:
            return
        with self._mutex:
            first = self._seq
            self._seq += len(kept)
        now_s = self._clock.ticks()
        captured = []
        for seq, index in enumerate(kept, first):
            said = predictions[index]
            # a copy: the rest of the batch need not stay in memory with it
            payload = None if self._guard else passed_through(images[index])
            payload = payload or fitted_BHWC[index].copy()
            captured.append(
                Captured(
                    payload,
                    session.fingerprint,
                    seq,
                    said.label,
                    said.probability,
                    said.entropy,
                    said.version,
                    now_s,
                    said.stats_revision,
                    domain,
                )
            )
        self._uplink.offer(captured)


def _predictions(answers: Answers, kept: list[bool], session: Session) -> list[Prediction]:
    version, revision = session.version, session.revision
    rows = zip(answers.label_B.tolist(), answers.confidence_B.tolist(), answers.entropy_B.tolist(), kept, strict=True)
    return [
        Prediction(label, probability, nats, version, revision, chosen) for label, probability, nats, chosen in rows
    ]
