"""The arithmetic of measurements that are pooled: what the statistics graph is given, and what is made of the pool.

In: mean and variance of each norm layer, of the source and pooled from several measurements. Out: norm statistics.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cema.edge.measuring import moments_of
from cema.edge.worlds import LayerStatistics
from cema.types import Float32Array, NormParameters
from cema.wire.bundle import MeasuredLayer


def prior(source: LayerStatistics, pool: LayerStatistics | None, share: float, weight: float) -> LayerStatistics:
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


def taken_in(
    pool: Sequence[LayerStatistics], measured: Sequence[tuple[Float32Array, Float32Array]], weight: float
) -> tuple[list[LayerStatistics], list[Float32Array]]:
    """The pool, moved by this weight to what was measured (to all of it while there is none), and the squared relative
    error [C] of each layer's variance by that. measured: of each layer, see ``cema.edge.measuring.Moments``."""
    moved, errors = [], []
    for index, (first_BC, second_BC) in enumerate(measured):
        mean_C, var_C, error_C = moments_of(first_BC, second_BC)
        if pool:
            old_mean_C, old_var_C = pool[index]
            mean_C, var_C = old_mean_C + weight * (mean_C - old_mean_C), old_var_C + weight * (var_C - old_var_C)
        moved.append((mean_C, var_C))
        errors.append(error_C * np.float32(weight))
    return moved, errors


def blended(
    source: NormParameters, layers: Sequence[MeasuredLayer], pool: Sequence[LayerStatistics], share_L: Float32Array
) -> NormParameters:
    """Each layer's statistics: the source's, moved to the pool's by its share."""
    statistics: NormParameters = {}
    for layer, share, moments in zip(layers, share_L, pool, strict=True):
        for name, value in zip((layer.mean, layer.var), moments, strict=True):
            statistics[name] = (source[name] + share * (value - source[name])).astype(np.float32)
    return statistics
