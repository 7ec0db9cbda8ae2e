"""What the report's page says, group by group: names, tables, plots, and the losing cases in words.

Rows come in, ``GroupPage`` objects go out; the template only lays them out.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from cema.bench.corruptions import COMMON
from cema.bench.grouping import Group, Identity, group_of, identity_of, in_order
from cema.bench.report_curves import stream_lines
from cema.bench.report_plots import Dot, Line, pareto, stream_plot
from cema.bench.rows import Row, Where
from cema.bench.streams import MIXED, PASSING
from cema.bench.summary import LABELS, SOURCE, Case, Summary, comparisons, summarise

DEVICE_CLASS: dict[Where, str] = {
    "none": "inference only",
    "forward": "forward passes",
    "backward": "back-propagation",
    "cloud": "cloud uplink",
}
"""What a method asks of the device, in words."""
_PER_CENT = 100.0


@dataclass(frozen=True)
class CaseLine:
    """A losing case with the names of the page."""

    case: Case
    name: str
    rival: str


@dataclass(frozen=True)
class GroupPage:
    """One group. names: per identity of a method, unique within the group. chance: how far figures differ by it."""

    id: str
    title: str
    dataset: str
    summaries: list[Summary]
    names: Mapping[Identity, str]
    corruptions: tuple[str, ...]
    pareto: Markup | None
    stream: Markup | None
    stream_caption: str
    lines: list[Line]
    losing: list[CaseLine]
    words: list[str]
    notes: list[str]
    chance: str

    @property
    def has_mce(self) -> bool:
        return any(summary.mce is not None for summary in self.summaries)

    @property
    def unit(self) -> str:
        """What bytes and seconds are of."""
        return _unit(self.summaries)

    @property
    def classes(self) -> list[Where]:
        """Of the methods shown, in the order of their demands."""
        found = {summary.where for summary in self.summaries}
        return [where for where in DEVICE_CLASS if where in found]

    @property
    def ranked(self) -> list[Summary]:
        """Methods that may be the best: not the reference, and averaged over what the others are averaged over."""
        return [summary for summary in self.summaries if summary.complete and summary.method != LABELS]

    @property
    def leader(self) -> Summary | None:
        return max(self.ranked, key=lambda summary: summary.accuracy, default=None)

    def name(self, summary: Summary) -> str:
        return self.names[identity_of(summary.method, summary.options)]

    def tags(self, summary: Summary) -> list[str]:
        """What a reader must know before comparing."""
        reference = ["reference: sees the true labels"] if summary.method == LABELS else []
        return reference + ([] if summary.complete else ["other corruptions: not ranked"])

    def below_source(self, summary: Summary, corruption: str) -> bool:
        source = next((one for one in self.summaries if one.method == SOURCE), None)
        low = source.accuracy_of.get(corruption) if source else None
        return low is not None and summary.accuracy_of[corruption] < low

    def is_best(self, summary: Summary, corruption: str) -> bool:
        rivals = [one for one in self.summaries if one.method != LABELS and corruption in one.accuracy_of]
        highest = max((one.accuracy_of[corruption] for one in rivals), default=0.0)
        return summary in rivals and summary.accuracy_of[corruption] >= highest


@dataclass(frozen=True)
class Overview:
    """Mean accuracy of every method in every group; None where it was not run."""

    pages: list[GroupPage]
    rows: list[tuple[str, list[Summary | None]]]


def count(number: int, noun: str) -> str:
    """
    >>> count(1, "row"), count(1200, "row")
    ('1 row', '1,200 rows')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def group_pages(rows: Sequence[Row]) -> list[GroupPage]:
    """One page part per group, in order of appearance."""
    summaries, cases = summarise(rows), comparisons(rows)
    groups = dict.fromkeys(summary.group for summary in summaries)
    return [
        _page(
            index,
            [summary for summary in summaries if summary.group == group],
            [case for case in cases if case.group == group],
            [row for row in rows if group_of(row) == group],
        )
        for index, group in enumerate(groups)
    ]


def overview(pages: Sequence[GroupPage]) -> Overview:
    """Methods by the groups they are in; a method with several sets of options counts per set."""
    found: dict[str, list[Summary | None]] = {}
    for column, page in enumerate(pages):
        for summary in page.summaries:
            found.setdefault(page.name(summary), [None] * len(pages))[column] = summary
    return Overview(list(pages), sorted(found.items(), key=_overview_order))


def _overview_order(item: tuple[str, list[Summary | None]]) -> tuple[int, float]:
    """Who was run most often first, then by accuracy."""
    known = [summary.accuracy for summary in item[1] if summary]
    return -len(known), -statistics.fmean(known)


def title(group: Group) -> str:
    """
    >>> title(Group("cifar10", "reset", 5, 64, 1, "instant", 2))
    'cifar10, reset, severity 5, batch 64, updates 2 batches late'
    """
    parts = [group.dataset, group.setting, f"severity {group.severity}", f"batch {group.batch_size}"]
    parts += [f"{group.edges} edges"] if group.edges != 1 else []
    parts += [f"link {group.link}"] if group.link != "instant" else []
    parts += [group.stream] if group.stream else []
    parts += [f"updates {count(group.delay, 'batch').replace('batchs', 'batches')} late"] if group.delay else []
    return ", ".join(parts)


def _page(index: int, summaries: list[Summary], cases: list[Case], rows: list[Row]) -> GroupPage:
    names = _names(summaries)
    corruptions = in_order({name for summary in summaries for name in summary.accuracy_of})
    curves = stream_lines(rows, names)
    losing = [case for case in cases if case.lost]
    return GroupPage(
        id=f"group-{index}",
        title=title(summaries[0].group),
        dataset=summaries[0].group.dataset,
        summaries=summaries,
        names=names,
        corruptions=corruptions,
        pareto=_pareto(summaries, names),
        stream=stream_plot(curves.lines, curves.stretches, curves.images) if curves.lines else None,
        stream_caption=curves.caption,
        lines=curves.lines,
        losing=[CaseLine(case, names[_own(case)], names[_rival(case)]) for case in losing],
        words=_words(cases, names),
        notes=_notes(summaries, names),
        chance=_chance(losing),
    )


def _own(case: Case) -> Identity:
    return identity_of(case.method, case.options)


def _rival(case: Case) -> Identity:
    return identity_of(case.rival, case.rival_options)


def _names(summaries: Sequence[Summary]) -> dict[Identity, str]:
    """In the order of the table: the method, with the options that differ where it is there with several sets."""
    sets: dict[str, list[Summary]] = defaultdict(list)
    for summary in summaries:
        sets[summary.method].append(summary)
    names = {}
    for summary in summaries:
        several = sets[summary.method]
        shared = set.intersection(*(set(other.options.items()) for other in several))
        own = ", ".join(f"{k}={v}" for k, v in sorted(summary.options.items()) if (k, v) not in shared)
        shown = f"{summary.method} ({own or 'defaults'})" if len(several) > 1 else summary.method
        names[identity_of(summary.method, summary.options)] = shown
    return names


def _pareto(summaries: Sequence[Summary], names: Mapping[Identity, str]) -> Markup | None:
    """None when nothing was sent at all: the table says the rest."""
    shown = [summary for summary in summaries if summary.method != LABELS and summary.complete]
    if not any(summary.bytes_total for summary in shown):
        return None
    ceiling = next((summary.accuracy for summary in summaries if summary.method == LABELS and summary.complete), None)
    dots = [
        Dot(names[identity_of(s.method, s.options)], s.where, s.bytes_total, s.accuracy, s.where != "backward")
        for s in shown
    ]
    return pareto(dots, ceiling, f"{_unit(summaries)} of {shown[0].samples:,.0f} images")


def _unit(summaries: Sequence[Summary]) -> str:
    """A stream, or its stretch under one corruption where it passes through several."""
    group = summaries[0].group
    return "stretch" if group.setting in PASSING and group.setting != MIXED else "stream"


def _chance(losing: Sequence[Case]) -> str:
    """Two standard errors of a difference of two shares, at the first case's accuracy."""
    if not losing:
        return ""
    share, images = losing[0].accuracy, losing[0].images
    points = 2 * _PER_CENT * math.sqrt(2 * share * (1 - share) / images)
    return (
        f"How much may be chance: two accuracies near {_PER_CENT * share:.0f} % on {images:,} images each differ by "
        f"up to {_points(points)} (two standard errors of independent images; less on the same images, as here)."
    )


def _words(cases: Sequence[Case], names: Mapping[Identity, str]) -> list[str]:
    """One sentence or two per cloud-edge method."""
    of_method: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        of_method[names[_own(case)]].append(case)
    return [_sentence(name, its, names) for name, its in of_method.items()]


def _sentence(name: str, cases: Sequence[Case], names: Mapping[Identity, str]) -> str:
    losing = [case for case in cases if case.lost]
    compared = count(len(cases), "corruption")
    if not losing:
        return f"{name} is below no forward-only method on any of {compared}."
    harmed = sum(case.lost_to_source for case in losing)
    source = f", below {SOURCE} itself on {harmed}" if harmed else ""
    worst = losing[0]
    figures = f"{_PER_CENT * worst.accuracy:.1f} % against {_PER_CENT * worst.rival_accuracy:.1f} %"
    return (
        f"{name} is below a forward-only method on {len(losing)} of {compared}{source}. "
        f"Worst: {worst.corruption.replace('_', ' ')}, {_points(worst.behind_points)} below "
        f"{names[_rival(worst)]} ({figures})."
    )


def _points(value: float) -> str:
    return f"{value:.1f} point{'' if f'{value:.1f}' == '1.0' else 's'}"


def _notes(summaries: Sequence[Summary], names: Mapping[Identity, str]) -> list[str]:
    def those(chosen: Callable[[Summary], object]) -> str:
        return ", ".join(names[identity_of(s.method, s.options)] for s in summaries if chosen(s))

    names_of = summaries[0].corruptions
    what = "the 15 corruptions of ImageNet-C" if names_of == COMMON else ", ".join(names_of).replace("_", " ")
    several = {"stream": "streams", "stretch": "stretches"}[_unit(summaries)]
    notes = [f"Means are over {what}, {several} of {summaries[0].samples:,.0f} images."]
    if single := those(lambda s: s.spread is None):
        notes.append(f"One seed, so the spread over seeds is unknown (± ?), not small: {single}.")
    if any(s.spread is not None for s in summaries):
        notes.append("± is the sample standard deviation of the seeds' means.")
    if partial := those(lambda s: s.partial_seeds):
        notes.append(f"Seeds that lack some of the corruptions are left out of the means: {partial}.")
    if incomplete := those(lambda s: not s.complete):
        notes.append(f"Run on other or fewer corruptions than the rest, hence not comparable: {incomplete}.")
    return notes
