"""Which samples are worth sending: the edge's half of the algorithm (CEMA section 3.1, Chen et al., ICLR 2024).

In: softmax output and entropy of one batch. Out: a mask. Unreliable samples (high entropy, Eq. 1) would mislead the
cloud, samples of low information (low entropy, Eq. 3) would teach it nothing; the upper bound follows the mean
entropy of the stream (Eq. 2, applied once and not compounded, see docs/adr). Runs inside ``predict``: numpy only.
"""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from cema.config import SelectionConfig
from cema.errors import ConfigError
from cema.types import Float32Array

BoolArray = NDArray[np.bool_]

MEAN_PROBABILITY_DECAY = 0.9
"""m <- 0.9 m + 0.1 mean(kept probabilities) (EATA, Niu et al., ICML 2022, Eq. 4)."""


def softmax(logits_BK: Float32Array) -> Float32Array:
    """Softmax over the last axis, float32; the largest logit is taken off first, so nothing overflows."""
    shifted = logits_BK.astype(np.float32, copy=False) - logits_BK.max(axis=-1, keepdims=True)
    exponential = np.exp(shifted, dtype=np.float32)
    return np.asarray(exponential / exponential.sum(axis=-1, keepdims=True), np.float32)


def entropy(probabilities_BK: Float32Array) -> Float32Array:
    """H = -sum p ln p over the last axis, in nats, float32 [B]; 0 ln 0 = 0."""
    smallest = np.finfo(np.float32).tiny
    summed = -(probabilities_BK * np.log(np.maximum(probabilities_BK, smallest))).sum(axis=-1, dtype=np.float32)
    return np.asarray(np.maximum(summed, 0.0), np.float32)


class SampleSelector(Protocol):
    """Anything that decides per batch what goes to the cloud; called under a lock, in order of prediction."""

    def select(self, probabilities_BK: Float32Array, entropy_B: Float32Array) -> BoolArray: ...


@runtime_checkable
class FollowsStream(Protocol):
    """A selector that wants to know about the stream: ``follow`` comes before each ``select`` on devices that measure
    their own statistics."""

    def follow(self, trust: float, changed: bool, narrow: bool) -> None:
        """trust: 0..1, how far the stream is from the source. changed: the world is another since the last batch.
        narrow: far fewer classes show than in the long run."""


class Selector:
    """The paper's filters, and EATA's redundancy filter where ``d_margin`` < 1.

    Parameters
    ----------
    config: bounds as fractions of ln(classes); ``enabled`` False keeps every sample. classes: C.
    """

    def __init__(self, config: SelectionConfig, classes: int) -> None:
        if classes < 2:
            raise ConfigError(f"expected at least 2 classes for selection by entropy, got {classes}")
        self._config = config
        self._largest = math.log(classes)
        self._start = config.e_max * self._largest
        self._e_max = self._start
        self._seen = 0
        self._entropy_sum = 0.0
        self._warmup_mean: float | None = None
        self._mean_probability: Float32Array | None = None

    @property
    def e_min(self) -> float:
        """Lower bound, nats."""
        return self._config.e_min * self._largest

    @property
    def e_max(self) -> float:
        """Upper bound as of the last batch, nats."""
        return self._e_max

    def select(self, probabilities_BK: Float32Array, entropy_B: Float32Array) -> BoolArray:
        """Which of the batch to keep, bool [B]. The running mean takes in the batch before it is filtered.

        probabilities_BK: softmax output, float32. entropy_B: its entropy, nats.
        """
        if not self._config.enabled or len(entropy_B) == 0:
            return np.ones(len(entropy_B), np.bool_)
        # as Python numbers: on the few of a batch these lines cost a fifth of numpy's (ADR 11)
        entropies = entropy_B.tolist()
        self._follow(entropies)
        lowest, highest = self.e_min, self._e_max
        kept: BoolArray = np.array([lowest < each < highest for each in entropies], np.bool_)
        if self._config.d_margin < 1:
            kept &= self._novel(probabilities_BK)
            self._remember(probabilities_BK[kept])
        return kept

    def _follow(self, entropies: list[float]) -> None:
        """Eq. 2: E_max = E_max(0) * lambda * Eavg(t) / Eavg(warm-up end), kept in [E_min, ln C]."""
        self._seen += len(entropies)
        self._entropy_sum += sum(entropies)
        if not self._config.dynamic or self._seen < self._config.e_max_warmup_samples:
            return
        mean = self._entropy_sum / self._seen
        if self._warmup_mean is None:
            self._warmup_mean = mean
        # a warm-up of perfectly certain predictions gives no scale: the bound stays
        ratio = mean / self._warmup_mean if self._warmup_mean > 0 else 1.0
        moved = self._start * self._config.e_max_lambda * ratio
        self._e_max = min(max(moved, self.e_min), self._largest)

    def _novel(self, probabilities_BK: Float32Array) -> BoolArray:
        """EATA Eq. 5: far enough from the mean of what was kept before; everything is, as long as that is nothing."""
        mean_K = self._mean_probability
        if mean_K is None:
            return np.ones(len(probabilities_BK), np.bool_)
        lengths_B = np.linalg.norm(probabilities_BK, axis=1) * np.linalg.norm(mean_K)
        cosine_B = probabilities_BK @ mean_K / np.maximum(lengths_B, np.finfo(np.float32).tiny)
        return np.asarray(np.abs(cosine_B) < self._config.d_margin)

    def _remember(self, kept_NK: Float32Array) -> None:
        if len(kept_NK) == 0:
            return
        mean_K = kept_NK.mean(axis=0, dtype=np.float32)
        if self._mean_probability is not None:
            decay = np.float32(MEAN_PROBABILITY_DECAY)
            mean_K = decay * self._mean_probability + (1 - decay) * mean_K
        self._mean_probability = np.asarray(mean_K, np.float32)
