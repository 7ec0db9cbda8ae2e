"""All sections in order; what cannot be measured here is skipped and said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cema.bench.datasets import load_dataset
from cema.bench.perf import cloud, edge, fleet, follow, ingest, int8, limits, start, swap, wire
from cema.bench.perf.models import PerfPair, pairs
from cema.bench.perf.rows import PerfRow, Sheet
from cema.cloud.adapt import Options
from cema.cloud.memory import keep_freed_memory
from cema.errors import ConfigError

SMALL, LARGE = "ResNet-20/56", "EfficientNet-Lite0/2"
FLOAT32_BYTES = 4


@dataclass(frozen=True)
class PerfOptions:
    """rounds: turns of each comparison; slow ones take a share. memory: ten minutes of ingest."""

    data: Path | None
    rounds: int = 200
    memory: bool = False


def measure(
    sections: Sequence[str], options: PerfOptions, say: Callable[[str], None]
) -> tuple[list[PerfRow], dict[str, str]]:
    """(rows, what was skipped and why).

    Raises ConfigError: an unknown section, or no model pair at all.
    """
    if unknown := sorted(set(sections) - set(SECTIONS)):
        raise ConfigError(f"expected sections out of {', '.join(SECTIONS)}, got {', '.join(unknown)}")
    keep_freed_memory()
    present, skipped = pairs(options.data)
    rows: list[PerfRow] = []
    for name in sections:
        say(name)
        sheet = Sheet(name)
        SECTIONS[name](sheet, present, options)
        rows += sheet.rows
    return rows, skipped


def _limits(sheet: Sheet, present: dict[str, PerfPair], options: PerfOptions) -> None:
    limits.measure(sheet)


def _edge(sheet: Sheet, present: dict[str, PerfPair], options: PerfOptions) -> None:
    rounds = options.rounds
    if SMALL in present:
        edge.overhead(sheet, present[SMALL], 64, 3, max(rounds // 2, 2))
        edge.overhead(sheet, present[SMALL], 1, 8, 10 * rounds)
        edge.against_torch(sheet, present[SMALL], 64, None, max(rounds // 10, 2))
    if LARGE in present:
        edge.overhead(sheet, present[LARGE], 1, 3, 2 * rounds)
        edge.against_torch(sheet, present[LARGE], 8, 4, max(rounds // 10, 2))
        edge.from_file(sheet, present[LARGE], rounds)
    for pair in present.values():
        edge.swaps(sheet, pair, max(rounds // 10, 2))


def _follow(sheet: Sheet, present: dict[str, PerfPair], options: PerfOptions) -> None:
    trials = {SMALL: ("cifar10", ((64, 3), (1, 8))), LARGE: ("imagenet", ((1, 3),))}
    for name, pair in present.items():
        dataset, limits_percent = trials[name]
        pictures, rounds = load_dataset(dataset, options.data), max(options.rounds // 2, 2)
        stream, other = (follow.shifted(pictures, pair.size, name) for name in (follow.CORRUPTION, follow.OTHER))
        for batch, limit_percent in limits_percent:
            follow.following(sheet, pair, stream, batch, limit_percent, rounds)
            follow.alternating(sheet, pair, (stream, other), batch, rounds)


def _swap(sheet: Sheet, present: dict[str, PerfPair], options: PerfOptions) -> None:
    pair, turns = present.get(SMALL) or present[LARGE], max(options.rounds // 30, 1)
    for batch in (1, 16):
        swap.swapping(sheet, pair, batch, 1, 1.5, turns)
    swap.swapping(sheet, pair, 1, 2, None, turns)


def _start(sheet: Sheet, present: dict[str, PerfPair], options: PerfOptions) -> None:
    start.start(sheet, present.get(LARGE) or present[SMALL])


def _cloud(sheet: Sheet, present: dict[str, PerfPair], options: PerfOptions) -> None:
    aims = {SMALL: cloud.Aims(float32=2.5, bfloat16=3), LARGE: cloud.Aims(float32=4, bfloat16=5)}
    shares = {SMALL: 1.0, LARGE: 0.1875}
    for name, pair in present.items():
        cloud.adapt_step(sheet, name, pair, aims[name], max(options.rounds // 20, 1), shares[name])


def _fleet(sheet: Sheet, present: dict[str, PerfPair], options: PerfOptions) -> None:
    pair = present.get(LARGE) or present[SMALL]
    fleet.further_groups(sheet, pair, 2)
    fleet.replay(sheet, pair.size, 1.6)


def _wire(sheet: Sheet, present: dict[str, PerfPair], options: PerfOptions) -> None:
    sets = {SMALL: ("cifar10", 1000), LARGE: ("imagenet", 15_000)}
    for name, pair in present.items():
        dataset, limit_bytes = sets[name]
        pixels = load_dataset(dataset, options.data)
        wire.samples(sheet, pixels, pair.size, limit_bytes, FLOAT32_BYTES * 3 * pair.size[0] * pair.size[1])
        wire.updates(sheet, pair, pixels)


def _int8(sheet: Sheet, present: dict[str, PerfPair], options: PerfOptions) -> None:
    fast: Options = {"norm_impl": "fused", "teacher": "onnx"}
    trials = {
        SMALL: ("cifar10", int8.Trial("gaussian_noise", 5, (1, 64), fast)),
        LARGE: ("imagenet", int8.Trial("fog", 3, (1, 8), {**fast, "norm_targets": "batch"})),
    }
    for name, pair in present.items():
        dataset, trial = trials[name]
        int8.int8(sheet, pair, load_dataset(dataset, options.data), trial, options.rounds)


def _ingest(sheet: Sheet, present: dict[str, PerfPair], options: PerfOptions) -> None:
    ingest.ingest(sheet, next(iter(present.values())), memory=options.memory)


SECTIONS: dict[str, Callable[[Sheet, dict[str, PerfPair], PerfOptions], None]] = {
    "limits": _limits, "start": _start, "edge": _edge, "follow": _follow, "swap": _swap, "cloud": _cloud,
    "fleet": _fleet, "wire": _wire, "ingest": _ingest, "int8": _int8,
}  # fmt: skip
