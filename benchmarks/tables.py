"""Regenerates a table of ``cema bench`` that the README or the documentation quotes, by name.

    python benchmarks/tables.py oracle --data DIR
    python benchmarks/tables.py cifar-reset cifar-continual cifar-seeds --data DIR
    python benchmarks/tables.py cifar-controls cifar-controls-continual batch-one imagenet row --data DIR
    python benchmarks/tables.py cifar-cotta cifar-cotta-continual --data DIR
    python benchmarks/tables.py method-reset method-clean method-small method-sorted method-dirichlet --data DIR
    python benchmarks/tables.py method-device method-cloud method-parts method-changes method-worlds --data DIR
    python benchmarks/tables.py method-continual method-recurring method-late method-rest --data DIR
    python benchmarks/tables.py method-mixed method-mixed-four method-pareto method-filters --data DIR
    python benchmarks/tables.py method-imagenet method-imagenet-parts --data DIR

The CIFAR tables share their streams: ``cema bench report`` puts their files together on one page. Rivals run with the
numbers of results/tuning.json. Finished cells are kept in the cache folder: a table that was interrupted goes on, by
whatever code; ``--fresh`` runs all of it again. ``--within 30`` stops after so many minutes, and ``--seeds 0`` leaves
out the others. Written to results/NAME.json with what is there so far; ``cema bench report`` makes the page.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ablation
import msgspec
from kept import FOUR, cells_folder, workplace
from provenance import ROOT

from cema.bench.corruptions import COMMON
from cema.bench.grid import Cell, Spec
from cema.bench.methods import METHODS
from cema.bench.provenance import provenance
from cema.bench.rows import Results, Row, encode_results
from cema.bench.run import Watcher, run

RESULTS = ROOT / "benchmarks" / "results"
RIVALS = ("source", "bn", "tent", "eata", "cema-paper", "labels")
CONTROLS = ("cloud-bn", "cema-released", "upload-random", "upload-all")
"""What the parts of ``cema-paper`` are held against."""
SLOW = "cotta"
"""A table of its own: 32 views of every picture."""
OURS = ("cema", "cema-lite", "cema-offline")
FIRST = tuple(name for name in METHODS if name not in (*CONTROLS, *OURS, SLOW))
SEEDS = (0, 1, 2)
PASSING = {"setting": "continual"}
FAST = {"norm_impl": "fused", "teacher": "onnx"}
"""The same mathematics to 1e-4 per step (ADR 11), in less time and memory: where the oracle would take too much."""
FASTEST = {"norm_impl": "fused", "teacher": "auto", "precision": "auto"}
"""In bfloat16 where the processor has it: within 0.1 point of the oracle's accuracy (ADR 11)."""
NEVER_TUNED = ("speckle_noise", "spatter", "saturate")
PAPERS_FILTERS = {**ablation.CLOUD["no random slice"], **ablation.CLOUD["e_min as in the paper"]}
"""What ``cema`` would send without a random tenth and a lower bound of its own."""
EXACT = {"image_coding": "png"}
"""What the published code sends: every pixel as it was."""
DEEP = {**FAST, "norm_targets": "batch"}
"""For EfficientNet (ADR 9), beside the method as published."""


@dataclass(frozen=True)
class Table:
    """What is run. processes: 1 where times are quoted, or where a cell needs 12 GB. tuned: whether the numbers of
    tuning.json are used."""

    specs: tuple[Spec, ...]
    processes: int = 2
    tuned: bool = True


def _cifar(**changes: object) -> Spec:
    return msgspec.structs.replace(Spec(dataset="cifar10", methods=FIRST, corruptions=COMMON, limit=2000), **changes)


def _imagenet(severity: int) -> tuple[Spec, Spec]:
    corruptions = ("gaussian_noise", "defocus_blur", "fog", "contrast", "jpeg_compression")
    methods = ("source", "bn", "eata", "cema-paper")
    published = Spec(
        dataset="imagenet", methods=methods, corruptions=corruptions, severity=severity, options={"cema-paper": FAST}
    )
    return published, msgspec.structs.replace(published, methods=("cema-paper",), options={"cema-paper": DEEP})


def _ours(*others: str, **changes: object) -> Spec:
    """``cema`` with and without a cloud, beside others: all with the default coding of pictures."""
    options = {"cema-paper": FASTEST} if "cema-paper" in others else {}
    return _cifar(methods=("cema", "cema-offline", *others), options=options, **changes)


def _ordered(**changes: object) -> tuple[Spec, ...]:
    """Streams in which a class comes in one piece, or in few: with and without the class prior."""
    bare = {"cema-offline": {"classes.rounds": 0}}
    return (
        _ours("source", "bn-ema", "cema-paper", setting="correlated", **changes),
        _cifar(methods=("cema-offline",), options=bare, setting="correlated", **changes),
    )


def _recurring() -> tuple[Spec, ...]:
    """Conditions that come back: worlds that are remembered, and the last one alone."""
    stream = {"setting": "recurring", "corruptions": FOUR, "seeds": SEEDS}
    methods = ("cema-offline", "cema")
    bare = {name: {"statistics.worlds": 0} for name in methods}
    return _ours("source", "bn-ema", "cema-paper", **stream), _cifar(methods=methods, options=bare, **stream)


def _mixed(corruptions: tuple[str, ...]) -> tuple[Spec, ...]:
    """Conditions that alternate from picture to picture: statistics for each look, and one for all."""
    stream: dict[str, Any] = {"setting": "mixed", "corruptions": corruptions, "seeds": SEEDS}
    bare = {"cema-offline": {"mixture.most": 1}}
    return (
        _ours("source", "bn-ema", "cema-paper", "labels", **stream),
        _cifar(methods=("cema-offline",), options=bare, **stream),
    )


def _method_imagenet() -> tuple[Spec, ...]:
    """Few photographs, hence several passes and seeds. The paper's method as published, and with the statistics that
    deep networks need (ADR 9)."""
    corruptions = ("gaussian_noise", "defocus_blur", "fog", "contrast")
    methods, options = ("source", "bn", "cema-offline", "cema", "cema-paper"), {"cema-paper": FASTEST}
    ours = Spec(
        dataset="imagenet",
        methods=methods,
        corruptions=corruptions,
        severity=3,
        seeds=SEEDS,
        passes=4,
        options=options,
    )
    deep = {"cema-paper": {**FASTEST, "norm_targets": "batch"}}
    return ours, msgspec.structs.replace(ours, methods=("cema-paper",), options=deep)


def _controls(**changes: object) -> Spec:
    return _cifar(methods=CONTROLS, options={name: FAST for name in CONTROLS if name != "cloud-bn"}, **changes)


TABLES = {
    "oracle": Table(
        (
            _cifar(
                methods=("source", "bn", "cema-paper", "cema-released", "labels"),
                corruptions=FOUR,
                shuffle=False,
                options={"cema-paper": EXACT, "cema-released": EXACT},
            ),
        ),
        processes=1,
        tuned=False,
    ),
    "cifar-reset": Table((_cifar(),)),
    "cifar-continual": Table((_cifar(**PASSING),)),
    "cifar-seeds": Table((_cifar(methods=RIVALS, seeds=(1, 2)), _cifar(methods=RIVALS, seeds=(1, 2), **PASSING))),
    "cifar-controls": Table((_controls(),)),
    "cifar-controls-continual": Table((_controls(**PASSING),)),
    "cifar-cotta": Table((_cifar(methods=(SLOW,)),)),
    "cifar-cotta-continual": Table((_cifar(methods=(SLOW,), **PASSING),)),
    "batch-one": Table(
        (_cifar(methods=("source", "bn", "bn-ema", "cema-paper"), corruptions=FOUR, batch_size=1, limit=1000),)
    ),
    "method-reset": Table(
        (
            _ours("cema-paper"),
            _ours("source", "bn", "labels", "cema-paper", corruptions=NEVER_TUNED, seeds=SEEDS),
            _ours(seeds=SEEDS[1:]),
        ),
    ),
    "method-filters": Table(
        tuple(
            _cifar(methods=("cema",), corruptions=(*COMMON, *NEVER_TUNED), seeds=SEEDS, options=options)
            for options in ({}, {"cema": PAPERS_FILTERS})
        )
    ),
    "method-clean": Table((_ours("source", seeds=SEEDS, corruptions=("clean",), limit=None),)),
    "method-small": Table(tuple(_cifar(methods=("cema",), batch_size=size, seeds=SEEDS) for size in (8, 1))),
    "method-sorted": Table(_ordered(alpha=0.0, seeds=SEEDS)),
    "method-dirichlet": Table(_ordered(seeds=SEEDS)),
    "method-continual": Table(
        tuple(
            _ours("source", "bn-ema", "cema-paper", setting=setting, seeds=(seed,))
            for seed in SEEDS
            for setting in ("continual", "gradual")
        ),
    ),
    "method-mixed": Table(_mixed(COMMON)),
    "method-mixed-four": Table(_mixed(FOUR)),
    "method-recurring": Table(_recurring()),
    "method-late": Table((_cifar(methods=("cema",), delays=(10, 50), seeds=SEEDS),)),
    "method-rest": Table((_ours("source", "bn", "labels", "cema-paper", skip=2000, limit=None, seeds=SEEDS),)),
    "method-device": Table(tuple(ablation.ablation(ablation.OFFLINE, "cema-offline")), tuned=False),
    "method-cloud": Table(tuple(ablation.ablation(ablation.CLOUD, "cema")), tuned=False),
    "method-parts": Table(tuple(ablation.parts(SEEDS)), tuned=False),
    "method-changes": Table(tuple(ablation.changes(SEEDS)), tuned=False),
    "method-worlds": Table(tuple(ablation.worlds()), tuned=False),
    "method-imagenet-parts": Table(tuple(ablation.deep()), processes=1, tuned=False),
    "method-pareto": Table(tuple(ablation.pareto()), tuned=False),
    "method-imagenet": Table(_method_imagenet(), processes=1, tuned=False),
    "imagenet": Table((*_imagenet(3), *_imagenet(5)), processes=1, tuned=False),
    "row": Table((_cifar(methods=("cema-paper",), limit=None, options={"cema-paper": EXACT}),)),
}


class Lines(Watcher):
    """One line per finished cell."""

    def begin(self, todo: int, kept: int) -> None:
        self.todo, self.done = todo, 0
        print(f"{todo} cells to run, {kept} kept", flush=True)

    def finished(self, cell: Cell, rows: Sequence[Row]) -> None:
        self.done += 1
        where, accuracy = cell.corruptions[0], rows[-1].accuracy
        print(f"{self.done}/{self.todo} {cell.method} {where} seed {cell.seed}: {accuracy:.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=TABLES)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--within", type=float, default=24 * 60, help="minutes, for all tables together")
    parser.add_argument("--fresh", action="store_true", help="also cells that are kept, of code of before perhaps")
    parser.add_argument("--seeds", type=lambda text: [*map(int, text.split(","))], default=SEEDS, help="of the table's")
    arguments = parser.parse_args()
    end_s = time.monotonic() + 60 * arguments.within
    for name in arguments.names:
        _make(name, _with_seeds(TABLES[name], arguments.seeds), arguments, end_s)


def _with_seeds(table: Table, seeds: Sequence[int]) -> Table:
    chosen = [(spec, tuple(seed for seed in spec.seeds if seed in seeds)) for spec in table.specs]
    return replace(table, specs=tuple(msgspec.structs.replace(spec, seeds=some) for spec, some in chosen if some))


def _make(name: str, table: Table, arguments: argparse.Namespace, end_s: float) -> None:
    began = provenance(["bench", "run", f"(benchmarks/tables.py {name})"], datetime.now(UTC))
    rows, failures = [], []
    for spec in table.specs:
        place = workplace(_with_options(spec, table.tuned), arguments.data, table.processes)
        finished = run(
            place,
            cells_folder("rows"),
            resume=not arguments.fresh,
            processes=table.processes,
            watcher=Lines(),
            stop=lambda: time.monotonic() > end_s,
        )
        rows += finished.rows
        failures += finished.failures
    (RESULTS / f"{name}.json").write_bytes(encode_results(Results(rows=rows, provenance=began)))
    print(f"{name}: {len(rows)} rows")
    for failure in failures:
        print(f"failed: {failure.cell.method}: {failure.message}", file=sys.stderr)


def _with_options(spec: Spec, tuned: bool) -> Spec:
    """The chosen numbers of the rivals that take part."""
    if not tuned:
        return spec
    chosen = json.loads((RESULTS / "tuning.json").read_text())["methods"]
    options = {name: chosen[name]["chosen"] for name in spec.methods if chosen.get(name, {}).get("chosen")}
    return msgspec.structs.replace(spec, options={**options, **spec.options})


if __name__ == "__main__":
    main()
