"""The cloud: one adapt step, the fast way against the textbook's; and what a further group costs in memory."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch

from cema.bench.perf.models import PerfPair
from cema.bench.perf.rows import Sheet
from cema.bench.perf.timing import median_ms, ratio, take_turns
from cema.cloud.adapt import Options, create_adapter
from cema.cloud.adapt.base import Adapter, Schedule

WAYS: dict[str, Options] = {
    "textbook": {"norm_impl": "textbook"},
    "native": {"norm_impl": "native"},
    "fast": {"norm_impl": "fused", "teacher": "onnx"},
}
"""The oracle with its norm written line by line, the oracle as the benchmark runs it, and what our own method uses."""


def adapt_step(sheet: Sheet, pair_name: str, pair: PerfPair, at_least: float, rounds: int, share: float = 1) -> None:
    """Foundation step on 32 uploads, distillation on them and 96 from replay, or a share of both: the textbook's step
    of an EfficientNet needs 20 GB else."""
    generator = torch.Generator().manual_seed(0)
    uploaded, drawn = round(share * Schedule.step_uploads), round(share * Schedule.replay_draw)
    images_BCHW = torch.randn(uploaded + drawn, 3, *pair.size, generator=generator)
    uploads, replayed = images_BCHW[:uploaded], images_BCHW[uploaded:]
    adapters = {name: create_adapter("cema-paper", pair.edge, pair.foundation, way) for name, way in WAYS.items()}
    contestants = {name: _stepper(adapter, uploads, replayed) for name, adapter in adapters.items()}
    for step in contestants.values():
        step()
    sheet.at_most(
        f"one step against the oracle's, {pair_name}", "of the largest value", 1e-4,
        _difference(adapters["textbook"], adapters["fast"]), "norm parameters and statistics of the edge model",
    )  # fmt: skip
    taken = take_turns(contestants, rounds=rounds, warm_up=0)
    each = ", ".join(f"{name} {median_ms(taken, name):.0f} ms" for name in WAYS)
    detail = f"{each} for {len(images_BCHW)} images, {torch.get_num_threads()} threads, float32"
    gain = ratio(taken, "textbook", "fast")
    sheet.at_least(f"adapt step against the textbook, {pair_name}", "x", at_least, gain, detail)
    sheet.report(f"adapt step against the native oracle, {pair_name}", "x", ratio(taken, "native", "fast"), detail)


def _stepper(adapter: Adapter, uploads: torch.Tensor, replayed: torch.Tensor) -> Callable[[], object]:
    def step() -> object:
        gc.collect()
        return adapter.step(uploads, replayed)

    return step


def _difference(oracle: Adapter, fast: Adapter) -> float:
    expected, got = oracle.edge_parameters(), fast.edge_parameters()
    return max(
        float(abs(got[name] - value).max() / max(1e-12, float(abs(value).max()))) for name, value in expected.items()
    )
