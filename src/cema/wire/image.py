"""ImageCodec: pixels to bytes and back, the same on edge and cloud.

The edge uploads what the camera saw. Bytes are hostile until decoded: the size of the picture is read from
the header and checked before a single pixel is allocated.
"""

from __future__ import annotations

import io
import math
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from cema.errors import ImageError, SizeLimitError, shown
from cema.types import IMAGE_CODING, Uint8Array

CODECS = ("jpeg", "webp", "png", "raw")
SMALL_MAX_SIDE_PX = 64
"""Up to this size ``auto`` means SMALL, above it LARGE: small pictures suffer most from coarse colour (ADR 14)."""
SMALL, LARGE = "jpeg-95-444", "jpeg-85"
MAX_PIXELS = 25_000_000
"""Largest picture that is decoded, about 75 MB as RGB; a 12-megapixel camera fits twice."""
MAX_IMAGE_BYTES = 8 * 1024 * 1024

_RAW_HEADER = struct.Struct("<II")
_PIL_FORMAT = {"jpeg": "JPEG", "webp": "WEBP", "png": "PNG"}


@dataclass(frozen=True)
class Coding:
    """How pixels become bytes. quality: 1 to 100, of jpeg and webp. full_colour: of jpeg, colour as fine as
    brightness. max_side_px: larger pictures are scaled down to it first, 0 = never."""

    codec: str
    quality: int = 90
    full_colour: bool = False
    max_side_px: int = 0


def read_coding(text: str, height: int, width: int) -> Coding:
    """A coding by its name, for a picture of that size in px.

    ``png``, ``raw``, ``jpeg-QUALITY``, ``jpeg-QUALITY-444`` or ``webp-QUALITY``, without a quality 90, each perhaps
    with ``@SIDE``; or ``auto``. Raises ImageError.
    """
    if text == "auto":
        text = SMALL if max(height, width) <= SMALL_MAX_SIDE_PX else LARGE
    match = re.fullmatch(IMAGE_CODING, text)
    if match is None:
        raise ImageError(
            f"expected a coding of images, got {text!r}", hint="auto, png, raw, jpeg-85, jpeg-85-444 or webp-80"
        )
    quality, side = match["quality"] or Coding.quality, match["side"] or Coding.max_side_px
    return Coding(match["codec"], int(quality), full_colour=bool(match["full"]), max_side_px=int(side))


def encode_image(image_HWC: Uint8Array, coding: Coding | str) -> bytes:
    """Encode uint8 [H, W, 3]. Raises ImageError for another dtype, shape or coding."""
    if image_HWC.dtype != np.uint8 or image_HWC.ndim != 3 or image_HWC.shape[2] != 3 or image_HWC.size == 0:
        raise ImageError(
            f"expected a uint8 array [H, W, 3], got {image_HWC.dtype} {list(image_HWC.shape)}",
            hint="convert grey pictures with np.repeat(image[..., None], 3, axis=2)",
        )
    if isinstance(coding, str):
        coding = read_coding(coding, *image_HWC.shape[:2])
    image_HWC = _scaled_down(image_HWC, coding.max_side_px)
    if coding.codec == "raw":
        return _RAW_HEADER.pack(*image_HWC.shape[:2]) + np.ascontiguousarray(image_HWC).tobytes()
    picture = Image.fromarray(image_HWC)
    if coding.codec == "png":
        return _saved(picture, "PNG", compress_level=6)
    if coding.codec == "webp":
        return _saved(picture, "WEBP", quality=coding.quality)
    subsampling = 0 if coding.full_colour else 2
    try:  # code tables of its own: half of a 32-pixel picture is tables
        return _saved(picture, "JPEG", quality=coding.quality, subsampling=subsampling, optimize=True)
    except OSError:  # noise: longer than the buffer that Pillow gives a picture with tables of its own
        return _saved(picture, "JPEG", quality=coding.quality, subsampling=subsampling)


def decode_image(
    data: bytes, codec: str | None = None, *, max_pixels: int = MAX_PIXELS, short_px: int = 0
) -> Uint8Array:
    """Decode to uint8 [H, W, 3]; ``codec`` None accepts any of jpeg, webp and png.

    short_px: a jpeg may come out at a half, a quarter or an eighth of its size as long as its short side has this many
    pixels; 0 = never. Large pictures decode several times faster so.

    Raises
    ------
    SizeLimitError: more bytes or pixels than allowed. ImageError: not a picture of that codec, truncated,
    animated, or of no size.
    """
    if codec == "raw":
        return _decode_raw(data, max_pixels)
    with _opened(data, codec, max_pixels) as picture:
        scale = short_px / min(picture.size)
        if 0 < scale < 1:
            picture.draft("RGB", (math.ceil(picture.width * scale), math.ceil(picture.height * scale)))
        return _as_rgb(picture)


def check_image(data: bytes, codec: str, *, max_pixels: int = MAX_PIXELS) -> None:
    """Look at the header only: a picture of that codec and of an allowed size. Raises as ``decode_image``."""
    if codec == "raw":
        _decode_raw(data, max_pixels)
        return
    with _opened(data, codec, max_pixels):
        pass


def _as_rgb(picture: Image.Image) -> Uint8Array:
    if picture.mode.startswith("I"):  # grey with 16 bits, of which Pillow would cut off all above 255
        grey_HW = (np.asarray(picture) >> 8).astype(np.uint8)
        return np.repeat(grey_HW[..., np.newaxis], 3, axis=2)
    return np.asarray(picture.convert("RGB"))


def _scaled_down(image_HWC: Uint8Array, max_side_px: int) -> Uint8Array:
    height, width = image_HWC.shape[:2]
    scale = max_side_px / max(height, width)
    if not 0 < scale < 1:
        return image_HWC
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(image_HWC).resize(size, Image.Resampling.BOX))


def _saved(picture: Image.Image, kind: str, **options: int | bool) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@contextmanager
def _opened(data: bytes, codec: str | None, max_pixels: int) -> Iterator[Image.Image]:
    if len(data) > MAX_IMAGE_BYTES:
        raise SizeLimitError(f"expected an image of at most {MAX_IMAGE_BYTES} bytes, got {len(data)}")
    if codec is not None and codec not in _PIL_FORMAT:
        raise ImageError(f"expected one of the codecs {', '.join(CODECS)}, got {shown(codec)}")
    formats: list[str] = list(_PIL_FORMAT.values()) if codec is None else [_PIL_FORMAT[codec]]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters becomes an error; the rest is noise about metadata
            with Image.open(io.BytesIO(data), formats=formats) as picture:
                _check_picture(picture, max_pixels)
                yield picture
    except Image.DecompressionBombError as error:
        raise SizeLimitError(f"expected at most {max_pixels} pixels: {error}") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        # Pillow's word for an unknown format is the address of the buffer, which is nobody's business
        what = "not that format" if isinstance(error, UnidentifiedImageError) else error
        raise ImageError(
            f"expected a complete {codec or 'jpeg, webp or png'} image, got {len(data)} bytes: {what}",
            hint="check that the file is complete and that its content matches its type",
        ) from error


def _check_picture(picture: Image.Image, max_pixels: int) -> None:
    width, height = picture.size
    _check_pixels(height, width, max_pixels)
    if getattr(picture, "n_frames", 1) != 1:
        raise ImageError(f"expected a still picture, got {getattr(picture, 'n_frames', 0)} frames")


def _check_pixels(height: int, width: int, max_pixels: int) -> None:
    if height < 1 or width < 1:
        raise ImageError(f"expected a picture of at least 1 x 1 px, got {height} x {width}")
    if height * width > max_pixels:
        raise SizeLimitError(
            f"expected at most {max_pixels} pixels, got {height} x {width}",
            hint="downscale on the camera, or raise the limit in the configuration",
        )


def _decode_raw(data: bytes, max_pixels: int) -> Uint8Array:
    if len(data) < _RAW_HEADER.size:
        raise ImageError(f"expected a raw image with an 8-byte header, got {len(data)} bytes")
    height, width = _RAW_HEADER.unpack_from(data)
    _check_pixels(height, width, max_pixels)
    expected = _RAW_HEADER.size + height * width * 3
    if len(data) != expected:
        raise ImageError(f"expected {expected} bytes for a raw {height} x {width} image, got {len(data)}")
    return np.frombuffer(data, np.uint8, offset=_RAW_HEADER.size).reshape(height, width, 3)
