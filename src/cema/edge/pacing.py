"""Which samples a device with its own statistics sends: as many as the shift is worth, none that would mislead.

The paper's bounds on the entropy (selection.py), then: a random tenth of everything, since samples of middling entropy
alone are a biased picture of the stream; a token bucket that fills the faster the further the stream is from the source
(a clean stream needs no cloud); and silence while the stream shows few of its classes, because a step on one or two
classes makes the model forget the others (docs/method.md has what each is worth).
"""

from __future__ import annotations

from collections import deque
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from cema.config import Fraction, SelectionConfig
from cema.edge.selection import BoolArray, Selector
from cema.types import Float32Array

Tokens = Annotated[float, Meta(ge=1)]


class PacingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The method's numbers, chosen on four corruptions of CIFAR-10 photographs (docs/method.md).

    e_min: lower bound, fraction of ln C. e_max_warmup: pictures before the upper bound moves. random_share: of all
    pictures, sent whatever their entropy. rate: samples per picture at full trust, in the long run; start, most:
    tokens at the beginning and at most. window: latest predictions whose classes are looked at; memory: pictures over
    which the long-run shares of the classes are kept; prior: weight, in pictures, of the assumption at the start that
    all are equally frequent. narrow: ratio of the chances that two pictures are of one class, long-run over window,
    below which the stream counts as narrow.
    """

    e_min: Fraction = 0.10
    e_max_warmup: Annotated[int, Meta(ge=0)] = 64
    random_share: Fraction = 0.1
    rate: Fraction = 0.25
    start: Tokens = 32.0
    most: Tokens = 64.0
    window: Annotated[int, Meta(ge=2)] = 64
    memory: Tokens = 1000.0
    prior: Tokens = 256.0
    narrow: Fraction = 0.5


class PacedSelector:
    """A ``SampleSelector`` that also follows the stream (``FollowsStream``)."""

    def __init__(
        self,
        config: SelectionConfig,
        classes: int,
        rng: np.random.Generator | None = None,
        settings: PacingSettings | None = None,
    ) -> None:
        self.settings = s = settings or PacingSettings()
        self._config = msgspec.structs.replace(config, e_min=s.e_min, e_max_warmup_samples=s.e_max_warmup)
        self._classes, self._rng = classes, rng or np.random.default_rng()
        self._bounds = Selector(self._config, classes)
        self._tokens, self._trust = s.start, 1.0
        self._window: deque[int] = deque(maxlen=s.window)
        self._shares_K = np.full(classes, s.prior / classes)

    def follow(self, trust: float, changed: bool) -> None:
        """trust: 0..1, how far the stream is from the source. changed: the world is another since the last batch."""
        self._trust = trust
        if changed:
            self._bounds = Selector(self._config, self._classes)

    def select(self, probabilities_BK: Float32Array, entropy_B: Float32Array) -> BoolArray:
        """Which of the batch to send, bool [B]."""
        s, count = self.settings, len(entropy_B)
        kept_B = self._bounds.select(probabilities_BK, entropy_B)
        kept_B |= self._rng.random(count) < s.random_share
        self._tokens = min(self._tokens + s.rate * self._trust * count, s.most)
        if self._is_narrow(probabilities_BK.argmax(axis=1)):
            kept_B[:] = False
        chosen = np.flatnonzero(kept_B)
        if len(chosen) > self._tokens:
            kept_B[:] = False
            kept_B[self._rng.permutation(chosen)[: int(self._tokens)]] = True
        self._tokens -= int(kept_B.sum())
        return kept_B

    def _is_narrow(self, label_B: np.ndarray[tuple[int], np.dtype[np.int64]]) -> bool:
        """Whether the latest predictions show far fewer classes than the long run."""
        s = self.settings
        for label in label_B.tolist():
            self._window.append(label)
            self._shares_K *= 1 - 1 / s.memory
            self._shares_K[label] += 1
        counts = np.bincount(self._window)
        pairs = len(self._window) * (len(self._window) - 1)
        same = float((counts * (counts - 1)).sum()) / pairs if pairs else 1.0
        share_K = self._shares_K / self._shares_K.sum()
        return float((share_K**2).sum()) < s.narrow * same
