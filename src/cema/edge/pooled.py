"""The arithmetic of measurements that are pooled: what the statistics graph is given, and what is made of the pool.

In: mean and variance of each norm layer, of the source and pooled from several measurements. Out: norm statistics.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cema.edge.worlds import Moments
from cema.types import Float32Array, NormParameters
from cema.wire.bundle import MeasuredLayer


def prior(source: Moments, pool: Moments | None, share: float, weight: float) -> Moments:
    """What the graph must blend with a measurement m of one layer, by share * weight, so that out comes

    (1 - share) source + share ((1 - weight) pool + weight m)

    mean [C] and variance [C] each; pool: None before the first measurement.
    """
    if pool is None or weight >= 1:
        return source
    kept, rest = share * (1 - weight), 1 - share * weight
    mean_C, var_C = (
        np.asarray(((1 - share) * known + kept * pooled) / rest, np.float32)
        for known, pooled in zip(source, pool, strict=True)
    )
    return mean_C, var_C


def blended(
    source: NormParameters, layers: Sequence[MeasuredLayer], pool: Sequence[Moments], share_L: Float32Array
) -> NormParameters:
    """Each layer's statistics: the source's, moved to the pool's by its share."""
    statistics: NormParameters = {}
    for layer, share, moments in zip(layers, share_L, pool, strict=True):
        for name, value in zip((layer.mean, layer.var), moments, strict=True):
            statistics[name] = (source[name] + share * (value - source[name])).astype(np.float32)
    return statistics
