"""Whether looks that are told apart deserve statistics of their own: the model must tell more by them.

In: common statistics, and those of each look. Out: nats per picture. A model that was trained on pale and on dark
pictures has statistics of both together; either look alone seems far from them, and following it would only do harm.
By statistics of each such a model tells its pictures apart less well, one to which the looks are new does so better.

What answers tell is their mutual information with the pictures: sure of each one, and not of the same class for all
(what adaptation without labels maximises: SHOT, Liang et al., ICML 2020).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cema.edge.measuring import MeasuringSession
from cema.edge.selection import entropy, softmax
from cema.edge.statistics import LocalStatistics
from cema.types import NormParameters, Uint8Array


def told_more(
    measuring: MeasuringSession,
    common: LocalStatistics,
    parts: Sequence[LocalStatistics],
    weights: NormParameters,
    domain: int | None,
) -> float:
    """By how much the answers to what ``parts`` remember tell more, nats per picture, by the statistics of each than by
    the common ones; all by the same weights (learned in this domain; None: in all). Raises BundleError."""
    gain, count = 0.0, 0
    for part in parts:
        own, pictures = part.in_use(weights, domain), part.chunks()
        gain += _told(measuring, own, pictures) - _told(measuring, {**own, **common.latest}, pictures)
        count += sum(map(len, pictures))
    return gain / max(count, 1)


def _told(measuring: MeasuringSession, parameters: NormParameters, pictures: Sequence[Uint8Array]) -> float:
    """Mutual information of these pictures, uint8 [B, H, W, 3] each, and their answers, nats, times their number."""
    as_given_L = np.zeros(len(measuring.layers), np.float32)
    answers_NK = softmax(
        np.concatenate([measuring.measure(each_BHWC, parameters, as_given_L).logits_BK for each_BHWC in pictures])
    )
    return float((entropy(answers_NK.mean(axis=0, keepdims=True)) - entropy(answers_NK)).sum())
