"""Which classes a stream shows at present: what a camera sees now is seldom all that it sees in the long run.

Two uses. While far fewer classes show than in the long run, their shares are a prior for the next answers (estimated by
expectation maximisation: Saerens, Latinne & Decaestecker, Neural Computation 2002); and nothing is uploaded, because
a step on two classes makes the model forget the others (pacing.py).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from cema.types import Float32Array

_UNIT_LEAST = 1e-100
"""Below this the weights are written anew, long before they overflow."""


class ClassesSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The method's numbers, chosen on four corruptions of CIFAR-10 photographs (docs/method.md).

    window: latest answers that stand for the present. memory: pictures over which the long-run shares are kept;
    start: weight, in pictures, of the assumption at the start that all classes are equally frequent. narrow: the
    stream is narrow if two pictures of the window are of one class more often than in the long run by 1 / narrow,
    and by sigmas standard deviations of that count. prior: weight, in pictures, of equal shares in the estimate
    of the present ones. rounds: of the estimate.
    """

    window: Annotated[int, Meta(ge=2)] = 64
    memory: Annotated[float, Meta(gt=1)] = 1000.0
    start: Annotated[float, Meta(gt=0)] = 256.0
    narrow: Annotated[float, Meta(ge=0, le=1)] = 0.6
    sigmas: Annotated[float, Meta(ge=0)] = 3.0
    prior: Annotated[float, Meta(gt=0)] = 5.0
    rounds: Annotated[int, Meta(ge=0)] = 5


class RecentClasses:
    """Classes of one stream. Not thread-safe. classes: C. narrow: whether far fewer show than in the long run."""

    def __init__(self, classes: int, settings: ClassesSettings | None = None) -> None:
        self.settings = s = settings or ClassesSettings()
        self.classes = classes
        self._window: deque[Float32Array] = deque(maxlen=s.window)
        self._recent, self._lasting = _Window(s.window, classes), _LongRun(s, classes)
        self.narrow = False

    def correct(self, probabilities_BK: Float32Array) -> Float32Array:
        """The answers in the light of the classes that show at present; the same array while the stream is not narrow.

        probabilities_BK: softmax output, float32.
        """
        if not self.narrow or self.settings.rounds == 0:
            return probabilities_BK
        prior_K = self._present(probabilities_BK)
        weighed_BK = probabilities_BK * prior_K
        return np.asarray(weighed_BK / weighed_BK.sum(axis=1, keepdims=True), np.float32)

    def take_in(self, probabilities_BK: Float32Array, labels: Sequence[int]) -> None:
        """Remember answers: probabilities as the model gave them, labels as they were corrected."""
        self._window.extend(probabilities_BK)
        for label in labels:
            self._recent.add(label)
            self._lasting.add(label)
        self.narrow = self._is_narrow()

    def _present(self, probabilities_BK: Float32Array) -> Float32Array:
        """Shares of the classes among the latest pictures, float32 [K]."""
        s = self.settings
        wanted = max(0, s.window - len(probabilities_BK))
        earlier = list(self._window)[max(0, len(self._window) - wanted) :]
        seen_NK = np.concatenate([np.array(earlier, np.float32).reshape(-1, self.classes), probabilities_BK])
        share_K = np.full(self.classes, 1 / self.classes, np.float32)
        for _ in range(s.rounds):
            weighed_NK = seen_NK * share_K
            weighed_NK /= weighed_NK.sum(axis=1, keepdims=True)
            share_K = (weighed_NK.sum(axis=0) + s.prior / self.classes) / (len(seen_NK) + s.prior)
        return np.asarray(share_K, np.float32)

    def _is_narrow(self) -> bool:
        s, count = self.settings, len(self._recent.labels)
        expected = self._lasting.alike * count * (count - 1) / 2
        return self._recent.pairs * s.narrow > expected + s.narrow * s.sigmas * math.sqrt(expected)


class _Window:
    """The latest labels. pairs: of them that are alike, kept up to date by each label instead of counted anew."""

    def __init__(self, size: int, classes: int) -> None:
        self.labels: deque[int] = deque(maxlen=size)
        self.pairs = 0
        self._counts = [0] * classes

    def add(self, label: int) -> None:
        counts = self._counts
        if len(self.labels) == self.labels.maxlen:
            oldest = self.labels[0]
            counts[oldest] -= 1
            self.pairs -= counts[oldest]
        self.labels.append(label)
        self.pairs += counts[label]
        counts[label] += 1


class _LongRun:
    """Class shares with an exponential memory: sums of weights that all decay by ``kept`` with each label.

    The weights are held in units that shrink instead, so that a label touches one of them.
    """

    def __init__(self, settings: ClassesSettings, classes: int) -> None:
        self._kept, self._unit = 1 - 1 / settings.memory, 1.0
        self._weights = [settings.start / classes] * classes
        self._sum, self._squares = settings.start, settings.start**2 / classes

    @property
    def alike(self) -> float:
        """How often two pictures drawn by these shares are of one class."""
        return self._squares / self._sum**2

    def add(self, label: int) -> None:
        kept = self._kept
        self._unit *= kept
        known = self._weights[label] * self._unit
        self._weights[label] = (known + 1) / self._unit
        self._sum = self._sum * kept + 1
        self._squares = self._squares * kept**2 + 2 * known + 1
        if self._unit < _UNIT_LEAST:
            self._weights = [weight * self._unit for weight in self._weights]
            self._unit = 1.0
