"""One contestant of the adapt-step comparison, in a process of its own: steps when told to, says how long it took.

Separate processes because the allocator is part of what is compared (cloud/memory.py): it cannot be changed back.
Started by ``cloud.py``; each line on stdin is one step, answered by its seconds, then by the peak of memory.
"""

from __future__ import annotations

import gc
import json
import resource
import sys
import time
from pathlib import Path

import torch

from cema.bench.perf.models import PerfPair
from cema.cloud.adapt import create_adapter
from cema.cloud.adapt.base import Adapter, Schedule
from cema.cloud.memory import keep_freed_memory

_KIB_PER_GIB = 1 << 20


def main() -> None:
    """argv: JSON of the edge's and the foundation's name, weights, options, share, threads and whether to keep freed
    memory."""
    job = json.loads(sys.argv[1])
    if job["keep_memory"]:
        keep_freed_memory()
    torch.set_num_threads(job["threads"])
    pair = PerfPair(job["edge"], job["foundation"], Path(job["weights"]) if job["weights"] else None)
    adapter = create_adapter("cema-paper", pair.edge, pair.foundation, job["options"])
    uploads_BCHW, replayed_BCHW = images(pair.size, job["share"])
    for _ in sys.stdin:
        print(json.dumps(_step(adapter, uploads_BCHW, replayed_BCHW)), flush=True)


def images(size: tuple[int, int], share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Uploads and replay of a full step, or a share of both, float32 noise [B, 3, H, W]."""
    uploaded, drawn = round(share * Schedule.step_uploads), round(share * Schedule.replay_draw)
    noise_BCHW = torch.randn(uploaded + drawn, 3, *size, generator=torch.Generator().manual_seed(0))
    return noise_BCHW[:uploaded], noise_BCHW[uploaded:]


def _step(adapter: Adapter, uploads_BCHW: torch.Tensor, replayed_BCHW: torch.Tensor) -> list[float]:
    gc.collect()
    started_s = time.perf_counter()
    adapter.step(uploads_BCHW, replayed_BCHW)
    taken_s = time.perf_counter() - started_s
    return [taken_s, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _KIB_PER_GIB]


if __name__ == "__main__":
    main()
