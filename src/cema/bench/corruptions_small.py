"""The corruptions of CIFAR-10-C, for pictures below 64 px: constants as published, one function per corruption.

Source of names, constants and procedures: Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations", ICLR 2019 (arXiv 1903.12261), generation script ``make_cifar_c.py`` of the authors'
repository hendrycks/robustness (Apache-2.0). The kernels of ImageNet-C (module ``imagecorruptions``) are made for
224 px and would wipe out a picture of 32.

Each function takes float64 [H, W, 3] in 0..1, the constants of one severity and a generator; it returns the same
shape and range. ``SMALL`` pairs each ImageNet-C id with its function and its constants for severities 1 to 5.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from importlib import resources
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage  # type: ignore[import-untyped]
from skimage import color

Floats = NDArray[np.float64]
Corruption = Callable[[Floats, Any, np.random.Generator], Floats]

SMALL_SIDE_PX = 32
"""The side that lengths in the tables below are given for; elastic_transform scales with it."""
_GREY = np.array([0.299, 0.587, 0.114])  # luma weights, ITU-R BT.601
_FROST_SCALE = 0.2  # the frost photographs are 320 to 900 px wide
_FROST_FILES = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")  # the published draw omits the sixth
_PLASMA_START = 100.0
_WATER_RGB = np.array([175, 238, 238]) / 255  # pale turquoise
_MUD_RGB = np.array([63, 42, 20]) / 255
_ZOOM_STEP = 0.01


def gaussian_noise(x: Floats, sd: float, rng: np.random.Generator) -> Floats:
    return x + rng.normal(scale=sd, size=x.shape)


def shot_noise(x: Floats, photons: float, rng: np.random.Generator) -> Floats:
    return rng.poisson(x * photons) / photons


def impulse_noise(x: Floats, amount: float, rng: np.random.Generator) -> Floats:
    hit, salt = rng.random(x.shape) < amount, rng.random(x.shape) < 0.5
    return np.where(hit, salt.astype(np.float64), x)


def speckle_noise(x: Floats, sd: float, rng: np.random.Generator) -> Floats:
    return x + x * rng.normal(scale=sd, size=x.shape)


def gaussian_blur(x: Floats, sd: float, rng: np.random.Generator) -> Floats:
    return _blur(x, sd)


def defocus_blur(x: Floats, lens: tuple[float, float], rng: np.random.Generator) -> Floats:
    return np.asarray(ndimage.convolve(x, _disk(*lens)[..., None], mode="mirror"))


def glass_blur(x: Floats, glass: tuple[float, int, int], rng: np.random.Generator) -> Floats:
    """Each pixel takes its value from a neighbour up and to the left: the published exchange of two numpy views in
    fact copies one way, so a pass is a single gather."""
    sd, reach, passes = glass
    x = np.floor(_blur(x, sd) * 255)
    rows, columns = np.mgrid[reach + 1 : len(x) - reach + 1, reach + 1 : x.shape[1] - reach + 1]
    for _ in range(passes):
        shift = rng.integers(-reach, reach, size=(2, *rows.shape))
        x[rows, columns] = x[rows + shift[0], columns + shift[1]]
    return _blur(x / 255, sd)


def motion_blur(x: Floats, streak: tuple[int, float], rng: np.random.Generator) -> Floats:
    return _motion(x, *streak, rng.uniform(-45, 45))


def zoom_blur(x: Floats, stop: float, rng: np.random.Generator) -> Floats:
    factors = np.arange(1, stop, _ZOOM_STEP)
    return (x + sum(_zoom(x, factor) for factor in factors)) / (len(factors) + 1)


def fog(x: Floats, haze: tuple[float, float], rng: np.random.Generator) -> Floats:
    amount, decay = haze
    brightest = x.max()
    cloud = _plasma(max(x.shape), decay, rng)[: len(x), : x.shape[1], None]
    return np.asarray((x + amount * cloud) * brightest / (brightest + amount))


def frost(x: Floats, mix: tuple[float, float], rng: np.random.Generator) -> Floats:
    ice = _frost_layer(_FROST_FILES[rng.integers(len(_FROST_FILES))])
    top, left = (rng.integers(have - want + 1) for have, want in zip(ice.shape[:2], x.shape[:2], strict=True))
    return mix[0] * x + mix[1] * ice[top : top + len(x), left : left + x.shape[1]]


def snow(x: Floats, fall: tuple[float, ...], rng: np.random.Generator) -> Floats:
    mean, sd, zoom, threshold, radius, streak_sd, keep = fall
    flakes = _zoom(rng.normal(mean, sd, (*x.shape[:2], 1)), zoom)
    flakes = np.floor(np.clip(np.where(flakes < threshold, 0, flakes), 0, 1) * 255) / 255
    flakes = _motion(flakes, int(radius), streak_sd, rng.uniform(-135, -45))
    pale = np.maximum(x, (x @ _GREY)[..., None] * 1.5 + 0.5)
    return keep * x + (1 - keep) * pale + flakes + flakes[::-1, ::-1]


def spatter(x: Floats, splash: tuple[float, ...], rng: np.random.Generator) -> Floats:
    mean, sd, blur, threshold, strength, mud = splash
    liquid = _blur(rng.normal(mean, sd, x.shape[:2]), blur)
    liquid = np.where(liquid < threshold, 0, liquid)
    if mud:
        cover = _blur((liquid > threshold).astype(np.float64), strength)
        cover = np.where(cover < 0.8, 0, cover)[..., None]
        return x * (1 - cover) + _MUD_RGB * cover
    drops = (np.clip(liquid, 0, 1) * 255).astype(np.uint8)
    sheen = drops * _relief(drops)
    return x + sheen[..., None] / max(sheen.max(), 1e-9) * strength * _WATER_RGB


def contrast(x: Floats, factor: float, rng: np.random.Generator) -> Floats:
    mean = x.mean((0, 1), keepdims=True)
    return np.asarray((x - mean) * factor + mean)


def brightness(x: Floats, shift: float, rng: np.random.Generator) -> Floats:
    hsv = color.rgb2hsv(x)
    hsv[..., 2] = np.clip(hsv[..., 2] + shift, 0, 1)
    return np.asarray(color.hsv2rgb(hsv))


def saturate(x: Floats, change: tuple[float, float], rng: np.random.Generator) -> Floats:
    hsv = color.rgb2hsv(x)
    hsv[..., 1] = np.clip(hsv[..., 1] * change[0] + change[1], 0, 1)
    return np.asarray(color.hsv2rgb(hsv))


def elastic_transform(x: Floats, bend: tuple[float, float, float], rng: np.random.Generator) -> Floats:
    """A random affine map (three corners of a triangle are moved), then a smooth random displacement."""
    strength, sd, jitter = (value * min(x.shape[:2]) for value in bend)
    height, width = x.shape[:2]
    cx, cy, half = height // 2, width // 2, min(height, width) // 3
    corners = np.array([[cx + half, cy + half], [cx + half, cy - half], [cx - half, cy - half]], np.float64)
    moved = corners + rng.uniform(-jitter, jitter, corners.shape)
    back = np.linalg.solve(np.column_stack([moved, np.ones(3)]), corners)  # from a pixel of the result to its origin
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    origin = np.stack([columns, rows, np.ones_like(rows)], -1) @ back
    x = _sample(x, origin[..., 1], origin[..., 0], "mirror")
    dx, dy = (_blur(rng.uniform(-1, 1, (height, width)), sd, "reflect", 3.0) * strength for _ in range(2))
    return _sample(x, rows + dy, columns + dx, "reflect")


def pixelate(x: Floats, scale: float, rng: np.random.Generator) -> Floats:
    picture = _picture(x)
    small = picture.resize((int(picture.width * scale), int(picture.height * scale)), Image.Resampling.BOX)
    return np.asarray(small.resize(picture.size, Image.Resampling.BOX)) / 255


def jpeg_compression(x: Floats, quality: int, rng: np.random.Generator) -> Floats:
    buffer = io.BytesIO()
    _picture(x).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer)) / 255


SMALL: dict[str, tuple[Corruption, tuple[Any, ...]]] = {
    "gaussian_noise": (gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),  # sd
    "shot_noise": (shot_noise, (500, 250, 100, 75, 50)),  # photons at full brightness
    "impulse_noise": (impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),  # share of the values
    "defocus_blur": (defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),  # radius, edge sd in px
    "glass_blur": (glass_blur, ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))),  # sd, px, passes
    "motion_blur": (motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),  # radius, sd in px
    "zoom_blur": (zoom_blur, (1.06, 1.11, 1.16, 1.21, 1.26)),  # zoom factors 1, 1.01, ... below this
    "snow": (
        snow,  # flake mean, sd, zoom, threshold, streak radius, streak sd, share of the picture kept
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    "frost": (frost, ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))),  # weight of picture, of frost
    "fog": (fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),  # amount, decay of the fractal
    "brightness": (brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),  # added to V of HSV
    "contrast": (contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),  # factor
    "elastic_transform": (
        elastic_transform,  # strength, smoothness, corner jitter: fractions of the side
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    ),
    "pixelate": (pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),  # scale
    "jpeg_compression": (jpeg_compression, (80, 65, 58, 50, 40)),  # quality
    "speckle_noise": (speckle_noise, (0.06, 0.1, 0.12, 0.16, 0.2)),  # sd
    "gaussian_blur": (gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1)),  # sd in px
    "spatter": (
        spatter,  # liquid mean, sd, blur, threshold, strength (water) or edge sd (mud), mud?
        (
            (0.62, 0.1, 0.7, 0.7, 0.5, 0),
            (0.65, 0.1, 0.8, 0.7, 0.5, 0),
            (0.65, 0.3, 1, 0.69, 0.5, 0),
            (0.65, 0.1, 0.7, 0.69, 0.6, 1),
            (0.65, 0.1, 0.5, 0.68, 0.6, 1),
        ),
    ),
    "saturate": (saturate, ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))),  # factor and shift of S of HSV
}


def _picture(x: Floats) -> Image.Image:
    return Image.fromarray(np.rint(x * 255).astype(np.uint8))


def _blur(x: Floats, sd: float, mode: str = "nearest", truncate: float = 4.0) -> Floats:
    """Gaussian over height and width; sd 0 changes nothing."""
    return np.asarray(ndimage.gaussian_filter(x, (sd, sd, 0)[: x.ndim], mode=mode, truncate=truncate))


def _zoom(x: Floats, factor: float) -> Floats:
    """The middle of [H, W, C], enlarged to H x W."""
    height, width = x.shape[:2]
    inner = [int(np.ceil(side / factor)) for side in (height, width)]
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    large = ndimage.zoom(x[top : top + inner[0], left : left + inner[1]], (factor, factor, 1), order=1)
    top, left = (large.shape[0] - height) // 2, (large.shape[1] - width) // 2
    return np.asarray(large[top : top + height, left : left + width])


def _motion(x: Floats, radius: int, sd: float, angle_deg: float) -> Floats:
    """ImageMagick's motion blur: one-sided Gaussian of 2 radius + 1 taps along the angle, border pixels repeated."""
    taps = np.arange(2 * radius + 1)
    weights = np.exp(-(taps**2) / (2 * sd**2))
    angle = np.deg2rad(angle_deg)
    down, right = (np.ceil(taps * part - 0.5).astype(int) for part in (np.sin(angle), np.cos(angle)))
    rows = np.clip(np.arange(x.shape[0]) + down[:, None], 0, x.shape[0] - 1)
    columns = np.clip(np.arange(x.shape[1]) + right[:, None], 0, x.shape[1] - 1)
    return np.asarray(np.tensordot(weights / weights.sum(), x[rows[:, :, None], columns[:, None, :]], 1))


def _sample(x: Floats, rows: Floats, columns: Floats, mode: str) -> Floats:
    """[H, W, 3] at fractional places, bilinear."""
    return np.stack([ndimage.map_coordinates(x[..., c], (rows, columns), order=1, mode=mode) for c in range(3)], -1)


@cache
def _disk(radius: float, edge_sd: float) -> Floats:
    """A disk of weight 1 whose edge is softened by a 3 x 3 Gaussian, [7, 7] (radii of the table: below 2 px)."""
    y, x = np.mgrid[-3:4, -3:4]
    disk = (x**2 + y**2 <= radius**2).astype(np.float64)
    taps = np.exp(-np.array([1, 0, 1]) / (2 * edge_sd**2))
    taps /= taps.sum()
    return np.asarray(ndimage.convolve(disk / disk.sum(), np.outer(taps, taps), mode="constant"))


@cache
def _frost_layer(name: str) -> Floats:
    """A photograph of frost, reduced to fit small pictures: float64 [h, w, 3] RGB in 0..1."""
    data = (resources.files("imagecorruptions") / "frost" / name).read_bytes()
    ice = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert ice is not None
    return np.asarray(cv2.resize(ice, (0, 0), fx=_FROST_SCALE, fy=_FROST_SCALE), np.float64) / 255


def _plasma(side: int, decay: float, rng: np.random.Generator) -> Floats:
    """Diamond-square fractal on a torus, 0..1, [n, n] with n the power of two from ``side`` up.

    Each new point is the mean of its four neighbours plus a uniform draw whose range shrinks from level to level.
    """
    step = 1 << (side - 1).bit_length()
    field, amplitude = np.zeros((step, step)), _PLASMA_START
    while step >= 2:
        half, spread = step // 2, amplitude**2
        corners = field[::step, ::step]
        pairs = corners + np.roll(corners, -1, 0)
        centres = (pairs + np.roll(pairs, -1, 1)) / 4 + rng.uniform(-spread, spread, corners.shape)
        field[half::step, half::step] = centres
        beside = corners + np.roll(corners, -1, 1) + centres + np.roll(centres, 1, 0)
        field[::step, half::step] = beside / 4 + rng.uniform(-spread, spread, corners.shape)
        below = corners + np.roll(corners, -1, 0) + centres + np.roll(centres, 1, 1)
        field[half::step, ::step] = below / 4 + rng.uniform(-spread, spread, corners.shape)
        step, amplitude = half, amplitude / decay
    field -= field.min()
    return np.asarray(field / field.max())


def _relief(drops: NDArray[np.uint8]) -> NDArray[np.float32]:
    """How light falls on drops of water: distance from their edges, embossed. uint8 [H, W] -> float32 [H, W]."""
    distance = cv2.distanceTransform(255 - cv2.Canny(drops, 50, 150), cv2.DIST_L2, 5)
    smooth = cv2.blur(np.minimum(distance, 20), (3, 3)).astype(np.uint8)
    light = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], np.float32)
    embossed = cv2.filter2D(cv2.equalizeHist(smooth), cv2.CV_8U, light)
    return np.asarray(cv2.blur(embossed, (3, 3)), np.float32)
