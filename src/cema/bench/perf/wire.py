"""The wire: bytes of a sample by coding, and of an update by encoding."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from cema.bench.corruptions import COMMON
from cema.bench.datasets import Dataset
from cema.bench.perf.models import PerfPair
from cema.bench.perf.rows import Sheet
from cema.cloud.adapt import create_adapter
from cema.cloud.adapt.base import Schedule
from cema.edge.session import EdgeSession
from cema.types import NormParameters
from cema.wire.difference import count_values, encode_difference, source_base, update_base
from cema.wire.image import encode_image
from cema.wire.messages import Preprocess, UpdateManifest
from cema.wire.preprocess import fit, normalise
from cema.wire.update import encode_update, open_update

SAMPLES = 40
"""Photographs per corruption behind a mean size."""
SEVERITY = 5
STEPS = 6
"""Adapt steps behind the sizes of updates; a version after each."""


def samples(sheet: Sheet, dataset: Dataset, size: tuple[int, int], limit_bytes: float, full_bytes: int) -> None:
    """Bytes of an uploaded picture as devices code it by default, over the fifteen corruptions.

    full_bytes: what the published code sends, the normalised tensor.
    """
    pixels = dataset.part(0, SAMPLES)
    means = {}
    for name in COMMON:
        pictures = [fit(picture, Preprocess(size=size)) for picture in pixels.condition(name, SEVERITY, 0)]
        means[name] = float(np.mean([len(encode_image(picture, "auto")) for picture in pictures]))
    worst = max(means, key=lambda name: means[name])
    mean = float(np.mean(list(means.values())))
    detail = f"worst {worst} {means[worst]:.0f} B; the published code sends {full_bytes} B, {full_bytes / mean:.0f} x"
    sheet.at_most(f"bytes of a sample, {size[1]} px", "B", limit_bytes, mean, detail)


def updates(sheet: Sheet, pair: PerfPair, dataset: Dataset) -> None:
    """Bytes of an update on its way to a device that has the version before, and what float16 does to the logits."""
    manifest, source = pair.bundle.manifest, source_base(pair.bundle)
    seen = dataset.part(0, Schedule.step_uploads).condition("fog", 3, 0)
    pixels_BHWC = np.stack([fit(picture, manifest.preprocess) for picture in seen])
    images_BCHW = torch.from_numpy(normalise(pixels_BHWC, manifest.preprocess))
    plain = 2 * count_values(manifest)
    sizes: list[int] = []
    before: bytes | None = None
    for version, parameters in enumerate(_versions(pair, images_BCHW), 1):
        data = encode_update(_manifest(pair, version), parameters)
        base = update_base(before, manifest) if before else None
        if base is not None:
            sizes.append(len(encode_difference(data, base) or data))
        before, last = data, parameters
    assert before is not None
    rounded = open_update(before, manifest).parameters
    exact, heard = (EdgeSession(pair.bundle, values, 1).logits(pixels_BHWC) for values in (last, rounded))
    mean = float(np.mean(sizes))
    sheet.at_most(f"update to the next version, {pair.edge_name}", "% of float16", 60, 100 * mean / plain,
                  f"{mean:.0f} B; values in float16 {plain} B, as a file {len(before)} B, from the source "
                  f"{len(encode_difference(before, source) or b'')} B")  # fmt: skip
    sheet.at_most(f"change of logits by the encoding, {pair.edge_name}", "x of float16's", 4, 1.0,
                  f"the difference is exact; float16 itself: {float(np.abs(exact - heard).max()):.2g} of "
                  f"{float(np.abs(exact).max()):.2g}")  # fmt: skip


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
