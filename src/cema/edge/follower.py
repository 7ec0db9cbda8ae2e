"""The device follows its own stream: what ``predict`` has answered -> statistics -> a session that fits the stream.

In: fitted pictures and their predicted labels, from ``predict``, which hands them over and goes on. Out: the updater's
next session. One background thread measures; only the first pictures of a new world are measured at once, where they
come in batches, so that they can be answered again by statistics that know them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import groupby
from typing import NamedTuple

import numpy as np

from cema.config import DeviceConfig
from cema.edge.classes import RecentClasses
from cema.edge.counters import EdgeCounters
from cema.edge.measuring import MeasuringSession
from cema.edge.mixed import MixedStatistics
from cema.edge.selection import entropy
from cema.edge.session import Answers
from cema.edge.statistics import Due, StatisticsSettings
from cema.edge.updater import Updater
from cema.errors import CemaError
from cema.types import Float32Array, Uint8Array

log = logging.getLogger(__name__)
WAITING_BATCHES = 32
WAITING_BYTES = 1 << 26
"""Batches that may wait for the thread, and their pixels; what comes beyond is left out of the statistics, which are
of a sample anyway."""
TOGETHER = 8
"""Pictures that the thread waits for: single ones would wake it, and take the interpreter from ``predict``, too
often."""
MOVED = 0.8
"""Standard deviations of one picture, from which on a look rests no longer and measurements are due whatever their
share of the time (``statistics.duty``): no other world yet, but 3.2 standard errors of the mean of sixteen."""
MOVED_FOR = StatisticsSettings().window
"""Pictures for which it must have: by then another world has been noticed, of which nothing would be seen while the
thread measures."""
PATIENCE_S = 0.5
"""How long it waits for them."""


class Seen(NamedTuple):
    """A batch that was predicted. fingerprint: of the bundle that did. arrived: whether its look has been taken note
    of."""

    fingerprint: str
    images_BHWC: Uint8Array
    labels: list[int]
    arrived: bool = False


class Follower:
    """Statistics of a running device. ``look`` is called by ``predict``, ``step`` by a worker thread.

    trust: how far the stream is from the source, 0..1. narrow: whether far fewer classes show than in the long run.
    """

    def __init__(
        self,
        updater: Updater,
        config: DeviceConfig,
        counters: EdgeCounters,
        rng: np.random.Generator,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._updater, self._config, self._counters, self._rng = updater, config, counters, rng
        self._clock, self._not_before_s, self._moved_for = clock, 0.0, 0
        self._owner = threading.Lock()  # of the statistics: whoever measures has it
        self._changed = threading.Condition()
        self._waiting: deque[Seen] = deque()
        self._closed = self._due = self._failed = self._idle = False
        self._own: MixedStatistics | None = None
        self._fingerprint = ""
        self._changes = self._changes_told = 0  # of the world
        self.trust, self._domain = 1.0, 0
        self._counting = threading.Lock()  # of the classes
        self._classes: RecentClasses | None = None
        self._classes_of = ""

    @property
    def looks(self) -> int:
        """How many alternate, 1 while nothing is followed."""
        return self._own.looks if self._own is not None and self._updater.following else 1

    @property
    def domain(self) -> int:
        """Of the present world; 0 while nothing is followed or looks alternate."""
        return self._domain if self._updater.following and self._updater.follows(self._own) else 0

    @property
    def narrow(self) -> bool:
        classes = self._classes
        return classes is not None and classes.narrow

    def correct(self, fingerprint: str, answers: Answers) -> Answers:
        """The answers of a bundle in the light of the classes that show at present, while those are few."""
        if not (self.narrow and self._updater.following and self._config.statistics.class_prior):
            return answers
        with self._counting:
            classes = self._classes
            if classes is None or self._classes_of != fingerprint:  # the model has changed since
                return answers
            probabilities_BK = classes.correct(answers.probabilities_BK)
        return Answers(
            probabilities_BK,
            entropy(probabilities_BK),
            probabilities_BK.argmax(axis=1),
            probabilities_BK.max(axis=1),
        )

    def note(self, fingerprint: str, probabilities_BK: Float32Array, labels: list[int]) -> None:
        """Remember which classes showed. probabilities_BK: as the model gave them; labels: as they were corrected."""
        with self._counting:
            if not self._updater.following:
                self._classes = None
                return
            if self._classes is None or self._classes_of != fingerprint:
                self._classes, self._classes_of = RecentClasses(probabilities_BK.shape[1]), fingerprint
            self._classes.take_in(probabilities_BK, labels)

    def look(self, seen: Seen) -> bool:
        """Take note of what was predicted; True: there is a new session, by which to answer these pictures again."""
        if not self._updater.following:
            return False
        at_once = self._config.statistics.answer_again and len(seen.labels) >= TOGETHER and not self._waiting
        if not at_once or self._failed or not self._owner.acquire(blocking=False):
            self._leave_to_thread(seen)
            return False
        try:
            return self._look_at_once(seen)
        except Exception as error:  # the first answer stands, whatever is wrong here; the thread goes on trying
            self._failed = True
            self._counters.failed(error)
            log.warning(
                "pictures were answered, but not followed: %s", error, exc_info=not isinstance(error, CemaError)
            )
            return False
        finally:
            self._owner.release()

    def _look_at_once(self, seen: Seen) -> bool:
        if self._waiting:  # another thread was faster: its pictures have arrived and are not taken in yet
            self._leave_to_thread(seen)
            return False
        seen = self._arrived(seen)
        if seen.arrived and self._own is not None and self._own.asks(len(seen.labels)) == "now":
            self._take_in(seen)
            return self._refresh()
        self._leave_to_thread(seen)  # still the owner: nobody's pictures may arrive between these and their taking in
        return False

    def _leave_to_thread(self, seen: Seen) -> None:
        if seen.arrived:  # before those that came meanwhile: what arrived last is what is taken in next
            self._waiting.appendleft(seen)
            return
        if len(seen.labels) == 1:  # a view of the caller's own picture; of several, the stack is ours
            seen = seen._replace(images_BHWC=seen.images_BHWC.copy())
        held = sum(each.images_BHWC.nbytes for each in self._waiting.copy())
        if len(self._waiting) < WAITING_BATCHES and held + seen.images_BHWC.nbytes <= WAITING_BYTES:
            self._waiting.append(seen)

    def wake(self) -> None:
        """Let the thread see to what waits. Called when all else is done: it takes the interpreter from ``predict``."""
        if self._waiting and (self._idle or self._is_busy()):
            with self._changed:
                self._changed.notify()

    def take_change(self) -> bool:
        """Whether the world has changed since this was last asked."""
        changes = self._changes  # the thread may count another one meanwhile
        changed, self._changes_told = changes > self._changes_told, changes
        return changed

    def step(self) -> None:
        """Wait for pictures, then measure what is due. Raises BundleError, UpdateContentError."""
        with self._changed:
            self._idle = True
            self._changed.wait_for(lambda: self._waiting or self._closed)
            self._idle = False
            self._changed.wait_for(self._is_busy, PATIENCE_S)
        if self._closed:
            return
        with self._owner:
            for seen in self._together():
                if (seen := self._arrived(seen)).arrived:
                    self._due |= self._take_in(seen) != "no"
            if self._due and self._own is not None and self._clock() >= self._not_before_s:
                self._due = False
                self._refresh()
            self._failed = False

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _is_busy(self) -> bool:
        return self._closed or sum(len(seen.labels) for seen in self._waiting.copy()) >= TOGETHER

    def _together(self) -> list[Seen]:
        """What waits at this moment, single pictures joined: numpy costs as much for one as for eight. What comes
        meanwhile must not keep the thread from measuring."""
        batches = [self._waiting.popleft() for _ in range(len(self._waiting))]
        joined = []
        for (fingerprint, single), group in groupby(
            batches, key=lambda seen: (seen.fingerprint, len(seen.labels) == 1)
        ):
            parts = list(group)
            if single:
                images_BHWC = np.concatenate([seen.images_BHWC for seen in parts])
                parts = [Seen(fingerprint, images_BHWC, [seen.labels[0] for seen in parts])]
            joined += parts
        return joined

    def _arrived(self, seen: Seen) -> Seen:
        """Look at pictures that are new, in the statistics of their bundle; unchanged if that is no more in use."""
        if seen.arrived and seen.fingerprint == self._fingerprint:
            return seen
        known = seen.fingerprint == self._fingerprint and self._updater.follows(self._own)
        if not known and not self._begin(seen.fingerprint):  # also where a bundle went and came back meanwhile
            return seen._replace(arrived=False)
        own = self._own
        assert own is not None
        if own.arrive(seen.images_BHWC):
            self._changes, self._not_before_s = self._changes + 1, 0.0
            seen = self._seen_there(seen)
        self._moved_for = self._moved_for + len(seen.labels) if own.moved > MOVED else 0
        if self._moved_for >= MOVED_FOR:
            self._not_before_s = 0.0
        self.trust, self._domain = own.trusted(), own.domain
        return seen._replace(arrived=True)

    def _seen_there(self, seen: Seen) -> Seen:
        """The first pictures of another world with labels by what is good there: the source's weights, and statistics
        of before if it came back. Those by the world that was left would unbalance its memory."""
        self._updater.renew()
        session = self._updater.session
        if session.fingerprint != seen.fingerprint:
            return seen
        answers = self.correct(seen.fingerprint, session.predict(seen.images_BHWC))
        return seen._replace(labels=answers.label_B.tolist())

    def _take_in(self, seen: Seen) -> Due:
        assert self._own is not None
        return self._own.take_in(seen.images_BHWC, seen.labels)

    def _begin(self, fingerprint: str) -> bool:
        """Fresh statistics for the bundle in use; False for pictures of one before."""
        bundle = self._updater.bundle
        if bundle.manifest.fingerprint != fingerprint:
            return False
        measuring = MeasuringSession(bundle, threads=self._config.runtime.threads)
        self._own = MixedStatistics(measuring, len(bundle.manifest.classes), self._rng)
        self._fingerprint = fingerprint
        return self._updater.follow(self._own, fingerprint)

    def _refresh(self) -> bool:
        """Measure, and put a session in place; False if the model has been replaced since."""
        own = self._own
        weights = self._updater.weights_for(own) if own is not None else None
        if own is None or weights is None:
            return False
        started_s, settled, alternated = self._clock(), own.settled, own.looks > 1
        own.refresh(*weights)
        self._changes += alternated and own.looks == 1
        self.trust, self._domain = own.trusted(), own.domain
        self._updater.renew()
        if settled:
            done_s = self._clock()
            self._not_before_s = done_s + (done_s - started_s) * (1 / self._config.statistics.duty - 1)
        return True
