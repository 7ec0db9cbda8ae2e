"""Many groups on one worker: what a further group with the same models costs in memory."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cema.bench.perf.models import PerfPair
from cema.bench.perf.resident import resident_mib
from cema.bench.perf.rows import Sheet
from cema.cloud.adapt import create_adapter
from cema.cloud.controller import Controller, Publishing
from cema.cloud.memory import release_freed_memory
from cema.cloud.replay import Replay
from cema.cloud.sharing import SharedAdapter
from cema.cloud.store.blobs import FolderBlobs
from cema.cloud.store.memory import MemoryStore
from cema.wire.image import encode_image
from cema.wire.messages import Sample, SampleBatch

GROUPS = 12
"""Beyond the first."""
UPLOADS = 32
REPLAYED = 10_000
_WORKER = "perf"
_MB_PER_MIB = 1.048576


def further_groups(sheet: Sheet, pair: PerfPair, limit_mb: float) -> None:
    """Each group has made a step of its own and published it."""
    with tempfile.TemporaryDirectory(prefix="cema-perf-") as folder:
        shared = SharedAdapter(create_adapter("cema-paper", pair.edge, pair.foundation, {"norm_impl": "fused"}))
        store, blobs = MemoryStore(), FolderBlobs(Path(folder) / "blobs")
        controllers = []
        resident = []
        for number in range(GROUPS + 1):
            controllers.append(_group(pair, shared, store, blobs, f"group-{number}", Path(folder)))
            gc.collect()
            release_freed_memory()
            resident.append(resident_mib())
        grown = np.diff(resident)
        sheet.at_most(
            f"memory of a further group, {pair.edge_name} / {pair.foundation_name}", "MB", limit_mb,
            float(np.median(grown)) * _MB_PER_MIB,
            f"median of {GROUPS} groups, each after a step; mean {grown.mean() * _MB_PER_MIB:.2f}; the first one "
            f"{resident[0]:.0f} MiB with the process",
        )  # fmt: skip


def replay(sheet: Sheet, size: tuple[int, int], limit_gb: float) -> None:
    """A full replay buffer, after a draw."""
    with tempfile.TemporaryDirectory(prefix="cema-perf-") as folder:
        before = resident_mib()
        buffer, rng = Replay(REPLAYED, Path(folder)), np.random.default_rng(0)
        for row, image in enumerate(_pictures(size, REPLAYED)):
            buffer.extend([row], [image])
        buffer.draw(96, rng)
        sheet.at_most(
            f"resident memory of a replay buffer of {REPLAYED} pictures, {size[1]} px", "GB", limit_gb,
            max(0.0, resident_mib() - before) * _MB_PER_MIB / 1000, "the pixels lie in a file",
        )  # fmt: skip


def _pictures(size: tuple[int, int], count: int) -> Iterator[np.ndarray]:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    for number in range(count):
        image[0, 0] = number % 256
        yield image


def _group(
    pair: PerfPair, shared: SharedAdapter, store: MemoryStore, blobs: FolderBlobs, name: str, folder: Path
) -> Controller:
    fingerprint = pair.bundle.manifest.fingerprint
    store.put_group(name, fingerprint, "", "on", 0)
    picture = encode_image(np.zeros((*pair.size, 3), np.uint8), "png")
    samples = [
        Sample(
            sample_id=f"{name}-{seq}".encode().ljust(16)[:16], seq=seq, codec="png", image=picture, label=0,
            probability=0.5, entropy=1.0, update_version=0, captured_at_ms=0,
        )
        for seq in range(UPLOADS)
    ]  # fmt: skip
    batch = SampleBatch(
        device_id=name, boot_id=name.encode().ljust(16), fingerprint=fingerprint, samples_seen=64, samples=samples
    )  # fmt: skip
    store.add_samples(name, batch, 0)
    controller = Controller(
        store.group(name), pair.bundle, shared, store, blobs, Publishing("cema-paper", None, 0, "float16"),
        worker=_WORKER, seed=0, clock_ms=lambda: 1, replay_dir=folder,
    )  # fmt: skip
    row = store.claim(_WORKER, 1, lease_ms=1 << 40, tick_images=64, publish_interval_ms=0)
    assert row is not None
    assert controller.tick(row) == 1
    store.release(name, _WORKER)
    return controller
