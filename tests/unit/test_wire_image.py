"""Hostile and unsuitable pictures, one by one."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFile

from cema.config import UplinkConfig
from cema.errors import ImageError, SizeLimitError
from cema.wire.image import (
    LARGE,
    MAX_IMAGE_BYTES,
    MAX_PIXELS,
    SMALL,
    Coding,
    check_image,
    decode_image,
    encode_image,
    read_coding,
)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_that_claims(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 100_000)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [5_001, 12_000, 60_000])
def test_a_png_bomb_is_refused_before_a_pixel_is_loaded(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(picture: object) -> None:
        pytest.fail("memory for the pixels was about to be allocated")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    bomb = png_that_claims(side, side)
    for codec in ("png", None):
        with pytest.raises(SizeLimitError):
            decode_image(bomb, codec)
    with pytest.raises(SizeLimitError):
        check_image(bomb, "png")


def test_checking_a_good_picture_does_not_load_it(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode_image(np.zeros((8, 8, 3), np.uint8), "png")
    monkeypatch.delattr(ImageFile.ImageFile, "load")
    check_image(data, "png")


def test_a_raw_bomb_is_refused_without_allocating_its_pixels() -> None:
    with pytest.raises(SizeLimitError, match=str(MAX_PIXELS)):
        decode_image(struct.pack("<II", 60_000, 60_000), "raw")


def test_too_many_bytes_are_refused() -> None:
    with pytest.raises(SizeLimitError, match=str(MAX_IMAGE_BYTES)):
        decode_image(b"\xff" * (MAX_IMAGE_BYTES + 1), "jpeg")


def test_an_animation_is_refused() -> None:
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 200)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match="2 frames"):
        decode_image(buffer.getvalue(), "webp")


def test_a_format_that_is_not_listed_is_refused() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "GIF")
    with pytest.raises(ImageError, match="jpeg, webp or png"):
        decode_image(buffer.getvalue())
    with pytest.raises(ImageError, match="gif"):
        decode_image(buffer.getvalue(), "gif")


def test_grey_and_transparent_pictures_become_rgb() -> None:
    for mode in ("L", "LA", "RGBA", "P"):
        buffer = io.BytesIO()
        Image.new(mode, (6, 4)).save(buffer, "PNG")
        assert decode_image(buffer.getvalue()).shape == (4, 6, 3)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_an_array_that_is_no_picture_is_refused(image: NDArray[Any]) -> None:
    with pytest.raises(ImageError, match=r"uint8 array \[H, W, 3\]"):
        encode_image(image, "png")


def test_an_unknown_codec_is_refused() -> None:
    with pytest.raises(ImageError, match="'bmp'"):
        encode_image(np.zeros((4, 4, 3), np.uint8), "bmp")
    with pytest.raises(ImageError, match="'bmp'"):
        decode_image(b"BM", "bmp")


def test_the_default_coding_follows_the_size() -> None:
    sizes = (32, 32), (64, 64), (64, 65), (1080, 1920)
    small, large = read_coding(SMALL, 8, 8), read_coding(LARGE, 99, 99)
    assert [read_coding("auto", *size) for size in sizes] == [small, small, large, large]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("png", Coding("png")), ("jpeg", Coding("jpeg", 90)), ("webp-7", Coding("webp", 7)),
        ("jpeg-85-444", Coding("jpeg", 85, full_colour=True)), ("raw@16", Coding("raw", max_side_px=16)),
        ("jpeg-100@224", Coding("jpeg", 100, max_side_px=224)),
    ],
)  # fmt: skip
def test_codings_are_read(text: str, expected: Coding) -> None:
    assert read_coding(text, 8, 8) == expected
    assert UplinkConfig(image_coding=text)


@pytest.mark.parametrize(
    "text", ["", "bmp", "png-90", "webp-80-444", "jpeg-0", "jpeg-101", "png@0", "jpeg-80@", "png\n"]
)
def test_what_is_no_coding_is_refused_here_and_in_the_configuration(text: str) -> None:
    with pytest.raises(ImageError, match="expected a coding"):
        read_coding(text, 8, 8)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"image_coding": text}, UplinkConfig)


def test_scaling_down_keeps_the_shape_and_leaves_small_pictures_alone() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    assert decode_image(encode_image(picture, "png@40")).shape == (30, 40, 3)
    assert decode_image(encode_image(picture[:1], "png@2")).shape == (1, 2, 3)
    np.testing.assert_array_equal(decode_image(encode_image(picture, "png@80")), picture)


def test_noise_that_outgrows_the_codecs_buffer_is_encoded_all_the_same() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    assert decode_image(encode_image(noise, "jpeg-94-444")).shape == noise.shape


def test_full_colour_is_closer_on_saturated_pictures() -> None:
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::2, 0] = stripes[:, 1::2, 2] = 255
    error = [
        np.abs(decode_image(encode_image(stripes, c)).astype(int) - stripes).mean() for c in ("jpeg-90", "jpeg-90-444")
    ]
    assert error[1] < error[0] / 4


def test_a_better_quality_is_closer() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    error = [np.abs(decode_image(encode_image(picture, f"jpeg-{q}")).astype(int) - picture).mean() for q in (50, 95)]
    assert error[1] < error[0]
