"""The corruptions of CIFAR-10-C, for pictures below 64 px: constants as published, one function per corruption.

Source of names, constants and procedures: Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations", ICLR 2019 (arXiv 1903.12261), generation script ``make_cifar_c.py`` of the authors'
repository hendrycks/robustness (Apache-2.0). The kernels of ImageNet-C (module ``imagecorruptions``) are made for
224 px and would wipe out a picture of 32.

Each function takes float64 [H, W, 3] in 0..1, the constants of one severity and a generator, and returns the same
shape; the caller clips. ``small_corruption`` finds function and constants by ImageNet-C id.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage  # type: ignore[import-untyped]
from skimage import color

from cema.bench.corruption_kernels import Floats, blur, disk, frost_layer, motion, plasma, relief, sample, zoom

Corruption = Callable[[Floats, Any, np.random.Generator], Floats]

CONSTANTS: dict[str, tuple[Any, ...]] = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),  # sd
    "shot_noise": (500, 250, 100, 75, 50),  # photons at full brightness
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),  # share of the values
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),  # radius, edge sd in px
    "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),  # sd, px, passes
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),  # radius, sd in px
    "zoom_blur": (1.06, 1.11, 1.16, 1.21, 1.26),  # zoom factors 1, 1.01, ... below this
    "snow": (  # flake mean, sd, zoom, threshold, streak radius, streak sd, share of the picture kept
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    "frost": ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),  # weight of picture, of frost
    "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),  # amount, decay of the fractal
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),  # added to V of HSV
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),  # factor
    "elastic_transform": (  # strength, smoothness, corner jitter: fractions of the side
        (0, 0, 0.08),
        (0.05, 0.2, 0.07),
        (0.08, 0.06, 0.06),
        (0.1, 0.04, 0.05),
        (0.1, 0.03, 0.03),
    ),
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),  # scale
    "jpeg_compression": (80, 65, 58, 50, 40),  # quality
    "speckle_noise": (0.06, 0.1, 0.12, 0.16, 0.2),  # sd
    "gaussian_blur": (0.4, 0.6, 0.7, 0.8, 1),  # sd in px
    "spatter": (  # liquid mean, sd, blur, threshold, strength (water) or edge sd (mud), mud?
        (0.62, 0.1, 0.7, 0.7, 0.5, 0),
        (0.65, 0.1, 0.8, 0.7, 0.5, 0),
        (0.65, 0.3, 1, 0.69, 0.5, 0),
        (0.65, 0.1, 0.7, 0.69, 0.6, 1),
        (0.65, 0.1, 0.5, 0.68, 0.6, 1),
    ),
    "saturate": ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),  # factor and shift of S of HSV
}

_WATER_RGB = np.array([175, 238, 238]) / 255  # pale turquoise
_MUD_RGB = np.array([63, 42, 20]) / 255
_MUD_EDGE = 0.8  # thinner mud than this is left out
_GREY = np.array([0.299, 0.587, 0.114])  # luma weights, ITU-R BT.601
_FROST_FILES = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
"""The published draw never takes the sixth."""
_ZOOM_STEP = 0.01


def small_corruption(name: str, severity: int) -> Callable[[Floats, np.random.Generator], Floats]:
    """The corruption of that ImageNet-C id at severity 1 to 5."""
    function, constants = _FUNCTIONS[name], CONSTANTS[name][severity - 1]
    return lambda x, rng: function(x, constants, rng)


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
    return blur(x, sd)


def defocus_blur(x: Floats, lens: tuple[float, float], rng: np.random.Generator) -> Floats:
    return np.asarray(ndimage.convolve(x, disk(*lens)[..., None], mode="mirror"))


def glass_blur(x: Floats, glass: tuple[float, int, int], rng: np.random.Generator) -> Floats:
    """Each pixel takes its value from a neighbour up and to the left: the published exchange of two numpy views in
    fact copies one way, so a pass is a single gather."""
    sd, reach, passes = glass
    x = np.floor(blur(x, sd) * 255)
    rows, columns = np.mgrid[reach + 1 : len(x) - reach + 1, reach + 1 : x.shape[1] - reach + 1]
    for _ in range(passes):
        shift = rng.integers(-reach, reach, size=(2, *rows.shape))
        x[rows, columns] = x[rows + shift[0], columns + shift[1]]
    return blur(x / 255, sd)


def motion_blur(x: Floats, streak: tuple[int, float], rng: np.random.Generator) -> Floats:
    return motion(x, *streak, rng.uniform(-45, 45))


def zoom_blur(x: Floats, stop: float, rng: np.random.Generator) -> Floats:
    factors = np.arange(1, stop, _ZOOM_STEP)
    return np.asarray((x + sum(zoom(x, factor) for factor in factors)) / (len(factors) + 1))


def fog(x: Floats, haze: tuple[float, float], rng: np.random.Generator) -> Floats:
    amount, decay = haze
    brightest = x.max()
    cloud = plasma(max(x.shape), decay, rng)[: len(x), : x.shape[1], None]
    return np.asarray((x + amount * cloud) * brightest / (brightest + amount))


def frost(x: Floats, mix: tuple[float, float], rng: np.random.Generator) -> Floats:
    ice = frost_layer(_FROST_FILES[rng.integers(len(_FROST_FILES))], x.shape[0], x.shape[1])
    top, left = (rng.integers(have - want + 1) for have, want in zip(ice.shape[:2], x.shape[:2], strict=True))
    return mix[0] * x + mix[1] * ice[top : top + len(x), left : left + x.shape[1]]


def snow(x: Floats, fall: tuple[float, ...], rng: np.random.Generator) -> Floats:
    mean, sd, factor, threshold, radius, streak_sd, keep = fall
    flakes = zoom(rng.normal(mean, sd, (*x.shape[:2], 1)), factor)
    flakes = np.floor(np.clip(np.where(flakes < threshold, 0, flakes), 0, 1) * 255) / 255
    flakes = motion(flakes, int(radius), streak_sd, rng.uniform(-135, -45))
    pale = np.maximum(x, (x @ _GREY)[..., None] * 1.5 + 0.5)
    return np.asarray(keep * x + (1 - keep) * pale + flakes + flakes[::-1, ::-1])


def spatter(x: Floats, splash: tuple[float, ...], rng: np.random.Generator) -> Floats:
    mean, sd, smoothing, threshold, strength, mud = splash
    liquid = blur(rng.normal(mean, sd, x.shape[:2]), smoothing)
    liquid = np.where(liquid < threshold, 0, liquid)
    if mud:
        cover = blur((liquid > threshold).astype(np.float64), strength)
        cover = np.where(cover < _MUD_EDGE, 0, cover)[..., None]
        return np.asarray(x * (1 - cover) + _MUD_RGB * cover)
    drops = (np.clip(liquid, 0, 1) * 255).astype(np.uint8)
    sheen = drops * relief(drops)
    return np.asarray(x + sheen[..., None] / max(sheen.max(), 1e-9) * strength * _WATER_RGB)


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
    x = sample(x, origin[..., 1], origin[..., 0], "mirror")
    dx, dy = (blur(rng.uniform(-1, 1, (height, width)), sd, "reflect", 3.0) * strength for _ in range(2))
    return sample(x, rows + dy, columns + dx, "reflect")


def pixelate(x: Floats, scale: float, rng: np.random.Generator) -> Floats:
    picture = _picture(x)
    small = picture.resize((int(picture.width * scale), int(picture.height * scale)), Image.Resampling.BOX)
    return np.asarray(small.resize(picture.size, Image.Resampling.BOX)) / 255


def jpeg_compression(x: Floats, quality: int, rng: np.random.Generator) -> Floats:
    buffer = io.BytesIO()
    _picture(x).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer)) / 255


def _picture(x: Floats) -> Image.Image:
    return Image.fromarray(np.rint(x * 255).astype(np.uint8))


_FUNCTIONS: dict[str, Corruption] = {
    function.__name__: function
    for function in (
        gaussian_noise,
        shot_noise,
        impulse_noise,
        defocus_blur,
        glass_blur,
        motion_blur,
        zoom_blur,
        snow,
        frost,
        fog,
        brightness,
        contrast,
        elastic_transform,
        pixelate,
        jpeg_compression,
        speckle_noise,
        gaussian_blur,
        spatter,
        saturate,
    )
}
