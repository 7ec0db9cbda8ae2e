"""Which samples a device with its own statistics sends: as many as the shift is worth, none that would mislead.

The paper's bounds on the entropy (selection.py), then: a random tenth of everything, since samples of middling entropy
alone are a biased picture of the stream; a token bucket that fills the faster the further the stream is from the source
(a clean stream needs no cloud); and silence while the stream shows few of its classes (classes.py). docs/method.md has
what each is worth.
"""

from __future__ import annotations

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
    pictures, sent whatever their entropy. rate: samples per picture at full trust, in the long run; start, most: tokens
    at the beginning and at most.
    """

    e_min: Fraction = 0.10
    e_max_warmup: Annotated[int, Meta(ge=0)] = 64
    random_share: Fraction = 0.1
    rate: Fraction = 0.25
    start: Tokens = 32.0
    most: Tokens = 64.0


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
        self._tokens, self._trust, self._narrow = s.start, 1.0, False

    def follow(self, trust: float, changed: bool, narrow: bool) -> None:
        """See ``FollowsStream``."""
        self._trust, self._narrow = trust, narrow
        if changed:
            self._bounds = Selector(self._config, self._classes)

    def select(self, probabilities_BK: Float32Array, entropy_B: Float32Array) -> BoolArray:
        """Which of the batch to send, bool [B]."""
        if not self._config.enabled:
            return np.ones(len(entropy_B), np.bool_)
        s, count = self.settings, len(entropy_B)
        kept_B = self._bounds.select(probabilities_BK, entropy_B)
        kept_B |= self._rng.random(count) < s.random_share
        self._tokens = min(self._tokens + s.rate * self._trust * count, s.most)
        if self._narrow:
            kept_B[:] = False
        chosen = np.flatnonzero(kept_B)
        if len(chosen) > self._tokens:
            kept_B[:] = False
            kept_B[self._rng.permutation(chosen)[: int(self._tokens)]] = True
        self._tokens -= int(kept_B.sum())
        return kept_B
