"""What a sample costs on its way up: bytes of bodies as devices send them."""

from __future__ import annotations

import numpy as np

from cema.bench.uploads import AT_ONCE, in_batches, upload_bytes
from cema.wire.image import encode_image

SHADES = [np.full((16, 16, 3), shade, np.uint8) for shade in range(100, 100 + 2 * AT_ONCE)]


def test_what_waits_is_sent_in_full_batches_and_a_rest() -> None:
    assert [len(part) for part in in_batches(range(2 * AT_ONCE + 3))] == [AT_ONCE, AT_ONCE, 3]
    assert list(in_batches([])) == []


def test_a_sample_costs_its_picture_and_its_fields() -> None:
    picture = float(np.mean([len(encode_image(image, "raw")) for image in SHADES]))
    plain = upload_bytes(SHADES, "raw", deflate=False)
    assert picture + 100 < plain < picture + 200
    assert upload_bytes(SHADES, "raw") < plain / 4


def test_full_uploads_share_what_single_ones_repeat() -> None:
    assert upload_bytes(SHADES, "jpeg-90") < upload_bytes(SHADES, "jpeg-90", at_once=1) / 2
