"""Where the benchmarks keep finished cells, so that an interrupted table goes on where it stopped."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from cema.bench.datasets import load_dataset
from cema.bench.grid import Spec
from cema.bench.pairs import pair_names
from cema.bench.work import Workplace, identity

FOUR = ("gaussian_noise", "contrast", "gaussian_blur", "jpeg_compression")
"""Noise, weather, optics, compression: what methods are tuned on, and the four of the published figures."""
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cema"


def cells_folder(name: str) -> Path:
    """Of a table."""
    return CACHE / "tables" / name


def workplace(spec: Spec, data: Path, processes: int) -> Workplace:
    """As the command line makes it."""
    names = pair_names(spec.dataset, data)
    digest = identity(load_dataset(spec.dataset, data).part(spec.skip, spec.limit), names)
    threads = max((os.cpu_count() or 1) // processes, 1)
    return Workplace(msgspec.structs.replace(spec, identity=digest), names, data, CACHE, threads)
