"""The wire: bytes of a sample by coding, and of an update by encoding."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from cema.bench.datasets import Dataset
from cema.bench.perf.models import PerfPair
from cema.bench.perf.rows import Sheet
from cema.bench.uploads import AT_ONCE, SAMPLES, corrupted, upload_bytes
from cema.cloud.adapt import create_adapter
from cema.cloud.adapt.base import Schedule
from cema.edge.session import EdgeSession
from cema.types import NormParameters
from cema.wire.difference import apply_difference, count_values, encode_difference, source_base, update_base
from cema.wire.messages import UpdateManifest
from cema.wire.preprocess import fit, normalise
from cema.wire.update import encode_update, open_update

STEPS = 6
"""Adapt steps behind the sizes of updates; a version after each."""


def samples(sheet: Sheet, dataset: Dataset, size: tuple[int, int], limit_bytes: float, full_bytes: int) -> None:
    """Bytes of an uploaded sample as devices send it by default, over the fifteen corruptions.

    full_bytes: what the published code sends, the normalised tensor.
    """
    means = {name: upload_bytes(pictures, "auto") for name, pictures in corrupted(dataset, size).items()}
    worst = max(means, key=lambda name: means[name])
    mean = float(np.mean(list(means.values())))
    sheet.at_most(f"bytes of a sample, {size[1]} px", "B", limit_bytes, mean,
                  f"{SAMPLES // AT_ONCE} full uploads each, worst {worst} {means[worst]:.0f} B; the published code "
                  f"sends {full_bytes} B, {full_bytes / mean:.0f} x")  # fmt: skip


def updates(sheet: Sheet, pair: PerfPair, dataset: Dataset) -> None:
    """Bytes of an update on its way to a device that has the version before, and what float16 does to the logits."""
    manifest, source = pair.bundle.manifest, source_base(pair.bundle)
    seen = dataset.part(0, Schedule.step_uploads).condition("fog", 3, 0)
    pixels_BHWC = np.stack([fit(picture, manifest.preprocess) for picture in seen])
    images_BCHW = torch.from_numpy(normalise(pixels_BHWC, manifest.preprocess))
    plain = 2 * count_values(manifest)
    versions = [
        (encode_update(_manifest(pair, number), parameters), parameters)
        for number, parameters in enumerate(_versions(pair, images_BCHW), 1)
    ]
    sizes, heard = [], versions[0][0]
    for data, _ in versions[1:]:
        base = update_base(heard, manifest)
        assert base is not None
        difference = encode_difference(data, base)
        sizes.append(len(data if difference is None else difference))
        heard = data if difference is None else apply_difference(difference, base)
    data, exact = versions[-1]
    mean, whole = float(np.mean(sizes)), encode_difference(data, source)
    sheet.at_most(f"update to the next version, {pair.edge_name}", "% of float16", 60, 100 * mean / plain,
                  f"{mean:.0f} B; values in float16 {plain} B, as a file {len(data)} B, from the source "
                  f"{len(data if whole is None else whole)} B")  # fmt: skip
    float16 = {name: value.astype(np.float16).astype(np.float32) for name, value in exact.items()}
    logits_BK, rounded_BK, heard_BK = (
        EdgeSession(pair.bundle, values, 1).logits(pixels_BHWC)
        for values in (exact, float16, open_update(heard, manifest).parameters)
    )
    noise, largest = float(np.abs(rounded_BK - logits_BK).max()), float(np.abs(logits_BK).max())
    sheet.at_most(f"change of logits by what arrives, {pair.edge_name}", "x of float16's", 4,
                  float(np.abs(heard_BK - logits_BK).max()) / noise,
                  f"after {len(sizes)} differences; float16's: {noise:.2g} of {largest:.2g}")  # fmt: skip


def _versions(pair: PerfPair, images_BCHW: torch.Tensor) -> Iterator[NormParameters]:
    adapter = create_adapter("cema-paper", pair.edge, pair.foundation, {"norm_impl": "fused"})
    for _ in range(STEPS):
        adapter.step(images_BCHW, None)
        yield adapter.edge_parameters()


def _manifest(pair: PerfPair, version: int) -> UpdateManifest:
    return UpdateManifest(
        group="perf", version=version, fingerprint=pair.bundle.manifest.fingerprint, method="cema-paper",
        created_at_ms=1_700_000_000_000 + 10_000 * version, encoding="float16",
    )  # fmt: skip
