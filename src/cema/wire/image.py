"""ImageCodec: pixels to bytes and back, the same on edge and cloud.

The edge uploads what the camera saw. Bytes are hostile until decoded: the size of the picture is read from
the header and checked before a single pixel is allocated.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, UnidentifiedImageError

from cema.errors import ImageError, SizeLimitError
from cema.types import Uint8Array

CODECS = ("jpeg", "webp", "png", "raw")
LOSSLESS_MAX_SIDE_PX = 64
"""Up to this size PNG, above it JPEG (design section 7: small pictures suffer most from JPEG)."""
JPEG_QUALITY = 90
MAX_PIXELS = 25_000_000
"""Largest picture that is decoded, about 75 MB as RGB; a 12-megapixel camera fits twice."""
MAX_IMAGE_BYTES = 8 * 1024 * 1024

_RAW_HEADER = struct.Struct("<II")
_PIL_FORMAT = {"jpeg": "JPEG", "webp": "WEBP", "png": "PNG"}


def codec_for(height: int, width: int) -> str:
    """The default codec of a picture: png up to 64 px on the long side, else jpeg."""
    return "png" if max(height, width) <= LOSSLESS_MAX_SIDE_PX else "jpeg"


def encode_image(image_HWC: Uint8Array, codec: str, *, quality: int = JPEG_QUALITY) -> bytes:
    """Encode uint8 [H, W, 3]. Raises ImageError for another dtype, shape or codec."""
    if image_HWC.dtype != np.uint8 or image_HWC.ndim != 3 or image_HWC.shape[2] != 3 or image_HWC.size == 0:
        raise ImageError(
            f"expected a uint8 array [H, W, 3], got {image_HWC.dtype} {list(image_HWC.shape)}",
            hint="convert grey pictures with np.repeat(image[..., None], 3, axis=2)",
        )
    height, width = image_HWC.shape[:2]
    if codec == "raw":
        return _RAW_HEADER.pack(height, width) + np.ascontiguousarray(image_HWC).tobytes()
    if codec not in _PIL_FORMAT:
        raise ImageError(f"expected one of the codecs {', '.join(CODECS)}, got {codec!r}")
    buffer = io.BytesIO()
    options = {"compress_level": 6} if codec == "png" else {"quality": quality}
    Image.fromarray(image_HWC).save(buffer, _PIL_FORMAT[codec], **options)
    return buffer.getvalue()


def decode_image(data: bytes, codec: str | None = None, *, max_pixels: int = MAX_PIXELS) -> Uint8Array:
    """Decode to uint8 [H, W, 3]; ``codec`` None accepts any of jpeg, webp and png.

    Raises
    ------
    SizeLimitError: more bytes or pixels than allowed. ImageError: not a picture of that codec, truncated,
    animated, or of no size.
    """
    if codec == "raw":
        return _decode_raw(data, max_pixels)
    with _opened(data, codec, max_pixels) as picture:
        return np.asarray(picture.convert("RGB"))


def check_image(data: bytes, codec: str, *, max_pixels: int = MAX_PIXELS) -> None:
    """Look at the header only: a picture of that codec and of an allowed size. Raises as ``decode_image``."""
    if codec == "raw":
        _decode_raw(data, max_pixels)
        return
    with _opened(data, codec, max_pixels):
        pass


@contextmanager
def _opened(data: bytes, codec: str | None, max_pixels: int) -> Iterator[Image.Image]:
    if len(data) > MAX_IMAGE_BYTES:
        raise SizeLimitError(f"expected an image of at most {MAX_IMAGE_BYTES} bytes, got {len(data)}")
    if codec is not None and codec not in _PIL_FORMAT:
        raise ImageError(f"expected one of the codecs {', '.join(CODECS)}, got {codec!r}")
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
        raise ImageError(
            f"expected a complete {codec or 'jpeg, webp or png'} image, got {len(data)} bytes: {error}",
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
