"""The corruptions of small pictures against plain ones: one picture, one step of the published procedure at a time."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage  # type: ignore[import-untyped]
from skimage import color

from cema.bench.corruption_kernels import frost_layer
from cema.bench.corruptions import COMMON, EXTRA, SEVERITIES, corrupt, corrupted
from cema.bench.corruptions_small import CONSTANTS
from cema.types import Uint8Array

Floats = NDArray[np.float64]
Rng = np.random.Generator
SEED = 11
GREY = np.array([0.299, 0.587, 0.114])


def pictures(height: int = 32, width: int = 32) -> Uint8Array:
    """Noise, flat grey, black, white, grey noise, blocks of colour, a gradient: what formulas stumble over."""
    rng = np.random.default_rng(3)
    noise = rng.integers(0, 256, (2, height, width, 3))
    flat = [np.full((height, width, 3), value) for value in (0, 128, 255)]
    grey = np.repeat(rng.integers(0, 256, (height, width, 1)), 3, 2)
    blocks = np.kron(rng.integers(0, 256, (height // 4, width // 4, 3)), np.ones((4, 4, 1), int))
    y, x = np.mgrid[:height, :width]
    gradient = np.stack([255 * x // width, 255 * y // height, 255 * (x + y) // (height + width)], -1)
    return np.stack([*noise, *flat, grey, blocks, gradient]).astype(np.uint8)


def smooth(x: Floats, sd: float, mode: str = "nearest", truncate: float = 4.0) -> Floats:
    planes = [ndimage.gaussian_filter(plane, sd, mode=mode, truncate=truncate) for plane in np.atleast_3d(x).T]
    return np.stack(planes).T.reshape(x.shape)


def enlarged(x: Floats, factor: float) -> Floats:
    height, width = x.shape[:2]
    for axis, side in enumerate((height, width)):
        inner = int(np.ceil(side / factor))
        top = (side - inner) // 2
        x = np.take(x, range(top, top + inner), axis)
    large = ndimage.zoom(x, (factor, factor, 1), order=1)
    top, left = (large.shape[0] - height) // 2, (large.shape[1] - width) // 2
    return np.asarray(large[top : top + height, left : left + width])


def streaked(x: Floats, radius: int, sd: float, angle: float) -> Floats:
    weights = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sd**2))
    total = np.zeros_like(x)
    for tap, weight in enumerate(weights / weights.sum()):
        down, right = (
            int(np.ceil(tap * part - 0.5)) for part in (np.sin(np.deg2rad(angle)), np.cos(np.deg2rad(angle)))
        )
        rows = np.clip(np.arange(len(x)) + down, 0, len(x) - 1)
        columns = np.clip(np.arange(x.shape[1]) + right, 0, x.shape[1] - 1)
        total += weight * x[rows][:, columns]
    return total


def noise(x: Floats, sd: float, rng: Rng) -> Floats:
    return x + rng.normal(scale=sd, size=x.shape)


def speckle(x: Floats, sd: float, rng: Rng) -> Floats:
    return x + x * rng.normal(scale=sd, size=x.shape)


def shot(x: Floats, photons: float, rng: Rng) -> Floats:
    return rng.poisson(x * photons) / photons


def impulse(x: Floats, share: float, rng: Rng) -> Floats:
    hit = rng.random(x.shape) < share
    return np.where(hit, rng.random(x.shape) < 0.5, x)


def gaussian_blur(x: Floats, sd: float, rng: Rng) -> Floats:
    return smooth(x, sd)


def glass(x: Floats, constants: tuple[float, int, int], rng: Rng) -> Floats:
    sd, reach, passes = constants
    x = np.floor(smooth(x, sd) * 255)
    height, width = x.shape[:2]
    for _ in range(passes):
        shift = rng.integers(-reach, reach, (2, height - 2 * reach, width - 2 * reach))
        before = x.copy()
        for row in range(reach + 1, height - reach + 1):
            for column in range(reach + 1, width - reach + 1):
                down, right = shift[:, row - reach - 1, column - reach - 1]
                x[row, column] = before[row + down, column + right]
    return smooth(x / 255, sd)


def motion(x: Floats, constants: tuple[int, float], rng: Rng) -> Floats:
    return streaked(x, *constants, rng.uniform(-45, 45))


def zoom(x: Floats, stop: float, rng: Rng) -> Floats:
    factors = np.arange(1, stop, 0.01)
    return np.asarray((x + sum(enlarged(x, factor) for factor in factors)) / (len(factors) + 1))


def snow(x: Floats, constants: tuple[float, ...], rng: Rng) -> Floats:
    mean, sd, factor, threshold, radius, streak_sd, keep = constants
    flakes = enlarged(rng.normal(mean, sd, (*x.shape[:2], 1)), factor)
    flakes[flakes < threshold] = 0
    flakes = np.floor(np.clip(flakes, 0, 1) * 255) / 255
    flakes = streaked(flakes, int(radius), streak_sd, rng.uniform(-135, -45))
    pale = np.maximum(x, (x * GREY).sum(-1, keepdims=True) * 1.5 + 0.5)
    return np.asarray(keep * x + (1 - keep) * pale + flakes + np.rot90(flakes, 2))


def frost(x: Floats, mix: tuple[float, float], rng: Rng) -> Floats:
    ice = frost_layer(
        ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")[rng.integers(5)], *x.shape[:2]
    )
    top = rng.integers(ice.shape[0] - x.shape[0] + 1)
    left = rng.integers(ice.shape[1] - x.shape[1] + 1)
    return np.asarray(mix[0] * x + mix[1] * ice[top : top + x.shape[0], left : left + x.shape[1]])


def fog(x: Floats, constants: tuple[float, float], rng: Rng) -> Floats:
    amount, decay = constants
    side = step = 1 << (max(x.shape) - 1).bit_length()
    field, spread = np.zeros((side, side)), 100.0
    while step >= 2:
        half = step // 2
        # centres of the squares, then the middles of their upper and of their left sides
        for down, right in ((half, half), (0, half), (half, 0)):
            reach = [(-half, -half), (-half, half), (half, -half), (half, half)]
            if not down or not right:
                reach = [(-half, 0), (half, 0), (0, -half), (0, half)]
            for row in range(down, side, step):
                for column in range(right, side, step):
                    around = [field[(row + y) % side, (column + x) % side] for y, x in reach]
                    field[row, column] = np.mean(around) + rng.uniform(-(spread**2), spread**2)
        step, spread = half, spread / decay
    cloud = (field - field.min()) / (field.max() - field.min())
    return np.asarray((x + amount * cloud[: len(x), : x.shape[1], None]) * x.max() / (x.max() + amount))


def brightness(x: Floats, shift: float, rng: Rng) -> Floats:
    hsv = color.rgb2hsv(x)
    hsv[..., 2] = np.clip(hsv[..., 2] + shift, 0, 1)
    return np.asarray(color.hsv2rgb(hsv))


def saturate(x: Floats, change: tuple[float, float], rng: Rng) -> Floats:
    hsv = color.rgb2hsv(x)
    hsv[..., 1] = np.clip(hsv[..., 1] * change[0] + change[1], 0, 1)
    return np.asarray(color.hsv2rgb(hsv))


def elastic(x: Floats, constants: tuple[float, float, float], rng: Rng) -> Floats:
    height, width = x.shape[:2]
    strength, sd, jitter = (value * min(height, width) for value in constants)
    reach = min(height, width) // 3
    # the published script gives (height, width) to cv2, which reads it as (x, y)
    corners = np.array([[1, 1], [1, -1], [-1, -1]]) * reach + np.array([height // 2, width // 2])
    moved = corners + rng.uniform(-jitter, jitter, (3, 2))
    # x' = a x + b y + c for the three corners, where (x, y) is a place in the result and x' its origin
    back = np.linalg.solve(np.column_stack([moved, np.ones(3)]), corners)
    rows, columns = np.mgrid[:height, :width].astype(float)
    origin = np.stack([columns, rows, np.ones_like(rows)], -1) @ back
    x = np.stack([ndimage.map_coordinates(p.T, origin.T[::-1].swapaxes(1, 2), order=1, mode="mirror") for p in x.T], -1)
    dx, dy = (smooth(rng.uniform(-1, 1, (height, width)), sd, "reflect", 3.0) * strength for _ in range(2))
    return np.stack([ndimage.map_coordinates(p.T, (rows + dy, columns + dx), order=1, mode="reflect") for p in x.T], -1)


PLAIN: dict[str, Callable[..., Floats]] = {
    "gaussian_noise": noise,
    "shot_noise": shot,
    "impulse_noise": impulse,
    "speckle_noise": speckle,
    "gaussian_blur": gaussian_blur,
    "glass_blur": glass,
    "motion_blur": motion,
    "zoom_blur": zoom,
    "snow": snow,
    "frost": frost,
    "fog": fog,
    "brightness": brightness,
    "saturate": saturate,
    "elastic_transform": elastic,
}


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", PLAIN)
def test_a_batch_has_the_pixels_of_the_plain_procedure(name: str, severity: int) -> None:
    images, key = pictures(), zlib.crc32(name.encode())
    expected = np.stack(
        [
            PLAIN[name](image / 255.0, CONSTANTS[name][severity - 1], np.random.default_rng((SEED, i, key, severity)))
            for i, image in enumerate(images)
        ]
    )
    expected = (np.clip(expected, 0, 1) * 255 + 1e-6).astype(np.uint8)
    np.testing.assert_array_equal(corrupted(images, name, severity, SEED), expected)


@pytest.mark.parametrize("name", PLAIN)
def test_pictures_that_are_not_square_and_share_a_generator_have_them_too(name: str) -> None:
    images, rng, plain_rng = pictures(24, 40)[:2], np.random.default_rng(SEED), np.random.default_rng(SEED)
    expected = np.stack([PLAIN[name](image / 255.0, CONSTANTS[name][4], plain_rng) for image in images])
    np.testing.assert_array_equal(
        corrupt(images, name, 5, rng), (np.clip(expected, 0, 1) * 255 + 1e-6).astype(np.uint8)
    )
    assert rng.random() == plain_rng.random()  # no draw more, no draw less


@pytest.mark.parametrize("name", [*COMMON, *EXTRA])
def test_pixels_do_not_depend_on_the_batch(name: str) -> None:
    images, key = np.repeat(pictures(), 9, axis=0), zlib.crc32(name.encode())  # 72: more than are computed at once
    whole = corrupted(images, name, 3, SEED)
    alone = [
        corrupt(image[None], name, 3, np.random.default_rng((SEED, index, key, 3)))[0]
        for index, image in enumerate(images)
    ]
    np.testing.assert_array_equal(whole, np.stack(alone))
    np.testing.assert_array_equal(corrupted(images[:5], name, 3, SEED), whole[:5])
