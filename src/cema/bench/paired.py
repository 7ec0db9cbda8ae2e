"""Better, or lucky? Two methods on the same photographs, with a bootstrap interval of their difference.

A row says of every photograph whether it was answered right. Both methods saw the same ones, so the difference is
taken photograph by photograph, over all seeds and passes, and photographs are what is drawn anew: an interval over
seeds alone would not know that other photographs give other results.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from cema.bench.grouping import WHOLE_STREAM, Entry, Group, Options, entries, in_order
from cema.bench.rows import Row
from cema.errors import ConfigError

MEAN = "mean"
"""In ``Comparison.corruption``: over all corruptions, photograph by photograph."""
DRAWS = 10_000
"""Of the bootstrap: the ends of the interval are then good to about a fiftieth of its length."""
LEVEL = 0.95
_AT_ONCE = 500
_POINTS = 100.0


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """How much more often one method is right than another, in percentage points. low, high: ends of the 95 % interval.

    options, against_options: of the two. photographs: how many there are, each over all ``seeds``, visits and passes.
    """

    group: Group
    corruption: str
    options: Options
    against_options: Options
    seeds: tuple[int, ...]
    photographs: int
    difference: float
    low: float
    high: float


def pack(right_N: NDArray[np.bool_]) -> str:
    """For ``Row.right``."""
    return base64.b64encode(np.packbits(right_N).tobytes()).decode()


def unpack(row: Row) -> NDArray[np.float64]:
    """Share of right answers for each photograph, [P]. Raises ConfigError for a row that does not say."""
    bits = np.unpackbits(np.frombuffer(base64.b64decode(row.right), np.uint8))
    if not row.photographs or len(bits) < row.samples or row.samples % row.photographs:
        raise ConfigError(
            f"expected a row that says which answers were right, got one of {row.method} that does not",
            hint="run it again: files of older versions lack it, as do streams with other photographs for each device",
        )
    return np.asarray(bits[: row.samples].reshape(row.photographs, -1).mean(axis=1))


def compare(rows: Iterable[Row], method: str, against: str, seed: int = 0) -> list[Comparison]:
    """In every condition that has both, each corruption that both have, and the mean where there are several.

    seed: of the bootstrap. Raises ConfigError when no condition has both.
    """
    found = []
    for group, its_entries in entries(rows).items():
        ours = [entry for entry in its_entries if entry.row.method == method]
        theirs = [entry for entry in its_entries if entry.row.method == against]
        found += [
            line for one in ours for other in theirs if one is not other for line in _lines(group, one, other, seed)
        ]
    if not found:
        raise ConfigError(
            f"expected rows of {method} and {against} under one condition, on a common corruption and seed, got none"
        )
    return found


def _lines(group: Group, ours: Entry, theirs: Entry, seed: int) -> list[Comparison]:
    lines, parts = [], []
    common = in_order({name for name, _ in ours.cells} & {name for name, _ in theirs.cells})
    for name in common:
        seeds = ours.shared_seeds([name], theirs)
        if not seeds:
            continue
        difference_P = _difference(ours, theirs, name, seeds)
        parts.append(difference_P)
        lines.append(_line(group, ours, theirs, name, seeds, difference_P, seed))
    several = len(parts) > 1 and not set(common) & set(WHOLE_STREAM)
    if several and len({(len(part), line.seeds) for part, line in zip(parts, lines, strict=True)}) == 1:
        mean_P = np.mean(parts, axis=0)
        lines.append(_line(group, ours, theirs, MEAN, lines[0].seeds, mean_P, seed))
    return lines


def _difference(ours: Entry, theirs: Entry, name: str, seeds: Sequence[int]) -> NDArray[np.float64]:
    """Per photograph, mean over seeds and visits, [P]."""
    parts = []
    for seed in seeds:
        pairs = zip(ours.cells[name, seed], theirs.cells[name, seed], strict=True)
        parts += [unpack(one) - unpack(other) for one, other in pairs]
    if len({len(part) for part in parts}) > 1:  # other photographs in every seed: nothing to take a mean of
        return np.concatenate(parts)
    return np.asarray(np.mean(parts, axis=0))


def _line(
    group: Group, ours: Entry, theirs: Entry, name: str, seeds: Sequence[int], difference_P: NDArray[np.float64],
    seed: int,
) -> Comparison:  # fmt: skip
    low, high = interval(difference_P, np.random.default_rng(seed))
    return Comparison(
        group=group, corruption=name, options=ours.row.options, against_options=theirs.row.options, seeds=tuple(seeds),
        photographs=len(difference_P), difference=_POINTS * float(difference_P.mean()), low=_POINTS * low,
        high=_POINTS * high,
    )  # fmt: skip


def interval(values_P: NDArray[np.float64], rng: np.random.Generator) -> tuple[float, float]:
    """Ends of the percentile bootstrap interval of the mean (Efron & Tibshirani, 1993, chapter 13)."""
    means = [
        values_P[rng.integers(len(values_P), size=(_AT_ONCE, len(values_P)))].mean(axis=1)
        for _ in range(DRAWS // _AT_ONCE)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
