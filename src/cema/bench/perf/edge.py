"""The device: what the agent adds to ONNX Runtime, and what ONNX Runtime gains over torch."""

from __future__ import annotations

import io
from collections.abc import Callable

import msgspec
import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from PIL import Image

from cema.bench.perf.models import PerfPair
from cema.bench.perf.rows import Sheet
from cema.bench.perf.service import Service
from cema.bench.perf.timing import median_ms, ratio, take_turns
from cema.cloud.adapt.norm import adaptable, norm_train
from cema.config import RuntimeConfig, SelectionConfig
from cema.edge import EdgeAgent
from cema.edge.selection import Selector
from cema.types import Float32Array, Uint8Array
from cema.wire.preprocess import fit, normalise

SELECTED_SHARE = 0.45
"""Of the samples, as the paper's filters keep on the CIFAR streams."""
THREADS = 1
CAMERA_PX = (1080, 1920)
"""Height and width of the pictures from file to label: a usual camera."""


class ShareSelector(Selector):
    """Costs what the paper's filters cost, and keeps ``SELECTED_SHARE`` of whatever comes, evenly spread."""

    _owed = 0.0

    def select(self, probabilities_BK: Float32Array, entropy_B: Float32Array) -> NDArray[np.bool_]:
        super().select(probabilities_BK, entropy_B)
        kept = []
        for _ in range(len(entropy_B)):  # plain numbers: this line-up must not cost what is to be measured
            self._owed += SELECTED_SHARE
            kept.append(self._owed >= 1)
            self._owed -= kept[-1]
        return np.array(kept, np.bool_)


def overhead(sheet: Sheet, pair: PerfPair, batch: int, limit_percent: float, rounds: int) -> None:
    """``EdgeAgent.predict`` against the bare session, uplink live."""
    images_BHWC = _pictures(batch, pair.size)
    pictures = list(images_BHWC)
    with Service(pair.bundle, pair.edge_name) as service:
        config = msgspec.structs.replace(
            service.enrol(f"device-{batch}"),
            runtime=RuntimeConfig(threads=THREADS), selection=SelectionConfig(e_max_warmup_samples=64),
        )  # fmt: skip
        with EdgeAgent(config, bundle=pair.bundle, make_selector=ShareSelector) as agent:
            bare, given = bare_session(agent), pair.bundle.manifest.input_name
            contestants: dict[str, Callable[[], object]] = {
                "bare": lambda: bare.run(None, {given: images_BHWC}), "agent": lambda: agent.predict(pictures),
            }  # fmt: skip
            taken = take_turns(contestants, rounds=rounds, warm_up=5)
            status = agent.status()
    share = status["selected"] / status["samples_seen"]  # type: ignore[operator]
    sheet.at_most(
        f"overhead of predict, {pair.edge_name}, batch {batch}", "%", limit_percent,
        100 * (ratio(taken, "agent", "bare") - 1),
        f"{median_ms(taken, 'agent'):.3f} against {median_ms(taken, 'bare'):.3f} ms, {share:.0%} selected, "
        f"{status['uploaded']} uploaded meanwhile, {THREADS} thread",
    )  # fmt: skip


def against_torch(sheet: Sheet, pair: PerfPair, batch: int, at_least: float | None, rounds: int) -> None:
    """Images per second against eager torch with the textbook norm, as the published code predicts."""
    module = adaptable(pair.edge, "textbook")
    norm_train(module, True)
    images_BHWC = _pictures(batch, pair.size)
    images_BCHW = torch.from_numpy(normalise(images_BHWC, pair.bundle.manifest.preprocess))
    threads = torch.get_num_threads()
    session = _session(pair, threads)
    given = pair.bundle.manifest.input_name

    @torch.no_grad()
    def eager() -> torch.Tensor:
        logits_BK: torch.Tensor = module(images_BCHW)
        return logits_BK

    taken = take_turns({"torch": eager, "edge": lambda: session.run(None, {given: images_BHWC})}, rounds=rounds)
    name = f"images/s against eager torch, {pair.edge_name}, batch {batch}"
    detail = f"{batch / median_ms(taken, 'edge') * 1000:.0f} against {batch / median_ms(taken, 'torch') * 1000:.0f}"
    value = ratio(taken, "torch", "edge")
    if at_least is None:
        sheet.report(name, "x", value, f"{detail}, {threads} threads")
    else:
        sheet.at_least(name, "x", at_least, value, f"{detail}, {threads} threads")


def from_file(sheet: Sheet, pair: PerfPair, rounds: int) -> None:
    """JPEG bytes of a camera to a label."""
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (CAMERA_PX[0] // 16, CAMERA_PX[1] // 16, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(CAMERA_PX[::-1], Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    data = file.getvalue()
    with Service(pair.bundle, pair.edge_name) as service:
        config = msgspec.structs.replace(service.enrol("camera"), runtime=RuntimeConfig(threads=THREADS))
        with EdgeAgent(config, bundle=pair.bundle) as agent:
            recipe = pair.bundle.manifest.preprocess

            def plain() -> object:
                with Image.open(io.BytesIO(data)) as picture:
                    return agent.predict([fit(np.asarray(picture.convert("RGB")), recipe)])

            taken = take_turns({"bytes": lambda: agent.predict([data]), "decoded in full": plain}, rounds=rounds)
    sheet.report(
        f"JPEG {CAMERA_PX[1]} x {CAMERA_PX[0]} to label, {pair.edge_name}", "images/s",
        1000 / median_ms(taken, "bytes"),
        f"{ratio(taken, 'decoded in full', 'bytes'):.2f} x of decoding in full first, {THREADS} thread",
    )  # fmt: skip


def swaps(sheet: Sheet, pair: PerfPair, rounds: int) -> None:
    """What one hot swap costs in the background: a session built with other norm parameters."""
    from cema.edge.session import EdgeSession

    source = pair.bundle.source_parameters()
    taken = take_turns({"build": lambda: EdgeSession(pair.bundle, source, 1, threads=THREADS)}, rounds=rounds)
    sheet.report(f"session built for an update, {pair.edge_name}", "ms", median_ms(taken, "build"))


def bare_session(agent: EdgeAgent) -> ort.InferenceSession:
    """The very session that the agent runs."""
    from cema.edge.session import EdgeSession

    session = agent._updater.session
    assert isinstance(session, EdgeSession), "pictures of one look"
    return session._session


def _session(pair: PerfPair, threads: int) -> ort.InferenceSession:
    from cema.edge.session import EdgeSession

    return EdgeSession(pair.bundle, pair.bundle.source_parameters(), 0, threads=threads)._session


def _pictures(count: int, size: tuple[int, int]) -> Uint8Array:
    return np.random.default_rng(0).integers(0, 256, (count, *size, 3), dtype=np.uint8)
