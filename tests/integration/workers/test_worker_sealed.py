"""With encrypted pictures workers learn what they learn without, and write no pixel plainly."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cema.wire.image import decode_image

ROUNDS = 12
RESTART_AT = 10
"""From round 9 on there is enough in replay for draws from it."""


def learn(cloud: Any) -> tuple[bytes, Any]:
    """Parameters after uploads that are always the same, with a restart in between; and the last worker."""
    worker = cloud.worker()
    for turn in range(ROUNDS):
        if turn == RESTART_AT:
            worker = cloud.worker("after the restart")
        cloud.upload("g", 32)
        assert worker.once()
    update = cloud.update("g", ROUNDS)
    return b"".join(value.tobytes() for _, value in sorted(update.parameters.items())), worker


def replay_file(worker: Any, size_bytes: int) -> bytes:
    return os.pread(worker._controllers["g"].replay._opened(), size_bytes, 0)


@pytest.mark.usefixtures("folder")
def test_what_is_learned_is_the_same_and_no_pixel_lies_on_the_disk(
    make_cloud: Callable[..., Any], tmp_path: Path
) -> None:
    plain = make_cloud("g", tmp_path / "plain")
    sealed = make_cloud("g", tmp_path / "sealed", encrypt=True)
    (expected, plain_worker), (learned, sealed_worker) = learn(plain), learn(sealed)
    assert learned == expected
    samples = sealed.store.replay("g")
    assert samples == plain.store.replay("g")
    assert len(samples) == 32 * ROUNDS
    pixels = [decode_image(sample.image, sample.codec) for sample in samples]
    in_files = [replay_file(worker, 2 * len(pixels) * pixels[0].nbytes) for worker in (plain_worker, sealed_worker)]
    for image, sample in zip(pixels, samples, strict=True):
        assert np.ascontiguousarray(image).tobytes() in in_files[0], "the test would see it"
        assert np.ascontiguousarray(image).tobytes() not in in_files[1]
        assert not any(sample.image in file.read_bytes() for file in (tmp_path / "sealed").glob("cema.db*"))
