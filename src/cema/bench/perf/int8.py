"""Bundles in int8 against float32: pictures per second, and what the coarser numbers cost in accuracy.

The accuracy is that of source and of adapted norm parameters, the same ones in both precisions, and that of the whole
system: samples selected by an int8 device, parameters learnt from them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cema.bench.corruptions import corrupted
from cema.bench.datasets import Dataset
from cema.bench.perf.models import PerfPair
from cema.bench.perf.rows import Sheet
from cema.bench.perf.timing import median_ms, ratio, take_turns
from cema.bench.simulate import GROUP, Pair, Simulator
from cema.bench.start import Conditions, start
from cema.cloud.adapt import Options
from cema.cloud.calibration import PICTURES
from cema.cloud.int8 import quantised
from cema.edge.session import EdgeSession
from cema.types import NormParameters, Uint8Array
from cema.wire.bundle import Bundle, encode_bundle
from cema.wire.preprocess import fit
from cema.wire.update import open_update

THREADS = (1, 2)
PICTURES_MAX = 2000
"""Of a data set: those at odd places calibrate, those at even places are what accuracies are measured on."""
STREAM_BATCH, EVALUATION_BATCH = 64, 25
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Trial:
    """Where accuracy is measured: corruption and severity, batch sizes for speed, options of ``cema-paper``."""

    corruption: str
    severity: int
    batches: tuple[int, ...]
    options: Options


def int8(sheet: Sheet, pair: PerfPair, dataset: Dataset, trial: Trial, rounds: int) -> None:
    """All rows of one pair."""
    taken = dataset.head(PICTURES_MAX)
    clean = np.stack([fit(image, pair.bundle.manifest.preprocess) for image in taken.images])
    made, fidelity = quantised(pair.bundle, clean[1::2][:PICTURES])
    size = {name: len(encode_bundle(bundle)) for name, bundle in (("float32", pair.bundle), ("int8", made))}
    sheet.report(
        f"labels as float32, {pair.edge_name}", "%", 100 * fidelity.agreement,
        f"logit error {fidelity.error:.3f}, with perturbed norms {fidelity.error_perturbed:.3f}, of their effect "
        f"{fidelity.error_change:.3f}; bundle {size['int8'] / 1e6:.2f} instead of {size['float32'] / 1e6:.2f} MB",
    )  # fmt: skip
    for batch in trial.batches:
        for threads in THREADS:
            _speed(sheet, pair, made, clean[:batch], threads, max(rounds // batch, 10))
    _swap(sheet, pair, made, max(rounds // 10, 2))
    _accuracy(sheet, pair, made, (clean, taken.labels), trial)


def _speed(sheet: Sheet, pair: PerfPair, made: Bundle, images_BHWC: Uint8Array, threads: int, rounds: int) -> None:
    batch, source = len(images_BHWC), pair.bundle.source_parameters()
    exact, coarse = (EdgeSession(bundle, source, 0, threads=threads) for bundle in (pair.bundle, made))
    taken = take_turns(
        {"float32": lambda: exact.predict(images_BHWC), "int8": lambda: coarse.predict(images_BHWC)},
        rounds=rounds, warm_up=5,
    )  # fmt: skip
    rates = {name: 1000 * batch / median_ms(taken, name) for name in taken}
    sheet.report(
        f"images/s against float32, {pair.edge_name}, batch {batch}, {threads} threads", "x",
        ratio(taken, "float32", "int8"), f"{rates['int8']:.0f} against {rates['float32']:.0f} images/s",
    )  # fmt: skip


def _swap(sheet: Sheet, pair: PerfPair, made: Bundle, rounds: int) -> None:
    source = pair.bundle.source_parameters()
    taken = take_turns(
        {
            "float32": lambda: EdgeSession(pair.bundle, source, 1, threads=1),
            "int8": lambda: EdgeSession(made, source, 1, threads=1),
        },
        rounds=rounds,
    )
    sheet.report(
        f"session built for an update, int8, {pair.edge_name}", "ms", median_ms(taken, "int8"),
        f"float32: {median_ms(taken, 'float32'):.1f} ms",
    )  # fmt: skip


def _accuracy(
    sheet: Sheet, pair: PerfPair, made: Bundle, labelled: tuple[Uint8Array, Labels], trial: Trial
) -> None:  # fmt: skip
    clean, labels = labelled
    shifted = corrupted(clean, trial.corruption, trial.severity, 0)
    where = f"{trial.corruption} {trial.severity}"
    bundles = {"float32": pair.bundle, "int8": made}
    loops = {name: _loop(pair, bundle, shifted, labels, trial.options) for name, bundle in bundles.items()}
    source, adapted = pair.bundle.source_parameters(), loops["float32"][1]
    for what, images, parameters in (
        ("clean, source parameters", clean, source),
        (f"{where}, source parameters", shifted, source),
        (f"{where}, adapted parameters", shifted, adapted),
        ("clean, adapted parameters", clean, adapted),
    ):
        answers = {name: _labels(bundle, parameters, images[::2]) for name, bundle in bundles.items()}
        right = {name: 100 * float((found == labels[::2]).mean()) for name, found in answers.items()}
        sheet.report(
            f"accuracy in int8, {pair.edge_name}, {what}", "%", right["int8"],
            f"float32: {right['float32']:.1f} %; equal labels {(answers['int8'] == answers['float32']).mean():.1%} of "
            f"{len(labels[::2])}",
        )  # fmt: skip
    sheet.report(
        f"accuracy of the stream with cema-paper, int8 device, {pair.edge_name}, {where}", "%", loops["int8"][0],
        f"float32 device: {loops['float32'][0]:.1f} %; {len(labels)} pictures, seed 0",
    )  # fmt: skip


def _loop(
    pair: PerfPair, bundle: Bundle, images: Uint8Array, labels: Labels, options: Options
) -> tuple[float, NormParameters]:
    """(accuracy in %, the parameters of the last update) of a device with this bundle and its cloud."""
    run = start(
        "cema-paper", Pair(bundle, pair.edge, pair.foundation), Conditions(options=options), lambda: (images, "")
    )
    simulator = run.run
    assert isinstance(simulator, Simulator)
    right = 0
    for first in range(0, len(images), STREAM_BATCH):
        (answer,) = simulator.step([images[first : first + STREAM_BATCH]])
        assert answer is not None
        right += int((answer.probabilities_BK.argmax(axis=1) == labels[first : first + STREAM_BATCH]).sum())
    (newest,) = simulator.store.updates(GROUP, 1)
    update = open_update(simulator.blobs.get(newest.blob), bundle.manifest)
    return 100 * right / len(labels), update.parameters


def _labels(bundle: Bundle, parameters: NormParameters, images: Uint8Array) -> Labels:
    session = EdgeSession(bundle, parameters, 0)
    starts = range(0, len(images), EVALUATION_BATCH)
    return np.concatenate([session.predict(images[first : first + EVALUATION_BATCH]).label_B for first in starts])
