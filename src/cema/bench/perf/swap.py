"""Does a hot swap disturb predictions? Segments with an update each second alternate with segments without.

The batch that meets a swap is what the 99th percentile shows: a swap each second touches more than one batch in a
hundred. Other work on the machine raises the percentile without swaps, too, and so lowers the ratio.
"""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from cema.bench.perf.models import PerfPair
from cema.bench.perf.rows import Sheet
from cema.config import DeviceConfig, RuntimeConfig, SelectionConfig, UplinkConfig
from cema.edge import EdgeAgent
from cema.types import Uint8Array
from cema.wire import signing
from cema.wire.bundle import Bundle
from cema.wire.messages import UpdateManifest
from cema.wire.update import encode_update

SEGMENT_S = 5.0
SWAP_EVERY_S = 1.0
WARM_UP = 50
GROUP = "perf"


class Swapper:
    """Applies a signed update each second, in a thread of its own, as the poller does."""

    def __init__(self, agent: EdgeAgent, bundle: Bundle, key: str) -> None:
        self._agent, self._bundle, self._key = agent, bundle, key
        self._version = 0
        self.apply_ms: list[float] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        stop, updates = threading.Event(), [self._update() for _ in range(int(SEGMENT_S / SWAP_EVERY_S) + 1)]
        thread = threading.Thread(target=self._run, args=(stop, updates))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _run(self, stop: threading.Event, updates: list[tuple[bytes, str]]) -> None:
        for data, signature in updates:
            if stop.wait(SWAP_EVERY_S):
                return
            started_s = time.perf_counter()
            self._agent._updater.apply(data, signature)
            self.apply_ms.append(1e3 * (time.perf_counter() - started_s))

    def _update(self) -> tuple[bytes, str]:
        self._version += 1
        manifest = UpdateManifest(
            group=GROUP, version=self._version, fingerprint=self._bundle.manifest.fingerprint, method="benchmark",
            created_at_ms=0,
        )  # fmt: skip
        scale = np.float32(1 + 1e-3 * (self._version % 8))
        data = encode_update(manifest, {name: v * scale for name, v in self._bundle.source_parameters().items()})
        return data, signing.sign(data, self._key)


def swapping(sheet: Sheet, pair: PerfPair, batch: int, threads: int, limit: float | None, turns: int) -> None:
    """99th percentile of ``EdgeAgent.predict`` with an update each second, over that without."""
    pictures = list(np.random.default_rng(0).integers(0, 256, (batch, *pair.size, 3), dtype=np.uint8))
    key = signing.generate_key()
    still: list[float] = []
    during: list[float] = []
    with tempfile.TemporaryDirectory() as folder, _silent_cloud() as url:
        config = DeviceConfig(
            url=url, group=GROUP, device_id="d", token="none", public_key=signing.public_key(key), state_dir=folder,  # noqa: S106
            runtime=RuntimeConfig(threads=threads), selection=SelectionConfig(e_max=0.0),  # nothing to upload
            uplink=UplinkConfig(read_timeout_s=600.0),
        )  # fmt: skip
        with EdgeAgent(config, bundle=pair.bundle) as agent:
            swapper = Swapper(agent, pair.bundle, key)
            for _ in range(WARM_UP):
                agent.predict(pictures)
            for turn in range(2 * turns):
                if (turn + turn // 2) % 2:  # without, with, with, without: a slow spell falls on both
                    with swapper.running():
                        during += _predict(agent, pictures)
                else:
                    still += _predict(agent, pictures)
    _add(sheet, f"p99 with a swap each second, {pair.edge_name}, batch {batch}, {threads} thread(s)", limit, still,
         during, swapper.apply_ms)  # fmt: skip


def _add(
    sheet: Sheet, name: str, limit: float | None, still: list[float], during: list[float], apply_ms: list[float]
) -> None:
    before_ms, with_ms = float(np.percentile(still, 99)), float(np.percentile(during, 99))
    detail = (
        f"{with_ms:.3f} against {before_ms:.3f} ms; medians {np.median(during):.3f} and {np.median(still):.3f}; "
        f"{len(apply_ms)} swaps of {np.median(apply_ms):.0f} ms in the background"
    )
    if limit is None:
        sheet.report(name, "x", with_ms / before_ms, detail)
    else:
        sheet.at_most(name, "x", limit, with_ms / before_ms, detail)


def _predict(agent: EdgeAgent, pictures: list[Uint8Array]) -> list[float]:
    """Latencies of one segment, ms."""
    taken, end_s = [], time.perf_counter() + SEGMENT_S
    while (started_s := time.perf_counter()) < end_s:
        agent.predict(pictures)
        taken.append(1e3 * (time.perf_counter() - started_s))
    return taken


@contextmanager
def _silent_cloud() -> Iterator[str]:
    """An address that accepts connections and never answers: the agent's own threads stay asleep."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
