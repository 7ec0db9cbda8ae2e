"""Kernels of the corruptions for small pictures: blur, zoom, motion, fractal, frost, light on water.

Pictures are float64 [B, H, W] or [B, H, W, C] in 0..1. Sources: see ``corruptions_small``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib import resources
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse  # type: ignore[import-untyped]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_FROST_SCALE = 0.2  # the photographs of frost are 485 to 900 px wide
_PLASMA_START = 100.0  # amplitude of the first level; only the ratio of levels matters in the end


def blur(x: Floats, sd: float, mode: str = "nearest", truncate: float = 4.0) -> Floats:
    """Gaussian over height and width; sd 0 changes nothing."""
    return np.asarray(ndimage.gaussian_filter(x, (0, sd, sd, 0)[: x.ndim], mode=mode, truncate=truncate))


def zoom_sum(x: Floats, factors: tuple[float, ...]) -> Floats:
    """The middles of [B, H, W, C], enlarged to H x W by each of the factors and added up."""
    batch, height, width, channels = x.shape
    pixels = x.transpose(1, 2, 0, 3).reshape(height * width, batch * channels)
    zoomed = _zoom_operator(height, width, factors) @ pixels
    return np.asarray(zoomed).reshape(height, width, batch, channels).transpose(2, 0, 1, 3)


@cache
def _zoom_operator(height: int, width: int, factors: tuple[float, ...]) -> Any:
    """Sparse [H W, H W]: the zooms of a zoom blur, up to 26, read the same few pixels, so their sum is one operator."""
    return sum(sparse.kron(_zoom_weights(height, f), _zoom_weights(width, f), format="csr") for f in factors)


def _zoom_weights(side: int, factor: float) -> Floats:
    """Linear interpolation along one axis as a matrix [side, side]."""
    inner = int(np.ceil(side / factor))
    top = (side - inner) // 2
    large = ndimage.zoom(np.eye(side)[top : top + inner], (factor, 1), order=1)
    top = (len(large) - side) // 2
    return np.asarray(large[top : top + side])


def motion(x: Floats, radius: int, sd: float, angles_deg: Sequence[float]) -> Floats:
    """ImageMagick's motion blur: one-sided Gaussian of 2 radius + 1 taps along the angle, border pixels repeated."""
    reach, (height, width) = 2 * radius, x.shape[1:3]
    taps = np.arange(reach + 1)
    weights = np.exp(-(taps**2) / (2 * sd**2))
    weights /= weights.sum()
    padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)), "edge")
    result = np.zeros_like(x)
    for index, angle in enumerate(np.deg2rad(angles_deg)):
        # row and column in the padded picture where each tap starts to read
        down, right = (np.ceil(taps * part - 0.5).astype(int) + reach for part in (np.sin(angle), np.cos(angle)))
        for weight, row, column in zip(weights, down, right, strict=True):
            result[index] += weight * padded[index, row : row + height, column : column + width]
    return result


def sample(x: Floats, rows: Floats, columns: Floats, fold: Callable[[Ints, int], Ints]) -> Floats:
    """[B, H, W, C] at fractional places [B, H, W], bilinear; ``fold`` finds the pixel for a place outside."""
    batch, height, width, channels = x.shape
    flat = x.reshape(-1, channels)
    top, left = np.floor(rows), np.floor(columns)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    first = np.arange(batch)[:, None, None] * height
    above, below = ((first + fold(top.astype(np.int64) + step, height)) * width for step in (0, 1))
    before, after = (fold(left.astype(np.int64) + step, width) for step in (0, 1))
    upper = flat.take(above + before, 0) * (1 - right) + flat.take(above + after, 0) * right
    lower = flat.take(below + before, 0) * (1 - right) + flat.take(below + after, 0) * right
    return np.asarray(upper * (1 - down) + lower * down)


def fold_mirror(index: Ints, side: int) -> Ints:
    """... 2 1 | 0 1 2 ...: the border pixel is the mirror."""
    index = np.abs(index) % (2 * side - 2)
    return np.minimum(index, 2 * side - 2 - index)


def fold_reflect(index: Ints, side: int) -> Ints:
    """... 1 0 | 0 1 ...: the mirror is the edge of the border pixel."""
    index = index % (2 * side)
    return np.minimum(index, 2 * side - 1 - index)


@cache
def disk(radius: float, edge_sd: float) -> Floats:
    """A disk of weight 1 whose edge is softened by a 3 x 3 Gaussian, [7, 7] (radii of the table: below 2 px)."""
    y, x = np.mgrid[-3:4, -3:4]
    disk = (x**2 + y**2 <= radius**2).astype(np.float64)
    taps = np.exp(-np.array([1, 0, 1]) / (2 * edge_sd**2))
    taps /= taps.sum()
    return np.asarray(ndimage.convolve(disk / disk.sum(), np.outer(taps, taps), mode="constant"))


@cache
def frost_layer(name: str, height: int, width: int) -> Floats:
    """A photograph of frost, reduced, but not below height x width: float64 [h, w, 3] RGB in 0..1."""
    data = (resources.files("imagecorruptions") / "frost" / name).read_bytes()
    ice = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert ice is not None
    scale = max(_FROST_SCALE, height / ice.shape[0], width / ice.shape[1])
    return np.asarray(cv2.resize(ice, (0, 0), fx=scale, fy=scale), np.float64) / 255


def plasma_draws(side: int) -> int:
    """How many numbers of 0..1 a fractal of that side takes: three per corner of each level."""
    step = _power_of_two(side)
    return step**2 - 1


def plasma(draws: Floats, side: int, decay: float) -> Floats:
    """Diamond-square fractals on a torus, each 0..1, [B, n, n] with n the power of two from ``side`` up.

    draws: uniform in 0..1, [B, plasma_draws(side)]. Each new point is the mean of its four neighbours plus a uniform
    draw whose range shrinks from level to level.
    """
    step, amplitude, used = _power_of_two(side), _PLASMA_START, 0
    field = np.zeros((len(draws), step, step))
    while step >= 2:
        half, spread = step // 2, amplitude**2
        corners = field[:, ::step, ::step]
        count = corners[0].size
        fresh = 2 * spread * draws[:, used : used + 3 * count].reshape(-1, 3, *corners.shape[1:]) - spread
        pairs = corners + np.roll(corners, -1, 1)
        centres = (pairs + np.roll(pairs, -1, 2)) / 4 + fresh[:, 0]
        field[:, half::step, half::step] = centres
        beside = corners + np.roll(corners, -1, 2) + centres + np.roll(centres, 1, 1)
        field[:, ::step, half::step] = beside / 4 + fresh[:, 1]
        below = corners + np.roll(corners, -1, 1) + centres + np.roll(centres, 1, 2)
        field[:, half::step, ::step] = below / 4 + fresh[:, 2]
        step, amplitude, used = half, amplitude / decay, used + 3 * count
    field -= field.min((1, 2), keepdims=True)
    return np.asarray(field / field.max((1, 2), keepdims=True))


def _power_of_two(side: int) -> int:
    return 1 << (side - 1).bit_length()


def relief(drops: NDArray[np.uint8]) -> NDArray[np.float32]:
    """How light falls on drops of water: distance from their edges, embossed. uint8 [H, W] -> float32 [H, W]."""
    distance = cv2.distanceTransform(255 - cv2.Canny(drops, 50, 150), cv2.DIST_L2, 5)
    smooth = cv2.blur(np.minimum(distance, 20), (3, 3)).astype(np.uint8)
    light = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], np.float32)
    embossed = cv2.filter2D(cv2.equalizeHist(smooth), cv2.CV_8U, light)
    return np.asarray(cv2.blur(embossed, (3, 3)), np.float32)
