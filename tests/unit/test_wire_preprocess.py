"""From a photograph to the model's input, against plain computations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cema.errors import ImageError
from cema.types import Uint8Array
from cema.wire.image import decode_image, encode_image
from cema.wire.messages import Preprocess
from cema.wire.preprocess import REDUCING_GAP, fit, fit_encoded, normalise, preprocess

PHOTOGRAPH = Preprocess(size=(224, 224), resize_short=256)


def gradient(height: int, width: int) -> Uint8Array:
    """Red rises from left to right, green from top to bottom."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 / (width - 1), y * 255 / (height - 1), np.full((height, width), 40)], -1).astype(np.uint8)


def test_normalise_is_x_over_255_minus_mean_over_std() -> None:
    recipe = Preprocess(size=(4, 5), mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    result = normalise(images, recipe)
    assert (result.shape, result.dtype, result.flags.c_contiguous) == ((3, 3, 4, 5), np.dtype(np.float32), True)
    for b, c, h, w in [(0, 0, 0, 0), (2, 1, 3, 4), (1, 2, 2, 1)]:
        expected = (float(images[b, h, w, c]) / 255 - recipe.mean[c]) / recipe.std[c]
        assert result[b, c, h, w] == pytest.approx(expected, abs=1e-6)


def test_a_picture_of_the_right_size_is_untouched() -> None:
    image = gradient(32, 32)
    assert fit(image, Preprocess(size=(32, 32))) is image


def test_without_resize_short_the_whole_picture_is_stretched() -> None:
    result = fit(gradient(100, 50), Preprocess(size=(10, 20)))
    assert result.shape == (10, 20, 3)
    assert (result[:, 0, 0].max(), result[:, -1, 0].min()) == pytest.approx((5, 249), abs=8)


@pytest.mark.parametrize("shape", [(256, 256), (256, 400), (512, 300), (300, 500), (288, 352), (1000, 260)])
def test_the_centre_crop_is_that_of_resizing_all_first(shape: tuple[int, int]) -> None:
    image = gradient(*shape)
    scale = 256 / min(shape)
    height, width = (round(side * scale) for side in shape)
    large = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    top, left = (height - 224) // 2, (width - 224) // 2
    expected = large[top : top + 224, left : left + 224].astype(int)
    result = fit(image, PHOTOGRAPH)
    assert result.shape == (224, 224, 3)
    assert np.abs(result - expected).max() <= 3  # half a pixel of a gradient of at most 1.2 per pixel, and rounding


def test_the_crop_is_centred() -> None:
    result = fit(gradient(300, 500), PHOTOGRAPH).astype(float)
    assert result[..., 0].mean() == pytest.approx(127.5, abs=1.5)
    assert result[..., 1].mean() == pytest.approx(127.5, abs=1.5)


def test_size_is_height_then_width() -> None:
    assert fit(gradient(300, 300), Preprocess(size=(100, 60), resize_short=128)).shape == (100, 60, 3)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_every_interpolation_gives_the_size(interpolation: str) -> None:
    recipe = Preprocess(size=(8, 8), interpolation=interpolation)
    assert fit(gradient(20, 30), recipe).shape == (8, 8, 3)


def test_photographs_of_different_sizes_become_one_batch() -> None:
    batch = preprocess([gradient(300, 400), gradient(224, 224), gradient(20, 30)], PHOTOGRAPH)
    assert batch.shape == (3, 3, 224, 224)
    alone = preprocess([gradient(300, 400)], PHOTOGRAPH)
    np.testing.assert_array_equal(batch[:1], alone)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8),
    ],
)
def test_an_array_that_is_no_photograph_is_refused(image: NDArray[Any]) -> None:
    with pytest.raises(ImageError, match="uint8 array"):
        preprocess([image], PHOTOGRAPH)


def test_a_large_jpeg_is_decoded_at_reduced_scale_and_looks_the_same() -> None:
    recipe = Preprocess(size=(56, 56), resize_short=64)
    coarse = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    large = np.asarray(Image.fromarray(coarse).resize((1024, 768), Image.Resampling.BICUBIC))
    data = encode_image(large, "jpeg-95")
    assert decode_image(data, short_px=REDUCING_GAP * 64).shape == (192, 256, 3)
    assert decode_image(data, short_px=769).shape == decode_image(data).shape == large.shape
    reduced, full = fit_encoded(data, recipe), fit(decode_image(data), recipe)
    assert reduced.shape == (56, 56, 3)
    assert np.abs(reduced.astype(int) - full).mean() < 2


@pytest.mark.parametrize("codec", ["png", "webp"])
def test_other_codecs_know_no_reduced_scale(codec: str) -> None:
    picture = np.zeros((80, 100, 3), np.uint8)
    assert decode_image(encode_image(picture, codec), codec, short_px=10).shape == picture.shape
