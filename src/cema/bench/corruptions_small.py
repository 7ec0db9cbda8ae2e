"""The corruptions of CIFAR-10-C, for pictures below 64 px: constants as published, one function per corruption.

Source of names, constants and procedures: Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations", ICLR 2019 (arXiv 1903.12261), generation script ``make_cifar_c.py`` of the authors'
repository hendrycks/robustness (Apache-2.0). The kernels of ImageNet-C (module ``imagecorruptions``) are made for
224 px and would wipe out a picture of 32.

Each function takes float64 [B, H, W, 3] in 0..1, the constants of one severity and one generator per picture, and
returns the same shape; the caller clips. A picture makes all its draws before the next one, so that its pixels do not
depend on the batch it is in. ``small_corruption`` finds function and constants by ImageNet-C id.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage  # type: ignore[import-untyped]

from cema.bench.corruption_kernels import (
    Floats,
    blur,
    disk,
    fold_mirror,
    fold_reflect,
    frost_layer,
    motion,
    plasma,
    plasma_draws,
    relief,
    sample,
    zoom_sum,
)
from cema.types import Uint8Array

Rngs = Sequence[np.random.Generator]
Corruption = Callable[[Floats, Any, Rngs], Floats]

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
_RED_PLACE = np.array([0, 1, 1])  # how far each channel of pure red is from the largest to the smallest
_ZOOM_STEP = 0.01


def small_corruption(name: str, severity: int) -> Callable[[Floats, Rngs], Floats]:
    """The corruption of that ImageNet-C id at severity 1 to 5."""
    function, constants = _FUNCTIONS[name], CONSTANTS[name][severity - 1]
    return lambda x, rngs: function(x, constants, rngs)


def gaussian_noise(x: Floats, sd: float, rngs: Rngs) -> Floats:
    return x + np.stack([rng.normal(scale=sd, size=x.shape[1:]) for rng in rngs])


def shot_noise(x: Floats, photons: float, rngs: Rngs) -> Floats:
    return np.stack([rng.poisson(image) for image, rng in zip(x * photons, rngs, strict=True)]) / photons


def impulse_noise(x: Floats, amount: float, rngs: Rngs) -> Floats:
    hit, salt = np.empty(x.shape, bool), np.empty(x.shape, bool)
    for index, rng in enumerate(rngs):
        hit[index], salt[index] = rng.random(x.shape[1:]) < amount, rng.random(x.shape[1:]) < 0.5
    return np.where(hit, salt, x)


def speckle_noise(x: Floats, sd: float, rngs: Rngs) -> Floats:
    return x + x * np.stack([rng.normal(scale=sd, size=x.shape[1:]) for rng in rngs])


def gaussian_blur(x: Floats, sd: float, rngs: Rngs) -> Floats:
    return blur(x, sd)


def defocus_blur(x: Floats, lens: tuple[float, float], rngs: Rngs) -> Floats:
    return np.asarray(ndimage.convolve(x, disk(*lens)[None, ..., None], mode="mirror"))


def glass_blur(x: Floats, glass: tuple[float, int, int], rngs: Rngs) -> Floats:
    """Each pixel takes its value from a neighbour up and to the left: the published exchange of two numpy views in
    fact copies one way, so a pass is a single gather."""
    sd, reach, passes = glass
    x = np.floor(blur(x, sd) * 255)
    batch, height, width, channels = x.shape
    inside = slice(reach + 1, height - reach + 1), slice(reach + 1, width - reach + 1)
    places = np.arange(batch * height * width).reshape(batch, height, width)[:, *inside]
    size = (2, *places.shape[1:])
    shifts = np.stack([[rng.integers(-reach, reach, size) for _ in range(passes)] for rng in rngs])
    for shift in np.moveaxis(shifts, 1, 0):
        x[:, *inside] = x.reshape(-1, channels).take(places + shift[:, 0] * width + shift[:, 1], 0)
    return blur(x / 255, sd)


def motion_blur(x: Floats, streak: tuple[int, float], rngs: Rngs) -> Floats:
    return motion(x, *streak, [rng.uniform(-45, 45) for rng in rngs])


def zoom_blur(x: Floats, stop: float, rngs: Rngs) -> Floats:
    factors = np.arange(1, stop, _ZOOM_STEP)
    return np.asarray((x + zoom_sum(x, tuple(factors.tolist()))) / (len(factors) + 1))


def fog(x: Floats, haze: tuple[float, float], rngs: Rngs) -> Floats:
    amount, decay = haze
    brightest = x.max((1, 2, 3), keepdims=True)
    side = max(x.shape[1:])
    cloud = plasma(np.stack([rng.random(plasma_draws(side)) for rng in rngs]), side, decay)
    cloud = cloud[:, : x.shape[1], : x.shape[2], None]
    return np.asarray((x + amount * cloud) * brightest / (brightest + amount))


def frost(x: Floats, mix: tuple[float, float], rngs: Rngs) -> Floats:
    return mix[0] * x + mix[1] * np.stack([_ice(x.shape[1], x.shape[2], rng) for rng in rngs])


def _ice(height: int, width: int, rng: np.random.Generator) -> Floats:
    ice = frost_layer(_FROST_FILES[rng.integers(len(_FROST_FILES))], height, width)
    top, left = (rng.integers(have - want + 1) for have, want in zip(ice.shape[:2], (height, width), strict=True))
    return np.asarray(ice[top : top + height, left : left + width])


def snow(x: Floats, fall: tuple[float, ...], rngs: Rngs) -> Floats:
    mean, sd, factor, threshold, radius, streak_sd, keep = fall
    draws = [(rng.normal(mean, sd, (*x.shape[1:3], 1)), rng.uniform(-135, -45)) for rng in rngs]
    flakes = zoom_sum(np.stack([flakes for flakes, _ in draws]), (factor,))
    flakes = np.floor(np.clip(np.where(flakes < threshold, 0, flakes), 0, 1) * 255) / 255
    flakes = motion(flakes, int(radius), streak_sd, [angle for _, angle in draws])
    pale = np.maximum(x, (x @ _GREY)[..., None] * 1.5 + 0.5)
    return np.asarray(keep * x + (1 - keep) * pale + flakes + flakes[:, ::-1, ::-1])


def spatter(x: Floats, splash: tuple[float, ...], rngs: Rngs) -> Floats:
    mean, sd, smoothing, threshold, strength, mud = splash
    liquid = blur(np.stack([rng.normal(mean, sd, x.shape[1:3]) for rng in rngs]), smoothing)
    liquid = np.where(liquid < threshold, 0, liquid)
    if mud:
        cover = blur((liquid > threshold).astype(np.float64), strength)
        cover = np.where(cover < _MUD_EDGE, 0, cover)[..., None]
        return np.asarray(x * (1 - cover) + _MUD_RGB * cover)
    drops = (np.clip(liquid, 0, 1) * 255).astype(np.uint8)
    sheen = drops * np.stack([relief(one) for one in drops])
    brightest = np.maximum(sheen.max((1, 2), keepdims=True), 1e-9)
    return np.asarray(x + (sheen / brightest * strength)[..., None] * _WATER_RGB)


def contrast(x: Floats, factor: float, rngs: Rngs) -> Floats:
    mean = x.mean((1, 2), keepdims=True)
    return np.asarray((x - mean) * factor + mean)


def brightness(x: Floats, shift: float, rngs: Rngs) -> Floats:
    """V of HSV is the largest channel; at constant H and S all channels are proportional to it."""
    value = x.max(-1, keepdims=True)
    changed = np.clip(value + shift, 0, 1)
    return np.asarray(np.where(value > 0, x * changed / np.where(value > 0, value, 1), changed))


def saturate(x: Floats, change: tuple[float, float], rngs: Rngs) -> Floats:
    """S of HSV is the share of V by which the smallest channel is below; at constant H and V all channels keep their
    places between the two. Grey has no hue: the published conversion calls it red."""
    value, smallest = x.max(-1, keepdims=True), x.min(-1, keepdims=True)
    depth = value - smallest
    place = np.where(depth > 0, (value - x) / np.where(depth > 0, depth, 1), _RED_PLACE)
    saturation = np.clip(depth / np.where(value > 0, value, 1) * change[0] + change[1], 0, 1)
    return np.asarray(value - value * saturation * place)


def elastic_transform(x: Floats, bend: tuple[float, float, float], rngs: Rngs) -> Floats:
    """A random affine map (three corners of a triangle are moved), then a smooth random displacement."""
    height, width = x.shape[1:3]
    strength, sd, jitter = (value * min(height, width) for value in bend)
    draws = [(rng.uniform(-jitter, jitter, (3, 2)), rng.uniform(-1, 1, (2, height, width))) for rng in rngs]
    cx, cy, half = height // 2, width // 2, min(height, width) // 3
    corners = np.array([[cx + half, cy + half], [cx + half, cy - half], [cx - half, cy - half]], np.float64)
    moved = corners + np.stack([shift for shift, _ in draws])
    # from a pixel of the result to its origin
    back = np.linalg.solve(np.concatenate([moved, np.ones((len(x), 3, 1))], -1), np.broadcast_to(corners, moved.shape))
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    origin = np.stack([columns, rows, np.ones_like(rows)], -1) @ back[:, None]
    x = sample(x, origin[..., 1], origin[..., 0], fold_mirror)
    dx, dy = (blur(np.stack([field[i] for _, field in draws]), sd, "reflect", 3.0) * strength for i in range(2))
    return sample(x, rows + dy, columns + dx, fold_reflect)


def pixelate(x: Floats, scale: float, rngs: Rngs) -> Floats:
    return np.stack([_through_fewer_pixels(picture, scale) for picture in _pictures(x)]) / 255


def _through_fewer_pixels(picture: Image.Image, scale: float) -> Uint8Array:
    small = picture.resize((int(picture.width * scale), int(picture.height * scale)), Image.Resampling.BOX)
    return np.asarray(small.resize(picture.size, Image.Resampling.BOX))


def jpeg_compression(x: Floats, quality: int, rngs: Rngs) -> Floats:
    return np.stack([_through_jpeg(picture, quality) for picture in _pictures(x)]) / 255


def _through_jpeg(picture: Image.Image, quality: int) -> Uint8Array:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def _pictures(x: Floats) -> list[Image.Image]:
    return [Image.fromarray(image) for image in np.rint(x * 255).astype(np.uint8)]


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
