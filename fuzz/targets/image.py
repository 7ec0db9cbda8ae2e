"""Pictures as devices upload them: every codec, header check and pixels."""

from __future__ import annotations

import numpy as np

from cema.errors import WireError
from cema.wire.image import CODECS, check_image, decode_image, encode_image

ALLOWED = WireError
MAX_PIXELS = 40_000
"""Small: a fuzzer that decodes megapixels finds nothing more, only later."""
_KINDS = (*CODECS, None)
_CARD = np.stack([np.add.outer(np.arange(9), np.arange(12)) * 11] * 3, -1).astype(np.uint8)
SEEDS = [bytes([number]) + encode_image(_CARD, codec) for number, codec in enumerate(CODECS)] + [
    bytes([len(CODECS)]) + encode_image(_CARD, codec) for codec in ("jpeg", "webp", "png")
]


def run(data: bytes) -> None:
    """The first byte chooses the codec. What has pixels has passed the look at its header."""
    codec = _KINDS[data[0] % len(_KINDS)] if data else None
    pixels = decode_image(data[1:], codec, max_pixels=MAX_PIXELS)
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert 0 < pixels.shape[0] * pixels.shape[1] <= MAX_PIXELS
    if codec is not None:
        check_image(data[1:], codec, max_pixels=MAX_PIXELS)
