"""From rows to what is compared: one ``Summary`` per method and condition, and the cases that are lost.

Rows come in from one or several runs of ``cema bench run``; the report shows what goes out. Methods are compared
within a ``Group`` only, and differences to a reference are taken on the same corruptions and seeds.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from cema.bench.corruptions import COMMON, SEVERITIES
from cema.bench.grouping import Entry, Group, Options, entries, group_of, in_order
from cema.bench.metrics import IMAGENET_C, bytes_per_recovered_point, mce, mean_error, worst_corruption
from cema.bench.rows import Row, Where
from cema.errors import ConfigError

SOURCE = "source"
"""The unadapted model: what recovered points are counted from."""
LABELS = "labels"
"""The reference trained with the true labels: what the gap closed is a share of."""
_FORWARD_ONLY = ("none", "forward")
_PER_CENT = 100.0
_ROUNDING_POINTS = 1e-6
"""Means of equal accuracies may differ by this; one image of a million is more."""


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """One method in one group: the mean over ``corruptions``, then over ``seeds``. Accuracies, errors, ECE: 0..1.

    Bytes and seconds are, as those of a row, per stream: of one corruption.
    """

    group: Group
    method: str
    options: Options
    where: Where
    corruptions: tuple[str, ...]
    """The fifteen common ones when all are there, else all but clean; of the seed that covers most."""
    seeds: tuple[int, ...]
    partial_seeds: tuple[int, ...]
    """Left out of every figure: they lack some of ``corruptions``."""
    complete: bool = True
    """Whether it covers all corruptions that any method of the group is averaged over; if not, do not rank it."""
    samples: float
    """Images per stream."""
    accuracy: float
    spread: float | None
    """Sample standard deviation of the seeds' mean accuracies; None with one seed: it is unknown, not small."""
    accuracy_second_half: float
    mean_error: float
    mce: float | None = None
    """ImageNet-C with all corruptions and severities alone; over the severities of the other groups, too."""
    ece: float
    worst_corruption: str
    worst_accuracy: float
    accuracy_of: dict[str, float]
    """By corruption, mean over those of ``seeds`` that have it; clean and the tuning corruptions as well."""
    upload_share: float
    """Uploads / images, 0..1."""
    bytes_up: float
    bytes_down: float
    bytes_per_point: float | None = None
    """Bytes both ways / percentage points above source; None without source or when nothing was recovered."""
    edge_ms_p50: float
    """Per image; median over the rows, as the next."""
    edge_ms_p99: float
    cloud_s: float
    peak_rss_mb: float
    """Highest of the rows, as the next two."""
    edge_peak_mb: float | None
    cloud_peak_mb: float | None
    gap_closed: float | None = None
    """(accuracy - source) / (labels - source); None without both, or when the labels do not help."""

    @property
    def bytes_total(self) -> float:
        """Up and down."""
        return self.bytes_up + self.bytes_down


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """A cloud-edge method against the best forward-only method (source included) on one corruption, same seeds."""

    group: Group
    corruption: str
    method: str
    options: Options
    accuracy: float
    rival: str
    rival_options: Options
    rival_accuracy: float
    behind_points: float
    """Percentage points below the rival; negative when ahead."""
    behind_source_points: float | None
    """Percentage points below source; negative when ahead, None without source."""
    images: int
    """Of a stream, in the mean of the seeds."""
    seeds: int

    @property
    def lost(self) -> bool:
        return self.behind_points > _ROUNDING_POINTS

    @property
    def lost_to_source(self) -> bool:
        return self.behind_source_points is not None and self.behind_source_points > _ROUNDING_POINTS


def summarise(rows: Sequence[Row]) -> list[Summary]:
    """Groups in order of appearance; in each, complete methods first, the most accurate first.

    Raises ConfigError without rows.
    """
    if not rows:
        raise ConfigError("expected at least one row to summarise, got none", hint="run cema bench run first")
    groups, found = entries(rows), []
    for members in groups.values():
        everything = {name for entry in members for name in entry.corruptions}
        source, labels = _reference(members, SOURCE), _reference(members, LABELS)
        each = [
            msgspec.structs.replace(
                _figures(entry),
                complete=set(entry.corruptions) >= everything,
                mce=_mce(entry, groups),
                bytes_per_point=_bytes_per_point(entry, source),
                gap_closed=_gap_closed(entry, source, labels),
            )
            for entry in members
        ]
        found.extend(sorted(each, key=lambda summary: (not summary.complete, -summary.accuracy)))
    return found


def comparisons(rows: Sequence[Row]) -> list[Case]:
    """Every (cloud-edge method, corruption, group) that has a forward-only rival: the most behind first."""
    cases: list[Case] = []
    for members in entries(rows).values():
        rivals = [entry for entry in members if entry.row.where in _FORWARD_ONLY]
        for entry in members:
            if entry.row.where == "cloud":
                names = in_order({name for name, _ in entry.cells})
                cases.extend(case for name in names if (case := _case(entry, name, rivals)))
    return sorted(cases, key=lambda case: -case.behind_points)


def losing_cases(rows: Sequence[Row]) -> list[Case]:
    """The comparisons in which the cloud-edge method is below source or the best forward-only method; worst first."""
    return [case for case in comparisons(rows) if case.lost]


def _accuracy(row: Row) -> float:
    return row.accuracy


def _size(row: Row) -> float:
    return row.bytes_up + row.bytes_down


def _reference(members: Sequence[Entry], method: str) -> Entry | None:
    """With its own settings, if there are several."""
    found = [entry for entry in members if entry.row.method == method]
    return min(found, key=lambda entry: len(entry.row.options), default=None)


def _figures(entry: Entry) -> Summary:
    """What follows from the method's own rows."""
    rows, accuracy_of = entry.rows(), _by_corruption(entry)
    judged = {name: accuracy_of[name] for name in entry.corruptions}
    of_seed = [entry.mean(_accuracy, [seed]) for seed in entry.seeds]
    worst, worst_accuracy = worst_corruption(judged)
    return Summary(
        group=group_of(entry.row),
        method=entry.row.method,
        options=entry.row.options,
        where=entry.row.where,
        corruptions=entry.corruptions,
        seeds=entry.seeds,
        partial_seeds=entry.partial_seeds,
        samples=entry.mean(lambda row: row.samples),
        accuracy=statistics.fmean(of_seed),
        spread=statistics.stdev(of_seed) if len(of_seed) > 1 else None,
        accuracy_second_half=entry.mean(lambda row: row.accuracy_second_half),
        mean_error=mean_error({name: 1 - value for name, value in judged.items()}),
        ece=entry.mean(lambda row: row.ece),
        worst_corruption=worst,
        worst_accuracy=worst_accuracy,
        accuracy_of=accuracy_of,
        upload_share=sum(row.uploads for row in rows) / sum(row.samples for row in rows),
        bytes_up=entry.mean(lambda row: row.bytes_up),
        bytes_down=entry.mean(lambda row: row.bytes_down),
        edge_ms_p50=statistics.median(row.edge_ms_p50 for row in rows),
        edge_ms_p99=statistics.median(row.edge_ms_p99 for row in rows),
        cloud_s=entry.mean(lambda row: row.cloud_s),
        peak_rss_mb=max(row.peak_rss_mb for row in rows),
        edge_peak_mb=_highest(row.edge_peak_mb for row in rows),
        cloud_peak_mb=_highest(row.cloud_peak_mb for row in rows),
    )


def _highest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _bytes_per_point(entry: Entry, source: Entry | None) -> float | None:
    seeds = entry.shared_seeds(entry.corruptions, source) if source else []
    if source is None or not seeds:
        return None
    names = entry.corruptions
    own, low = entry.mean(_accuracy, seeds), source.mean(_accuracy, seeds, names)
    return bytes_per_recovered_point(entry.mean(_size, seeds), own, low)


def _gap_closed(entry: Entry, source: Entry | None, labels: Entry | None) -> float | None:
    if source is None or labels is None:
        return None
    seeds = entry.shared_seeds(entry.corruptions, source, labels)
    if not seeds:
        return None
    own, low, high = (one.mean(_accuracy, seeds, entry.corruptions) for one in (entry, source, labels))
    return (own - low) / (high - low) if high > low else None


def _mce(entry: Entry, groups: Mapping[Group, Sequence[Entry]]) -> float | None:
    """Over all severities of the same method under the same condition."""
    group = group_of(entry.row)
    if group.dataset != IMAGENET_C:
        return None
    errors: dict[tuple[str, int], float] = {}
    for severity in SEVERITIES:
        for other in groups.get(msgspec.structs.replace(group, severity=severity), ()):
            if other.identity == entry.identity:
                its_accuracies = _by_corruption(other)
                errors.update({(name, severity): 1 - value for name, value in its_accuracies.items()})
    return mce(errors) if all((name, s) in errors for name in COMMON for s in SEVERITIES) else None


def _by_corruption(entry: Entry) -> dict[str, float]:
    found: dict[str, float] = {}
    for name in in_order({name for name, seed in entry.cells if seed in entry.seeds}):
        seeds = [seed for seed in entry.seeds if (name, seed) in entry.cells]
        found[name] = entry.mean(_accuracy, seeds, [name])
    return found


def _case(entry: Entry, name: str, rivals: Sequence[Entry]) -> Case | None:
    """Against the rival that is furthest ahead on the seeds that both have; None without such a rival."""
    duels = [(rival, seeds) for rival in rivals if (seeds := entry.shared_seeds([name], rival))]
    if not duels:
        return None
    ahead = [rival.mean(_accuracy, seeds, [name]) - entry.mean(_accuracy, seeds, [name]) for rival, seeds in duels]
    behind = max(ahead)
    rival, seeds = duels[ahead.index(behind)]
    to_source = [lead for (other, _), lead in zip(duels, ahead, strict=True) if other.row.method == SOURCE]
    return Case(
        group=group_of(entry.row),
        corruption=name,
        method=entry.row.method,
        options=entry.row.options,
        accuracy=entry.mean(_accuracy, seeds, [name]),
        rival=rival.row.method,
        rival_options=rival.row.options,
        rival_accuracy=rival.mean(_accuracy, seeds, [name]),
        behind_points=_PER_CENT * behind,
        behind_source_points=_PER_CENT * max(to_source) if to_source else None,
        images=round(sum(row.samples for seed in seeds for row in entry.cells[name, seed]) / len(seeds)),
        seeds=len(seeds),
    )
