"""What a device sees, picture by picture: which photograph, under which corruption, in which order.

A *setting* turns a list of corruptions into streams. A stream is cut into segments, one per corruption (and visit);
a result row belongs to a segment. Batches never cross the border of a segment. Everything follows from the seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cema.bench.datasets import Dataset, Photographs
from cema.errors import ConfigError
from cema.types import Uint8Array

Indices = NDArray[np.int64]
Condition = tuple[str, int]
"""(corruption, severity)."""

ALONE = ("reset", "correlated", "label_shift")
"""Settings in which every corruption is a stream of its own and the method starts afresh for each."""
PASSING = ("continual", "gradual", "mixed", "recurring")
"""Settings in which one stream passes through all corruptions, and nothing is reset."""
SETTINGS = (*ALONE, *PASSING)
MIXED = "mixed"


@dataclass(frozen=True)
class Shape:
    """How a setting is shaped. alpha: concentration of the Dirichlet distribution over time of each class
    (``correlated``; RoTTA and NOTE use 0.1), 0 = sorted by class. imbalance: most frequent class / rarest
    (``label_shift``; long-tailed CIFAR uses 10 to 100). visits: how often each corruption comes (``recurring``).
    shuffle: whether the seed draws the order of the photographs; else it is that of the data set. passes: how often a
    stream goes over the photographs (``ALONE``), each time in an order of its own."""

    alpha: float = 0.1
    imbalance: float = 10.0
    visits: int = 3
    shuffle: bool = True
    passes: int = 1

    def __post_init__(self) -> None:
        enough = self.visits >= 2 and self.passes >= 1
        if not (0 <= self.alpha < math.inf and 1 <= self.imbalance < math.inf and enough):
            raise ConfigError(f"expected alpha >= 0, imbalance >= 1, visits >= 2 and passes >= 1, got {self}")


@dataclass(frozen=True)
class Segment:
    """A stretch of a stream. index_N: photographs of the data set. conditions: what can befall them; condition_N: which
    does. corruption, severity, visit: of the result row."""

    corruption: str
    severity: int
    index_N: Indices
    conditions: tuple[Condition, ...]
    condition_N: Indices
    visit: int = 0

    def __len__(self) -> int:
        return len(self.index_N)


@dataclass(frozen=True)
class Stream:
    """One device's pictures. in_order: the order is what the stream is about, so that other devices keep it."""

    segments: tuple[Segment, ...]
    in_order: bool = False

    def __len__(self) -> int:
        return sum(map(len, self.segments))


@dataclass
class Pictures:
    """Corrupted copies of a data set, made (or read from the cache) when first asked for."""

    dataset: Dataset
    seed: int
    cache_dir: Path | None = None
    _made: dict[Condition, Uint8Array | Photographs] = field(default_factory=dict)

    def batches(self, segment: Segment, batch_size: int) -> Iterator[tuple[Indices, Uint8Array, Indices]]:
        """(photographs int64 [B], images uint8 [B, H, W, 3], labels int64 [B]) in stream order; the last may be
        smaller."""
        for start in range(0, len(segment), batch_size):
            part = slice(start, start + batch_size)
            pairs = zip(segment.index_N[part], segment.condition_N[part], strict=True)
            images = np.stack([self._condition(segment.conditions[which])[index] for index, which in pairs])
            yield segment.index_N[part], images, self.dataset.labels[segment.index_N[part]]

    def _condition(self, condition: Condition) -> Uint8Array | Photographs:
        if condition not in self._made:
            self._made[condition] = self.dataset.condition(*condition, self.seed, self.cache_dir)
        return self._made[condition]


def make_streams(
    setting: str, corruptions: Sequence[str], severity: int, labels_N: Indices, seed: int, shape: Shape | None = None
) -> list[Stream]:
    """The streams of a setting: one per corruption for ``ALONE``, one in all for ``PASSING``.

    labels_N: int64, of the photographs that are streamed. The same seed gives the same order under every setting that
    keeps the order (``reset``, ``continual``, ``mixed``).

    Raises
    ------
    ConfigError: unknown setting, no corruption, too few photographs for it, or several passes with ``PASSING``.
    """
    if setting not in SETTINGS:
        raise ConfigError(f"expected a setting out of {', '.join(SETTINGS)}, got {setting!r}")
    if not corruptions:
        raise ConfigError("expected at least one corruption, got none")
    shape, rng = shape or Shape(), np.random.default_rng(seed)
    if setting in PASSING and shape.passes > 1:
        raise ConfigError(f"expected one pass with the setting {setting}, got {shape.passes}")
    order_N = np.concatenate([_order(setting, labels_N, shape, rng) for _ in range(shape.passes)])
    in_order = setting == "correlated" or not shape.shuffle
    if setting in ALONE:
        return [Stream((_plain(name, severity, order_N),), in_order) for name in corruptions]
    return [Stream(_passing(setting, corruptions, severity, order_N, shape.visits, rng), in_order)]


def for_edge(stream: Stream, edge: int, edges: int) -> Stream:
    """What edge ``edge`` of ``edges`` sees: the same segments, begun further round the circle, so that at any time the
    devices of a group are under different conditions; photographs in another order, or begun further on, too, where
    their order is what the stream is about."""
    if edge == 0:
        return stream
    turn = edge * len(stream.segments) // edges
    segments = stream.segments[turn:] + stream.segments[:turn]
    rng = np.random.default_rng((edge, len(stream)))

    def moved(index_N: Indices) -> Indices:
        return np.roll(index_N, -(edge * len(index_N) // edges)) if stream.in_order else rng.permutation(index_N)

    return replace(stream, segments=tuple(replace(each, index_N=moved(each.index_N)) for each in segments))


def _passing(
    setting: str, corruptions: Sequence[str], severity: int, order_N: Indices, visits: int, rng: np.random.Generator
) -> tuple[Segment, ...]:
    if setting == "continual":
        return tuple(_plain(name, severity, order_N) for name in corruptions)
    if setting == "gradual":
        return tuple(_gradual(name, severity, order_N) for name in corruptions)
    if setting == "mixed":
        conditions = tuple((name, severity) for name in corruptions)
        which_N = rng.integers(len(conditions), size=len(order_N))
        return (Segment(MIXED, severity, order_N, conditions, which_N),)
    return _recurring(corruptions, severity, order_N, visits)


def _order(setting: str, labels_N: Indices, shape: Shape, rng: np.random.Generator) -> Indices:
    order_N = rng.permutation(len(labels_N)) if shape.shuffle else np.arange(len(labels_N))
    if setting == "correlated":
        return _dirichlet(labels_N, order_N, shape.alpha, rng)
    if setting == "label_shift":
        return _long_tail(labels_N, order_N, shape.imbalance, rng)
    return order_N


def _plain(name: str, severity: int, index_N: Indices, visit: int = 0) -> Segment:
    return Segment(name, severity, index_N, ((name, severity),), np.zeros(len(index_N), np.int64), visit)


def _gradual(name: str, severity: int, index_N: Indices) -> Segment:
    """Severity rises from 1 to ``severity`` and falls again, in equal steps."""
    steps = [*range(1, severity + 1), *range(severity - 1, 0, -1)]
    which_N = np.arange(len(index_N)) * len(steps) // len(index_N)
    return Segment(name, severity, index_N, tuple((name, step) for step in steps), which_N)


def _recurring(corruptions: Sequence[str], severity: int, order_N: Indices, visits: int) -> tuple[Segment, ...]:
    """The whole list again and again; each visit has its share of the photographs."""
    shares = np.array_split(order_N, visits)
    if not len(shares[-1]):
        raise ConfigError(f"expected at least {visits} photographs for {visits} visits, got {len(order_N)}")
    return tuple(_plain(name, severity, share, visit) for visit, share in enumerate(shares) for name in corruptions)


def _dirichlet(labels_N: Indices, order_N: Indices, alpha: float, rng: np.random.Generator) -> Indices:
    """Each class spreads over as many slots of time as there are classes, by a Dirichlet draw (as in NOTE, Gong et al.,
    NeurIPS 2022, and RoTTA, Yuan et al., CVPR 2023); alpha = 0: one class after the other."""
    classes = np.unique(labels_N)
    if alpha == 0:
        return order_N[np.argsort(labels_N[order_N], kind="stable")]
    slots: list[list[Indices]] = [[] for _ in classes]
    for label in classes:
        members = order_N[labels_N[order_N] == label]
        ends = np.round(np.cumsum(rng.dirichlet(np.full(len(classes), alpha))) * len(members)).astype(int)[:-1]
        for slot, part in zip(slots, np.split(members, ends), strict=True):
            slot.append(part)
    return np.concatenate([part for slot in slots for part in (slot[i] for i in rng.permutation(len(slot)))])


def _long_tail(labels_N: Indices, order_N: Indices, imbalance: float, rng: np.random.Generator) -> Indices:
    """Class k of K keeps imbalance ** (-rank / (K - 1)) of its photographs; which class is rare follows the seed."""
    classes = rng.permutation(np.unique(labels_N))
    share = dict(zip(classes.tolist(), imbalance ** -np.linspace(0, 1, len(classes)), strict=True))
    kept: list[int] = []
    for label in classes.tolist():
        members = order_N[labels_N[order_N] == label]
        kept += members[: max(1, round(len(members) * share[label]))].tolist()
    chosen = np.zeros(len(labels_N), np.bool_)
    chosen[kept] = True
    return order_N[chosen[order_N]]
