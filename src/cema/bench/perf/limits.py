"""What the machine can do at all: the yardstick beside every figure of speed."""

from __future__ import annotations

import torch

from cema.bench.perf.rows import Sheet
from cema.bench.perf.timing import median_ms, take_turns

SIDE = 2048
"""Of the square matrices: 17 GFLOP a product, far beyond every cache."""
ROUNDS = 7


def measure(sheet: Sheet) -> float:
    """FLOP/s of a large float32 matrix product on torch's threads; returned, and reported."""
    left, right = torch.rand(SIDE, SIDE), torch.rand(SIDE, SIDE)
    taken = take_turns({"product": lambda: left @ right}, rounds=ROUNDS)
    flops = 2 * SIDE**3 / (median_ms(taken, "product") / 1000)
    sheet.report("large matrix product", "GFLOP/s", flops / 1e9, f"float32, {torch.get_num_threads()} threads")
    return flops
