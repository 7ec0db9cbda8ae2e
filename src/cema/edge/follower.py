"""The device follows its own stream: what ``predict`` has answered -> statistics -> a session that fits the stream.

In: fitted pictures and their predicted labels, from ``predict``, which hands them over and goes on. Out: the updater's
next session. One background thread measures; only the first pictures of a new world are measured at once, where they
come in batches, so that they can be answered again by statistics that know them.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import NamedTuple

import numpy as np

from cema.config import DeviceConfig
from cema.edge.classes import RecentClasses
from cema.edge.counters import EdgeCounters
from cema.edge.measuring import MeasuringSession
from cema.edge.selection import entropy
from cema.edge.session import Answers
from cema.edge.statistics import Due, LocalStatistics
from cema.edge.updater import Updater
from cema.errors import CemaError
from cema.types import Float32Array, Uint8Array

WAITING_BATCHES = 32
"""Batches that may wait for the thread; what comes beyond is left out of the statistics, which are of a sample
anyway."""
TOGETHER = 8
"""Pictures that the thread waits for: single ones would wake it, and take the interpreter from ``predict``, too
often."""
PATIENCE_S = 0.5
"""How long it waits for them."""


class Seen(NamedTuple):
    """A batch that was predicted. fingerprint: of the bundle that did."""

    fingerprint: str
    images_BHWC: Uint8Array
    labels: list[int]


class Follower:
    """Statistics of a running device. ``look`` is called by ``predict``, ``step`` by a worker thread.

    trust: how far the stream is from the source, 0..1. domain: of the present world, 0 while nothing is followed.
    narrow: whether far fewer classes show than in the long run.
    """

    def __init__(
        self, updater: Updater, config: DeviceConfig, counters: EdgeCounters, rng: np.random.Generator
    ) -> None:
        self._updater, self._config, self._counters, self._rng = updater, config, counters, rng
        self._owner = threading.Lock()  # of the statistics: whoever measures has it
        self._changed = threading.Condition()
        self._waiting: deque[Seen] = deque()
        self._closed = self._due = self._failed = False
        self._own: LocalStatistics | None = None
        self._fingerprint = ""
        self._other_world = False
        self.trust, self.domain = 1.0, 0
        self._counting = threading.Lock()  # of the classes
        self._classes: RecentClasses | None = None
        self._classes_of = ""

    @property
    def narrow(self) -> bool:
        return self._classes is not None and self._classes.narrow

    def correct(self, answers: Answers) -> Answers:
        """The answers in the light of the classes that show at present, while those are few."""
        classes = self._classes
        if classes is None or not (classes.narrow and self._updater.following and self._config.statistics.class_prior):
            return answers
        if answers.probabilities_BK.shape[1] != classes.classes:  # the model has changed since
            return answers
        with self._counting:
            probabilities_BK = classes.correct(answers.probabilities_BK)
        return Answers(
            probabilities_BK,
            entropy(probabilities_BK),
            probabilities_BK.argmax(axis=1),
            probabilities_BK.max(axis=1),
        )

    def note(self, fingerprint: str, probabilities_BK: Float32Array, labels: list[int]) -> None:
        """Remember which classes showed. probabilities_BK: as the model gave them; labels: as they were corrected."""
        if not self._updater.following:
            return
        with self._counting:
            if self._classes is None or self._classes_of != fingerprint:
                self._classes, self._classes_of = RecentClasses(probabilities_BK.shape[1]), fingerprint
            self._classes.take_in(probabilities_BK, labels)

    def look(self, seen: Seen) -> bool:
        """Take note of what was predicted; True: there is a new session, by which to answer these pictures again."""
        if not self._updater.following:
            return False
        at_once = self._config.statistics.answer_again and len(seen.labels) >= TOGETHER and not self._waiting
        if at_once and not self._failed and self._owner.acquire(blocking=False):
            try:
                return self._look_at_once(seen)
            except CemaError as error:  # the first answer stands; the thread goes on trying
                self._failed = True
                self._counters.failed(error)
            finally:
                self._owner.release()
            return False
        with self._changed:
            if len(self._waiting) < WAITING_BATCHES:
                self._waiting.append(seen._replace(images_BHWC=seen.images_BHWC.copy()))
                self._notify()
        return False

    def _look_at_once(self, seen: Seen) -> bool:
        due = self._digest(seen)
        if due == "later":
            with self._changed:
                self._due = True
                self._notify()
        return due == "now" and self._refresh()

    def take_change(self) -> bool:
        """Whether the world has changed since this was last asked."""
        changed, self._other_world = self._other_world, False
        return changed

    def step(self) -> None:
        """Wait for pictures, then measure what is due. Raises BundleError, UpdateContentError."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._due or self._closed)
            self._changed.wait_for(self._is_busy, PATIENCE_S)
        if self._closed or not (self._waiting or self._due):
            return
        with self._owner:
            due, self._due = self._due, False
            for _ in range(len(self._waiting)):  # what comes meanwhile must not keep it from measuring
                due |= self._digest(self._waiting.popleft()) != "no"
            if due and self._own is not None:
                self._refresh()
            self._failed = False

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _is_busy(self) -> bool:
        return self._closed or self._due or sum(len(seen.labels) for seen in self._waiting.copy()) >= TOGETHER

    def _notify(self) -> None:
        if len(self._waiting) == 1 or self._is_busy():
            self._changed.notify()

    def _digest(self, seen: Seen) -> Due:
        if seen.fingerprint != self._fingerprint and not self._begin(seen.fingerprint):
            return "no"
        own = self._own
        assert own is not None
        self._other_world |= own.arrive(seen.images_BHWC)
        due = own.take_in(seen.images_BHWC, seen.labels)  # never "no" in a new world: a new session follows
        self.trust, self.domain = own.trusted(), own.domain
        return due

    def _begin(self, fingerprint: str) -> bool:
        """Fresh statistics for the bundle in use; False for pictures of one before."""
        bundle = self._updater.bundle
        if bundle.manifest.fingerprint != fingerprint:
            return False
        measuring = MeasuringSession(bundle, threads=self._config.runtime.threads)
        self._own = LocalStatistics(measuring, len(bundle.manifest.classes), self._rng)
        self._fingerprint = fingerprint
        self._updater.follow(self._own)
        return True

    def _refresh(self) -> bool:
        """Measure, and put a session in place; False if the model has been replaced since."""
        own, weights = self._own, self._updater.weights_of(self._fingerprint)
        if own is None or weights is None:
            return False
        own.refresh(own.in_use(*weights))
        self.trust = own.trusted()
        self._updater.renew()
        return True
