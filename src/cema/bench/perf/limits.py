"""What the machine can do at all: the yardstick beside every figure of speed."""

from __future__ import annotations

import torch

from cema.bench.perf.rows import Sheet
from cema.bench.perf.timing import median_ms, take_turns
from cema.cloud.adapt.precision import has_bfloat16

SIDE = 2048
"""Of the square matrices: 17 GFLOP a product, far beyond every cache."""
ROUNDS = 7


def measure(sheet: Sheet) -> None:
    """FLOP/s of a large matrix product on torch's threads."""
    for kind in (torch.float32, torch.bfloat16) if has_bfloat16() else (torch.float32,):
        name = str(kind).removeprefix("torch.")
        detail = f"{SIDE} x {SIDE}, {torch.get_num_threads()} threads"
        sheet.report(f"large matrix product, {name}", "GFLOP/s", product_flops(kind) / 1e9, detail)


def product_flops(kind: torch.dtype) -> float:
    """FLOP/s of the product of two matrices of that type."""
    left, right = torch.rand(SIDE, SIDE).to(kind), torch.rand(SIDE, SIDE).to(kind)
    taken = take_turns({"product": lambda: left @ right}, rounds=ROUNDS)
    return 2 * SIDE**3 / (median_ms(taken, "product") / 1000)
