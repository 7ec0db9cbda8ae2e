"""Which classes a stream shows at present: what a camera sees now is seldom all that it sees in the long run.

Two uses. While far fewer classes show than in the long run, their shares are a prior for the next answers (estimated by
expectation maximisation: Saerens, Latinne & Decaestecker, Neural Computation 2002); and nothing is uploaded, because
a step on two classes makes the model forget the others (pacing.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from cema.types import Float32Array

Pictures = Annotated[float, Meta(ge=0)]


class ClassesSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The method's numbers, chosen on three corruptions of CIFAR-10 photographs (docs/method.md).

    window: latest answers that stand for the present. memory: pictures over which the long-run shares are kept;
    start: weight, in pictures, of the assumption at the start that all classes are equally frequent. narrow: the
    stream is narrow if two pictures of the window are of one class more often than in the long run by 1 / narrow,
    and by sigmas standard deviations of that count. prior: weight, in pictures, of equal shares in the estimate
    of the present ones. rounds: of the estimate.
    """

    window: Annotated[int, Meta(ge=2)] = 64
    memory: Annotated[float, Meta(ge=1)] = 1000.0
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
        self._labels: deque[int] = deque(maxlen=s.window)
        self._shares_K = np.full(classes, s.start / classes)
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
        s = self.settings
        self._window.extend(probabilities_BK)
        self._labels.extend(labels)
        kept = 1 - 1 / s.memory
        self._shares_K *= kept ** len(labels)
        np.add.at(self._shares_K, list(labels), kept ** np.arange(len(labels) - 1, -1, -1))
        self.narrow = self._is_narrow()

    def _present(self, probabilities_BK: Float32Array) -> Float32Array:
        """Shares of the classes among the latest pictures, float32 [K]."""
        s = self.settings
        earlier = list(self._window)[-max(0, s.window - len(probabilities_BK)) :] if self._window else []
        seen_NK = np.concatenate([np.array(earlier, np.float32).reshape(-1, self.classes), probabilities_BK])
        share_K = np.full(self.classes, 1 / self.classes, np.float32)
        for _ in range(s.rounds):
            weighed_NK = seen_NK * share_K
            weighed_NK /= weighed_NK.sum(axis=1, keepdims=True)
            share_K = (weighed_NK.sum(axis=0) + s.prior / self.classes) / (len(seen_NK) + s.prior)
        return np.asarray(share_K, np.float32)

    def _is_narrow(self) -> bool:
        s, count = self.settings, len(self._labels)
        pairs = count * (count - 1) / 2
        counts: NDArray[np.int64] = np.bincount(self._labels)
        alike = float((counts * (counts - 1)).sum()) / 2
        share_K = self._shares_K / self._shares_K.sum()
        expected = float((share_K**2).sum()) * pairs
        return alike * s.narrow > expected + s.narrow * s.sigmas * float(np.sqrt(expected))
