"""Pictures on their way through the device: to the model's size, and past whoever guards what may leave it.

In: what ``predict`` was given. Out: pixels for the model; and for the cloud either a camera's own bytes, or pixels that
``before_upload`` and the configuration have changed, in the writer's thread.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image as PilImage

from cema.config import UplinkConfig
from cema.edge.writer import PASS_THROUGH_MAX_BYTES, checked, image_codec
from cema.errors import CemaError, ImageError
from cema.types import Uint8Array
from cema.wire.messages import Preprocess
from cema.wire.preprocess import fit, fit_encoded

Image = Uint8Array | bytes
BeforeUpload = Callable[[Uint8Array], Uint8Array | None]
"""Takes the pixels of a selected sample, uint8 [H, W, 3], and returns what may leave the device; None = nothing."""


def fitted(index: int, image: Image, recipe: Preprocess) -> Uint8Array:
    """At the model's size. Raises ImageError that names ``index``."""
    try:
        if isinstance(image, bytes | bytearray | memoryview):
            return fit_encoded(bytes(image), recipe)
        return fit(np.asarray(image), recipe)
    except CemaError as error:
        raise ImageError(f"image {index}: {error.message}", hint=error.hint, index=index) from error


def passed_through(image: Image) -> bytes | None:
    """A camera's own bytes, if they are small; what is sent else has the model's input size already."""
    if not isinstance(image, bytes | bytearray | memoryview) or len(image) > PASS_THROUGH_MAX_BYTES:
        return None
    data = bytes(image)
    return data if image_codec(data) else None


def guard(config: UplinkConfig, before_upload: BeforeUpload | None) -> BeforeUpload | None:
    """What happens to pixels before they leave: the caller's own, then the configured blur. None if nothing does."""
    if not config.blur_px:
        return before_upload
    from PIL import ImageFilter  # only here: few devices blur

    blur = ImageFilter.GaussianBlur(config.blur_px)

    def guarded(pixels_HWC: Uint8Array) -> Uint8Array | None:
        allowed = pixels_HWC if before_upload is None else checked(before_upload(pixels_HWC))
        return None if allowed is None else np.asarray(PilImage.fromarray(allowed).filter(blur))

    return guarded
