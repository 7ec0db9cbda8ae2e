"""Looks that alternate: whether pictures come in one look or in several, and in which look each comes.

Two cameras on one device, exposures in turns, a lamp that is on for one picture and off for the next: statistics of all
pictures together fit none of them. Looks (memory.py) are described by a mixture of Gaussians that share a covariance,
since what is in the pictures varies alike under any light; the Bayesian information criterion (Schwarz, Annals of
Statistics 1978) says how many there are. mixed.py keeps statistics for each, routing.py predicts by them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from cema.edge.worlds import SCENE_SD
from cema.types import Float32Array

_COLUMNS = (0, 1, 2, 4)
"""Of ``pixel_style``: the Laplacian follows from gradient and ratio; colour is near 0 in grey pictures under any
light."""
_COMPONENTS = (4, 2, 3, 6)
"""Tried in this order: where four describe pictures no better than one, others do not either."""
_SHARE_LEAST = 1e-6
"""Pictures of a component that has lost all: its share has a logarithm still."""
_FAR_LEAST = 1e-9
"""Pictures of a scene that never moves are all alike, and still one of them must be chosen."""
_TRIED = 4
"""Pictures for each starting point; 2 + ln(components), as greedy k-means++ has it, rounded up."""
_SEED = 0
"""Of the starting points: the same looks give the same mixture, and nothing else is drawn differently."""
Float64Array = NDArray[np.float64]
Labels = NDArray[np.int64]


class MixtureSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The method's numbers, chosen on the four tuning corruptions, ImageNet photographs and digits (docs/method.md).

    looks: latest pictures that are described; least: without which nothing is judged; every: pictures between two
    judgements, wait: at most, twice as many each time that statistics of each look were refused. gain: what the
    model must tell more by them, nats per picture (at most 0.003 where it was trained on all, 0.025 and more where
    they are new to it). most: components, 1 = looks never alternate. margin: by which a description must be better
    than the one in use, nats per picture after the criterion's penalty (single looks reach 0.21, mixtures 0.35 to
    1.0). alternation: how often neighbours differ, beside what shares in random order would give; below it there is
    one look at a time. rare: share of pictures below which a component is of odd ones, not of a look; largest: of
    one look from which on the others are. doubts: judgements in a row by which looks no longer alternate, until
    that is believed without more evidence. flutter: changes of the world within ``looks`` pictures, from which on
    these are described together. odd: squared distance, in standard deviations, of a remembered picture that
    belongs to none. rounds, starts: of expectation maximisation.
    """

    looks: Annotated[int, Meta(ge=2)] = 256
    least: Annotated[int, Meta(ge=2)] = 128
    every: Annotated[int, Meta(ge=1)] = 128
    wait: Annotated[int, Meta(ge=1)] = 2048
    gain: Annotated[float, Meta(ge=0)] = 0.01
    most: Annotated[int, Meta(ge=1)] = 6
    margin: Annotated[float, Meta(ge=0)] = 0.3
    alternation: Annotated[float, Meta(ge=0)] = 0.125
    rare: Annotated[float, Meta(ge=0, le=1)] = 0.05
    largest: Annotated[float, Meta(gt=0, le=1)] = 0.9
    doubts: Annotated[int, Meta(ge=1)] = 2
    flutter: Annotated[int, Meta(ge=1)] = 3
    odd: Annotated[float, Meta(gt=0)] = 20.0
    rounds: Annotated[int, Meta(ge=1)] = 25
    starts: Annotated[int, Meta(ge=1)] = 2


def look_of(styles_BS: Float32Array) -> Float64Array:
    """What of ``pixel_style`` describes a look, float64 [B, 4]."""
    return styles_BS[:, _COLUMNS].astype(np.float64)


@dataclass(frozen=True)
class Mixture:
    """share_K: of the pictures. mean_KL: looks. covariance_LL: around each of them."""

    share_K: Float64Array
    mean_KL: Float64Array
    covariance_LL: Float64Array

    def __len__(self) -> int:
        return len(self.share_K)

    def distances(self, looks_NL: Float64Array) -> Float64Array:
        """Squared, in standard deviations, to each component [N, K]."""
        return _squares(looks_NL @ self._whitening, self._white_means)

    def log_densities(self, looks_NL: Float64Array) -> Float64Array:
        """ln(share x density) of each component [N, K]."""
        return np.asarray(self._log_heights - self.distances(looks_NL) / 2)

    @cached_property
    def _whitening(self) -> Float64Array:
        return np.asarray(np.linalg.inv(np.linalg.cholesky(self.covariance_LL)).T)

    @cached_property
    def _white_means(self) -> Float64Array:
        return np.asarray(self.mean_KL @ self._whitening)

    @cached_property
    def _log_heights(self) -> Float64Array:
        _, log_volume = np.linalg.slogdet(2 * np.pi * self.covariance_LL)
        return np.asarray(np.log(self.share_K) - log_volume / 2)

    def nearest(self, looks_NL: Float64Array) -> Labels:
        """The most probable component of each, [N]."""
        return np.asarray(self.log_densities(looks_NL).argmax(axis=1))

    def evidence(self, looks_NL: Float64Array) -> float:
        """Log-likelihood per picture less the criterion's penalty, nats."""
        _, log_N = _parts(self.log_densities(looks_NL))
        count, numbers = looks_NL.shape
        free = (len(self) - 1) * (numbers + 1)  # the covariance is in every description
        return float(log_N.mean() - free * np.log(count) / (2 * count))


def single(looks_NL: Float64Array) -> Mixture:
    """One look for all."""
    return _described(looks_NL, np.ones((len(looks_NL), 1)))


def best_mixture(looks_NL: Float64Array, settings: MixtureSettings) -> Mixture:
    """The description with most evidence; ``single`` unless another is better by the margin."""
    one, rng = single(looks_NL), np.random.default_rng(_SEED)
    best, most = one, one.evidence(looks_NL)
    least = most + settings.margin
    for count in (count for count in _COMPONENTS if count <= settings.most):
        mixture = _fitted(looks_NL, count, settings, rng)
        if (evidence := mixture.evidence(looks_NL)) > most:
            best, most = mixture, evidence
        if best is one:
            break
    return best if most > least else one


def in_turns(looks_NL: Float64Array, settings: MixtureSettings) -> Mixture:
    """The description of looks that alternate; ``single`` where they do not. A few odd pictures may not decide it."""
    best = best_mixture(looks_NL, settings)
    label_N = best.nearest(looks_NL)
    share_K = np.bincount(label_N, minlength=len(best)) / len(looks_NL)
    common_N = share_K[label_N] >= settings.rare
    rest = best if common_N.all() else best_mixture(looks_NL[common_N], settings)
    return best if alternates(rest.nearest(looks_NL[common_N]), settings) else single(looks_NL)


def alternates(labels_N: Labels, settings: MixtureSettings) -> bool:
    """Whether looks come in turns, and still do in the later half: before a change of the world those of one may have
    alternated, and some of them be like that of now."""
    return all(_neighbours_differ(part_N, settings) for part_N in (labels_N, labels_N[len(labels_N) // 2 :]))


def _neighbours_differ(labels_N: Labels, settings: MixtureSettings) -> bool:
    """Whether several looks have their share, and neighbours are of different ones often enough, however the looks are
    put into two groups: after a change of the world, those of before and those of now may each be several."""
    kinds, counts = np.unique(labels_N, return_counts=True)
    return float(counts.max()) <= settings.largest * len(labels_N) and all(
        _groups_alternate(np.isin(labels_N, group), settings)
        for size in range(1, len(kinds) // 2 + 1)
        for group in combinations(kinds, size)
    )


def _groups_alternate(inside_N: NDArray[np.bool_], settings: MixtureSettings) -> bool:
    """Whether a group of looks and the others alternate; a group of odd pictures may come as it likes."""
    share = float(inside_N.mean())
    if min(share, 1 - share) < settings.rare:
        return True
    return float((np.diff(inside_N) != 0).mean()) >= settings.alternation * 2 * share * (1 - share)


def _fitted(looks_NL: Float64Array, count: int, settings: MixtureSettings, rng: np.random.Generator) -> Mixture:
    """Expectation maximisation from a few starting points."""
    found = []
    for _ in range(settings.starts):
        mixture = _started(looks_NL, count, rng)
        for _ in range(settings.rounds):
            mixture = _described(looks_NL, _parts(mixture.log_densities(looks_NL))[0])
        found.append(mixture)
    return max(found, key=lambda mixture: mixture.evidence(looks_NL))


def _started(looks_NL: Float64Array, count: int, rng: np.random.Generator) -> Mixture:
    """Means at pictures far from each other: k-means++ (Arthur and Vassilvitskii, SODA 2007), of a few tries each."""
    covariance_LL = single(looks_NL).covariance_LL
    white_NL = looks_NL @ np.linalg.inv(np.linalg.cholesky(covariance_LL)).T
    chosen = [int(rng.integers(len(looks_NL)))]
    far_N = _squares(white_NL, white_NL[chosen])[:, 0]
    while len(chosen) < count:
        weight_N = far_N + _FAR_LEAST
        tried = rng.choice(len(looks_NL), size=_TRIED, p=weight_N / weight_N.sum())
        left_NT = np.minimum(_squares(white_NL, white_NL[tried]), far_N[:, None])
        best = int(left_NT.sum(axis=0).argmin())
        chosen.append(int(tried[best]))
        far_N = left_NT[:, best]
    return Mixture(np.full(count, 1 / count), looks_NL[chosen], covariance_LL / 2)


def _described(looks_NL: Float64Array, part_NK: Float64Array) -> Mixture:
    """By the part of each picture in each component, which add up to 1."""
    count, numbers = looks_NL.shape
    middle_L = looks_NL.mean(axis=0)
    apart_NL = looks_NL - middle_L
    weight_K = part_NK.sum(axis=0) + _SHARE_LEAST
    mean_KL = (part_NK.T @ apart_NL) / weight_K[:, None]
    within_LL = (apart_NL.T @ apart_NL - (mean_KL.T * weight_K) @ mean_KL) / count
    return Mixture(weight_K / weight_K.sum(), mean_KL + middle_L, within_LL + SCENE_SD**2 * np.eye(numbers))


def _parts(log_NK: Float64Array) -> tuple[Float64Array, Float64Array]:
    """exp(log) as parts of 1 [N, K], and the logarithm of its sum [N]."""
    most_N1 = log_NK.max(axis=1, keepdims=True)
    raised_NK = np.exp(log_NK - most_N1)
    sum_N1 = raised_NK.sum(axis=1, keepdims=True)
    return raised_NK / sum_N1, (most_N1 + np.log(sum_N1))[:, 0]


def _squares(points_NL: Float64Array, means_KL: Float64Array) -> Float64Array:
    """Squared distances [N, K]."""
    apart_NKL = points_NL[:, None] - means_KL
    return np.asarray(np.square(apart_NKL).sum(axis=2))
