"""The cloud: one adapt step, the fast way against the textbook's, in processes that take turns."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

from cema.bench.perf.limits import product_flops
from cema.bench.perf.models import PerfPair
from cema.bench.perf.rows import Sheet
from cema.bench.perf.stepper import images
from cema.bench.perf.timing import ratio, take_turns
from cema.cloud.adapt import Options, create_adapter
from cema.cloud.adapt.base import Adapter
from cema.cloud.adapt.precision import has_bfloat16
from cema.errors import BenchError

FAST: Options = {"norm_impl": "fused", "teacher": "auto"}
UNTUNED = "textbook, allocator as it comes"
TEXTBOOK: Options = {"norm_impl": "textbook"}


@dataclass(frozen=True)
class Way:
    """keep_memory: the allocator as our workers set it (cloud/memory.py), or as the C library comes."""

    options: Options
    keep_memory: bool = True


WAYS = {
    "textbook": Way(TEXTBOOK),
    UNTUNED: Way(TEXTBOOK, keep_memory=False),
    "native": Way({"norm_impl": "native"}),
    "float32": Way(FAST),
    "bfloat16": Way({**FAST, "precision": "bfloat16"}),
}
"""The oracle with its norm written line by line, in a worker's process as all the others; the same in an ordinary
process; the oracle as the benchmark runs it; the fast path."""


@dataclass(frozen=True)
class Aims:
    """Images per second over the textbook's."""

    float32: float
    bfloat16: float


class Stepper:
    """A contestant's process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.seconds: list[float] = []
        self.peak_gib = 0.0

    def step(self) -> float:
        """Seconds of one step."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise BenchError("the process of an adapt step ended early", hint="a textbook step wants 20 GB of memory")
        taken_s, self.peak_gib = json.loads(line)
        self.seconds.append(taken_s)
        return float(taken_s)


def adapt_step(sheet: Sheet, pair_name: str, pair: PerfPair, aims: Aims, rounds: int, share: float = 1) -> None:
    """Foundation step on 32 uploads, distillation on them and 96 from replay, or a share of both: a full textbook step
    of an EfficientNet needs 20 GB."""
    ways = {name: way for name, way in WAYS.items() if name != "bfloat16" or has_bfloat16()}
    with ExitStack() as stack:
        steppers = {name: stack.enter_context(_stepper(pair, way, share)) for name, way in ways.items()}
        take_turns({name: each.step for name, each in steppers.items()}, rounds=rounds)
    taken = {name: each.seconds[1:] for name, each in steppers.items()}
    detail, flop = _detail(taken, steppers, share), _flop(pair, share)
    _same_step(sheet, pair_name, pair, share)
    for name, aim in (("float32", aims.float32), ("bfloat16", aims.bfloat16)):
        if name not in taken:
            continue
        sheet.at_least(f"adapt step in {name} against the textbook, {pair_name}", "x", aim,
                       ratio(taken, "textbook", name), detail)  # fmt: skip
        for other in (UNTUNED, "native"):
            gain = ratio(taken, other, name)
            sheet.report(f"adapt step in {name} against the {other} oracle, {pair_name}", "x", gain)
        rate, limit = flop / median(taken[name]), product_flops(getattr(torch, name))
        sheet.report(
            f"FLOP/s of the adapt step in {name}, {pair_name}", "% of a large matrix product's", 100 * rate / limit,
            f"{flop / 1e9:.0f} GFLOP at {rate / 1e9:.0f} of {limit / 1e9:.0f} GFLOP/s",
        )  # fmt: skip


def _detail(taken: Mapping[str, list[float]], steppers: Mapping[str, Stepper], share: float) -> str:
    each = ", ".join(f"{name} {1000 * median(s):.0f} ms {steppers[name].peak_gib:.1f} GiB" for name, s in taken.items())
    return f"{each}; {128 * share:.0f} images, {torch.get_num_threads()} threads"


def _flop(pair: PerfPair, share: float) -> float:
    """Multiplications and additions of a step, as torch counts them: in convolutions and matrix products alone."""
    adapter = create_adapter("cema-paper", pair.edge, pair.foundation, {"norm_impl": "fused"})
    with FlopCounterMode(display=False) as counter:
        adapter.step(*images(pair.size, share))
    return float(counter.get_total_flops())


def _same_step(sheet: Sheet, pair_name: str, pair: PerfPair, share: float) -> None:
    uploads_BCHW, replayed_BCHW = images(pair.size, min(share, 0.25))
    adapters = [create_adapter("cema-paper", pair.edge, pair.foundation, options) for options in (TEXTBOOK, FAST)]
    for adapter in adapters:
        adapter.step(uploads_BCHW, replayed_BCHW)
    sheet.at_most(
        f"one step against the oracle's, {pair_name}", "of the largest value", 1e-4, _difference(*adapters),
        "norm parameters and statistics of the edge model, float32",
    )  # fmt: skip


def _difference(oracle: Adapter, fast: Adapter) -> float:
    expected, got = oracle.edge_parameters(), fast.edge_parameters()
    return max(
        float(abs(got[name] - value).max() / max(1e-12, float(abs(value).max()))) for name, value in expected.items()
    )


@contextmanager
def _stepper(pair: PerfPair, way: Way, share: float) -> Iterator[Stepper]:
    job = {
        "edge": pair.edge_name, "foundation": pair.foundation_name, "weights": str(pair.weights or ""),
        "options": way.options, "keep_memory": way.keep_memory, "share": share, "threads": torch.get_num_threads(),
    }  # fmt: skip
    command = [sys.executable, "-m", "cema.bench.perf.stepper", json.dumps(job)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Stepper(process)
        finally:
            process.kill()
