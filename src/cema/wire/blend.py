"""How far a norm layer follows what is measured in a stream: the rule that edge and cloud share (docs/method.md).

    statistics = source + share (measured - source)
    share_l = share_max  n / (n + evidence)  (t + (1 - t) trust)  (1 - d_l + d_l v)

n: pictures measured. trust: 0 where the stream looks like the source to the early layers, 1 far from it. d_l: depth of
layer l, 0..1; v: diversity of the classes among the pictures. Deep layers carry the class, so that with few classes
they stay with the source, while the early ones may follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from cema.types import Float32Array

_VARIANCE_FLOOR = 1e-8


class BlendSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The rule's numbers, chosen on four corruptions of CIFAR-10 photographs (docs/method.md).

    share_max: of the measured statistics, 0..1. evidence: pictures at which half of it is reached. shift_half: squared
    log ratio of variances at which trust is 1/2; shift_power: how sharply it rises there. trust_least: t, what
    counts where the trust is 0: a little is right for any stream, and some networks gain by it on clean pictures.
    classes: that pictures must show before deep layers follow in full, if the model has so many.
    """

    share_max: Annotated[float, Meta(gt=0, lt=1)] = 0.65
    evidence: Annotated[float, Meta(ge=0)] = 8.0
    shift_half: Annotated[float, Meta(gt=0)] = 0.03
    shift_power: Annotated[float, Meta(gt=0)] = 2.0
    trust_least: Annotated[float, Meta(ge=0, le=1)] = 0.25
    classes: Annotated[int, Meta(ge=1)] = 64


BLEND = BlendSettings()


def trust(shift: float, settings: BlendSettings = BLEND) -> float:
    """0..1 by how far the stream is from the source (a Hill curve of ``shift_size``)."""
    raised = shift**settings.shift_power
    return float(raised / (raised + settings.shift_half**settings.shift_power))


def shares(
    pictures: int, trusted: float, diversity: float, layers: int, settings: BlendSettings = BLEND
) -> Float32Array:
    """Share of the measured statistics in each layer's, float32 [L], in the model's order."""
    depth_L = np.linspace(0, 1, layers, dtype=np.float32)
    trusted = settings.trust_least + (1 - settings.trust_least) * trusted
    most = settings.share_max * pictures / (pictures + settings.evidence) * trusted
    return np.asarray(most * (1 - depth_L + depth_L * diversity), np.float32)


def shift_size(log_ratios: Sequence[Float32Array], noises: Sequence[Float32Array] | None = None) -> float:
    """How far the early layers are from the source: median over their channels of ln(variance / source's)^2.

    log_ratios: ln(variance / source's) [C] of each layer. noises: expected square of the error of each, taken off.
    """
    squares = [ratio_C**2 for ratio_C in log_ratios]
    if noises is not None:
        squares = [square_C - noise_C for square_C, noise_C in zip(squares, noises, strict=True)]
    return max(0.0, float(np.median(np.concatenate(early(squares)))))


def early(layers: Sequence[Float32Array]) -> Sequence[Float32Array]:
    """Those that show light and sensor: not the first (its channels see pixels, and vary with what is in them), and
    none of the second half."""
    return layers[1 : max(2, len(layers) // 2)] or layers


def log_ratio(variance_C: Float32Array, source_C: Float32Array) -> Float32Array:
    """ln(variance / source's), finite for dead channels."""
    floor = _VARIANCE_FLOOR
    return np.asarray(np.log(np.maximum(variance_C, floor) / np.maximum(source_C, floor)), np.float32)


def diversity(counts: NDArray[np.int64], classes: int, settings: BlendSettings = BLEND) -> float:
    """Effective number of classes, exp(entropy), among those that pictures must show: 0..1.

    counts: pictures of each class that has some. classes: C.
    """
    share = counts / counts.sum()
    return min(1.0, float(np.exp(-(share * np.log(share)).sum())) / min(classes, settings.classes))
