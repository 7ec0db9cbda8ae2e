"""From a photograph to the model's input, once for both sides (the recipe travels in the bundle)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from cema.errors import ImageError
from cema.types import Float32Array, Uint8Array
from cema.wire.image import decode_image
from cema.wire.messages import Preprocess

REDUCING_GAP = 2
"""A decoder may leave out detail beyond so many times the size to which a picture is scaled: what scaling drops anyway
(the gap of Pillow's thumbnails)."""
_RESAMPLE = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}
INTERPOLATIONS = tuple(_RESAMPLE)
"""What a recipe may ask for; checked where a bundle is read."""


def fit(image_HWC: Uint8Array, recipe: Preprocess) -> Uint8Array:
    """Resize and centre-crop uint8 [H, W, 3] to the recipe's size, still uint8."""
    height, width = recipe.size
    if image_HWC.ndim != 3 or image_HWC.shape[2] != 3 or image_HWC.dtype != np.uint8 or image_HWC.size == 0:
        raise ImageError(f"expected a uint8 array [H, W, 3], got {image_HWC.dtype} {list(image_HWC.shape)}")
    if image_HWC.shape[:2] == (height, width):
        return image_HWC
    picture = Image.fromarray(image_HWC)
    resample = _RESAMPLE[recipe.interpolation]
    return np.asarray(picture.resize((width, height), resample, box=_centre(picture.size, recipe)))


def fit_encoded(data: bytes, recipe: Preprocess, codec: str | None = None) -> Uint8Array:
    """As ``fit``, for a picture's bytes. A large JPEG is decoded at a reduced scale, on device and cloud alike.

    Raises ImageError, SizeLimitError.
    """
    short_px = recipe.resize_short or max(recipe.size)
    return fit(decode_image(data, codec, short_px=REDUCING_GAP * short_px), recipe)


def _centre(size: tuple[int, int], recipe: Preprocess) -> tuple[float, float, float, float]:
    """The part (left, top, right, bottom) of a picture that the model sees.

    Resizing only this part equals resizing all and cropping, without ever holding a large picture's margins.
    """
    if not recipe.resize_short:
        return (0.0, 0.0, float(size[0]), float(size[1]))
    scale = min(size) / recipe.resize_short
    width, height = (min(side * scale, float(limit)) for side, limit in zip(recipe.size[::-1], size, strict=True))
    left, top = (size[0] - width) / 2, (size[1] - height) / 2
    return (left, top, left + width, top + height)


def normalise(images_BHWC: Uint8Array, recipe: Preprocess) -> Float32Array:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W]: x / 255, minus mean, divided by std."""
    scale, shift = scale_and_shift(recipe)
    scaled = images_BHWC.astype(np.float32) * scale + shift
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def scale_and_shift(recipe: Preprocess) -> tuple[Float32Array, Float32Array]:
    """Normalisation as x * scale + shift, float32 [3] each: bundles whose graph normalises hold these very numbers."""
    scale = np.asarray([1.0 / (255.0 * s) for s in recipe.std], np.float32)
    shift = np.asarray([-m / s for m, s in zip(recipe.mean, recipe.std, strict=True)], np.float32)
    return scale, shift


def preprocess(images: Sequence[Uint8Array], recipe: Preprocess) -> Float32Array:
    """Photographs of any size, uint8 [H, W, 3] each -> float32 [B, 3, H, W]. Raises ImageError."""
    return normalise(np.stack([fit(image, recipe) for image in images]), recipe)
