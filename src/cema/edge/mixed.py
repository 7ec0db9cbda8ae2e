"""Statistics of a device's whole stream: of one look at a time, or of each look while several alternate.

    pictures -> one look: LocalStatistics (statistics.py), which notices worlds that change and come back
             -> several (mixture.py): one LocalStatistics for each, by the look of each picture, if the model
                tells more by them (telling.py)

The thread that measures asks now and then how many looks there are. While they alternate, nothing is sent: the cloud
would learn from a mixture, by statistics that no device uses.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import msgspec
import numpy as np

from cema.edge.measuring import MeasuringSession
from cema.edge.memory import Labelled, pixel_style
from cema.edge.mixture import Float64Array, Mixture, MixtureSettings, in_turns, look_of, single
from cema.edge.statistics import Due, LocalStatistics, StatisticsSettings
from cema.edge.telling import told_more
from cema.types import NormParameters, Uint8Array
from cema.wire.blend import BLEND, BlendSettings

Now = tuple[Mixture | None, tuple[LocalStatistics, ...]]
"""Looks that alternate and the statistics of each; without a mixture there is one. Exchanged as a whole."""
Numbered = tuple[int, NormParameters]
"""Norm parameters, and the number of the measurement of their statistics."""


class MixedStatistics:
    """Statistics of one device. Not thread-safe: whoever owns it calls ``arrive``, ``take_in`` and ``refresh`` in turn.

    ``in_use`` may be called by other threads, too.

    classes: C. rng: for domains. revision: rises with each measurement.
    """

    def __init__(
        self,
        measuring: MeasuringSession,
        classes: int,
        rng: np.random.Generator,
        statistics: StatisticsSettings | None = None,
        blend: BlendSettings = BLEND,
        mixture: MixtureSettings | None = None,
    ) -> None:
        self._measuring, self._classes, self._rng, self._blend_by = measuring, classes, rng, blend
        self._statistics, self.settings = statistics or StatisticsSettings(), mixture or MixtureSettings()
        self._one = LocalStatistics(measuring, classes, rng, self._statistics, blend)
        self._looks: deque[Float64Array] = deque(maxlen=self.settings.looks)
        self._seen = self._since = 0  # pictures in all, and since the looks were last described
        self._wait = self.settings.every  # pictures until the next time
        self._changes: deque[int] = deque(maxlen=self.settings.flutter)  # of the world: pictures seen before
        self._doubts = 0  # judgements in a row by which looks do not alternate
        self._due: set[int] = set()
        self._now: Now = None, (self._one,)
        self.revision = 0

    @property
    def mixture(self) -> Mixture | None:
        """Of looks that alternate, None while there is one."""
        return self._now[0]

    @property
    def domain(self) -> int:
        """Number of the present world; 0 while looks alternate."""
        return self._one.domain if self.mixture is None else 0

    @property
    def looks(self) -> int:
        """How many alternate."""
        return len(self._now[1])

    @property
    def settled(self) -> bool:
        """Whether enough has been seen for measurements that can wait."""
        return self.mixture is not None or self._one.settled

    @property
    def moved(self) -> float:
        """See ``LocalStatistics.moved``; 0 while looks alternate."""
        return self._one.moved if self.mixture is None else 0.0

    def trusted(self) -> float:
        """0..1 by how far the stream is from the source; 1 before the first look."""
        return max(own.trusted() for own in self._now[1])

    def arrive(self, images_BHWC: Uint8Array) -> bool:
        """Look at pictures that are about to be predicted; True if this is another world than that of the last ones."""
        if self.mixture is not None:
            return False
        changed = self._one.arrive(images_BHWC)
        if changed:
            self._changes.append(self._seen)
            self._wait = self.settings.every
            if not self._flutters():
                self._looks.clear()
        return changed

    def asks(self, count: int) -> Due:
        """See ``LocalStatistics.asks``; while looks alternate, all can wait."""
        return self._one.asks(count) if self.mixture is None else "no"

    def take_in(self, images_BHWC: Uint8Array, labels: Sequence[int]) -> Due:
        """Remember the pictures of the last ``arrive`` with their predicted labels; whether ``refresh`` is due."""
        self._seen += len(labels)
        self._since += len(labels)
        if self.mixture is None:
            due = self._one.take_in(images_BHWC, labels)
            self._looks.extend(look_of(self._one.styles_BS))
            return due
        styles_BS = pixel_style(images_BHWC)
        looks_BL = look_of(styles_BS)
        self._looks.extend(looks_BL)
        part_B = self.mixture.nearest(looks_BL)
        for part in np.unique(part_B).tolist():
            at, own = np.flatnonzero(part_B == part), self._now[1][part]
            own.styles_BS = styles_BS[at]  # instead of ``arrive``: in one look no world changes
            if own.take_in(images_BHWC[at], [labels[index] for index in at.tolist()]) != "no":
                self._due.add(part)
        return "later" if self._due or self._since >= self.settings.every else "no"

    def refresh(self, weights: NormParameters, domain: int | None) -> None:
        """Measure what is due by these weights and biases, which were learned in this domain (None: in all), and see
        now and then how many looks there are."""
        if self._since >= self._wait and len(self._looks) >= self.settings.least:
            self._describe(weights, domain)
        if self.mixture is None and self._one.remembered():
            self._measure(self._one, weights, domain)
        for part in sorted(self._due):
            self._measure(self._now[1][part], weights, domain)
        self._due.clear()

    def in_use(self, weights: NormParameters, domain: int | None) -> tuple[Mixture | None, list[Numbered]]:
        """What to predict with, and the number of its measurement, for each component of the mixture: see
        ``LocalStatistics.in_use``."""
        mixture, parts = self._now
        return mixture, [(own.revision, own.in_use(weights, domain)) for own in parts]  # never newer than it says

    def _flutters(self) -> bool:
        """Whether the world changes so often that its looks may be in turns."""
        return len(self._changes) == self.settings.flutter and self._seen - self._changes[0] < self.settings.looks

    def _measure(self, own: LocalStatistics, weights: NormParameters, domain: int | None) -> None:
        own.refresh(weights, domain)
        self.revision += 1
        own.revision = self.revision

    def _describe(self, weights: NormParameters, domain: int | None) -> None:
        """Change to another number of looks, or to others, if that describes the latest pictures better."""
        looks_NL, now = np.array(self._looks), self.mixture
        self._since = 0
        best = in_turns(looks_NL, self.settings)
        known = now or single(looks_NL)
        gain = best.evidence(looks_NL) - known.evidence(looks_NL)
        self._doubts = self._doubts + 1 if len(best) == 1 else 0
        if len(best) > 1:
            better = gain > self.settings.margin
        else:
            better = now is not None and (gain > 0 or self._doubts >= self.settings.doubts)
        if better:
            self._change_to(best, weights, domain)

    def _change_to(self, mixture: Mixture, weights: NormParameters, domain: int | None) -> None:
        """Hand the remembered pictures to those whose look they have, and measure those; who has none goes on with the
        statistics of what was most like it. The one look there was stays if the model tells no more by several."""
        known = [each for own in self._now[1] for each in own.remembered()]
        looks_NL = look_of(np.array([each.style for _, each in known]))
        part_N, fits_N = mixture.nearest(looks_NL), mixture.distances(looks_NL).min(axis=1) < self.settings.odd
        each_has = [
            [known[index] for index in np.flatnonzero((part_N == part) & fits_N)] for part in range(len(mixture))
        ]
        before, parts = self._now
        like_K = before.nearest(mixture.mean_KL) if before else np.zeros(len(mixture), int)
        until_K = [parts[part].latest for part in like_K.tolist()]
        self._due = set()
        if len(mixture) == 1:
            self._one.begin(each_has[0], until_K[0])
            self._now = None, (self._one,)
            return
        numbers = self._numbers(len(mixture), known[0][1].picture.nbytes)
        components = tuple(map(self._component, each_has, until_K, [numbers] * len(mixture)))
        shown = [own for own in components if own.remembered()]
        for own in shown:
            self._measure(own, weights, domain)
        if before is None and told_more(self._measuring, self._one, shown, weights, domain) <= self.settings.gain:
            self._wait = min(2 * self._wait, self.settings.wait)  # a stream of several looks is asked seldom
            return
        self._now, self._wait = (mixture, components), self.settings.every
        self._one.begin([], self._one.latest)  # its pictures are the components' now

    def _numbers(self, components: int, picture_bytes: int) -> StatisticsSettings:
        """Of statistics of one look: all components together may have as much memory as worlds that were left, if that
        is enough for one measurement of each."""
        s = self._statistics
        places = max(s.measured, min(s.memory, s.aside_bytes // (components * picture_bytes)))
        return msgspec.structs.replace(s, memory=places)

    def _component(
        self, pictures: Sequence[Labelled], until: NormParameters, numbers: StatisticsSettings
    ) -> LocalStatistics:
        """Of one look; statistics until it has been measured."""
        own = LocalStatistics(self._measuring, self._classes, self._rng, numbers, self._blend_by)
        own.begin(pictures, until)
        self.revision += 1
        own.revision = self.revision
        return own
