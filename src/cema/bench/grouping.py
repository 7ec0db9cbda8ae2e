"""Rows in their places: condition, method, corruption, seed. What the summary and the report stand on.

A ``Group`` is a condition under which methods are compared; an ``Entry`` is one method in it.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from cema.bench.corruptions import CLEAN, COMMON, NAMES
from cema.bench.rows import ALL, Row
from cema.bench.streams import MIXED

Options = Mapping[str, bool | int | float | str]
Identity = tuple[str, str]
"""A method and its options, comparable."""
WHOLE_STREAM = (ALL, MIXED)
"""Rows of a whole stream; judged only where a stream has no row per corruption."""


class Group(msgspec.Struct, frozen=True):
    """The condition under which methods are compared; fields as in ``Row``."""

    dataset: str
    setting: str
    severity: int
    batch_size: int
    edges: int
    link: str
    delay: int
    stream: str = ""


@dataclass(frozen=True)
class Entry:
    """All rows of one method in one group, by (corruption, seed); a condition that returns has several per cell.

    corruptions: what a mean is taken over, by the seed that covers most. seeds: those that have all of these.
    """

    cells: dict[tuple[str, int], list[Row]]
    corruptions: tuple[str, ...]
    seeds: tuple[int, ...]

    @property
    def row(self) -> Row:
        """Any of them: for what all have in common."""
        return next(iter(self.cells.values()))[0]

    @property
    def identity(self) -> Identity:
        return identity_of(self.row.method, self.row.options)

    @property
    def partial_seeds(self) -> tuple[int, ...]:
        return tuple(sorted({seed for _, seed in self.cells} - set(self.seeds)))

    def rows(self) -> list[Row]:
        """Those that the means are of."""
        return [row for seed in self.seeds for name in self.corruptions for row in self.cells[name, seed]]

    def mean(
        self, value: Callable[[Row], float], seeds: Sequence[int] | None = None, corruptions: Sequence[str] = ()
    ) -> float:
        """Over the corruptions, then over the seeds; the entry's own unless given."""
        names = corruptions or self.corruptions
        return statistics.fmean(
            statistics.fmean(statistics.fmean(map(value, self.cells[name, seed])) for name in names)
            for seed in (self.seeds if seeds is None else seeds)
        )

    def shared_seeds(self, corruptions: Iterable[str], *others: Entry) -> list[int]:
        """Seeds for which this entry and the others have all of the corruptions: what a fair difference needs."""
        names = tuple(corruptions)
        seeds = sorted({seed for _, seed in self.cells})
        return [s for s in seeds if all((name, s) in one.cells for name in names for one in (self, *others))]


def group_of(row: Row) -> Group:
    """The condition that a row belongs to."""
    same = (row.dataset, row.setting, row.severity, row.batch_size, row.edges, row.link, row.delay, row.stream)
    return Group(*same)


def identity_of(method: str, options: Options) -> Identity:
    """Equal for a method with equal options, whatever their order."""
    return method, msgspec.json.encode(options, order="sorted").decode()


def entries(rows: Iterable[Row]) -> dict[Group, list[Entry]]:
    """Groups and methods in order of appearance."""
    found: dict[Group, dict[Identity, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        found[group_of(row)][identity_of(row.method, row.options)].append(row)
    return {group: [_entry(its_rows) for its_rows in methods.values()] for group, methods in found.items()}


def averaged(corruptions: Iterable[str]) -> tuple[str, ...]:
    """Which of them a mean is taken over: the fifteen common ones when all are there, else all but clean."""
    names = set(corruptions)
    chosen = set(COMMON) if names.issuperset(COMMON) else names - {CLEAN} or names
    return in_order(chosen)


def in_order(corruptions: Iterable[str]) -> tuple[str, ...]:
    """As ImageNet-C lists them; names that it does not know last, by alphabet."""
    return tuple(sorted(corruptions, key=lambda name: (NAMES.index(name) if name in NAMES else len(NAMES), name)))


def _entry(rows: list[Row]) -> Entry:
    cells: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in [row for row in rows if row.corruption not in WHOLE_STREAM] or rows:
        cells[row.corruption, row.seed].append(row)
    of_seed: dict[int, list[str]] = defaultdict(list)
    for name, seed in cells:
        of_seed[seed].append(name)
    widest = max(of_seed, key=lambda seed: (len(of_seed[seed]), -seed))
    corruptions = averaged(of_seed[widest])
    seeds = tuple(sorted(seed for seed, names in of_seed.items() if set(corruptions) <= set(names)))
    return Entry(dict(cells), corruptions, seeds)
