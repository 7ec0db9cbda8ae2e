"""Encoded pictures on their way into a model: decoded at a reduced scale, cropped, resized."""

from __future__ import annotations

import numpy as np

from cema.errors import WireError
from cema.wire.image import encode_image
from cema.wire.messages import Preprocess
from cema.wire.preprocess import INTERPOLATIONS, fit_encoded, normalise

ALLOWED = WireError
_PICTURES = [np.full((height, width, 3), 90, np.uint8) for height, width in ((8, 8), (40, 30), (1, 64))]
SEEDS = [
    bytes([size, size, short, kind]) + encode_image(picture, codec)
    for size, short, kind in ((8, 0, 0), (8, 9, 1), (5, 16, 2))
    for picture in _PICTURES
    for codec in ("jpeg", "png")
]


def run(data: bytes) -> None:
    """The first four bytes are the recipe: height, width, short side, interpolation."""
    height, width, short, kind = data[:4].ljust(4, b"\1")
    size = (1 + height % 32, 1 + width % 32)
    recipe = Preprocess(size=size, resize_short=short, interpolation=INTERPOLATIONS[kind % len(INTERPOLATIONS)])
    pixels = fit_encoded(data[4:], recipe)
    assert pixels.shape == (*size, 3)
    assert np.isfinite(normalise(pixels[None], recipe)).all()
