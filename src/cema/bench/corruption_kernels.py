"""Kernels of the corruptions for small pictures: blur, zoom, motion, fractal, frost, light on water.

Pictures are float64 [H, W] or [H, W, C] in 0..1. Sources: see ``corruptions_small``.
"""

from __future__ import annotations

from functools import cache
from importlib import resources

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage  # type: ignore[import-untyped]

Floats = NDArray[np.float64]

_FROST_SCALE = 0.2  # the photographs of frost are 485 to 900 px wide
_PLASMA_START = 100.0  # amplitude of the first level; only the ratio of levels matters in the end


def blur(x: Floats, sd: float, mode: str = "nearest", truncate: float = 4.0) -> Floats:
    """Gaussian over height and width; sd 0 changes nothing."""
    return np.asarray(ndimage.gaussian_filter(x, (sd, sd, 0)[: x.ndim], mode=mode, truncate=truncate))


def zoom(x: Floats, factor: float) -> Floats:
    """The middle of [H, W, C], enlarged to H x W."""
    rows, columns = (_zoom_weights(side, factor) for side in x.shape[:2])
    return np.asarray(columns @ np.tensordot(rows, x, 1))


@cache
def _zoom_weights(side: int, factor: float) -> Floats:
    """Linear interpolation along one axis as a matrix [side, side]: a zoom blur needs up to 26 of them per picture."""
    inner = int(np.ceil(side / factor))
    top = (side - inner) // 2
    large = ndimage.zoom(np.eye(side)[top : top + inner], (factor, 1), order=1)
    top = (len(large) - side) // 2
    return np.asarray(large[top : top + side])


def motion(x: Floats, radius: int, sd: float, angle_deg: float) -> Floats:
    """ImageMagick's motion blur: one-sided Gaussian of 2 radius + 1 taps along the angle, border pixels repeated."""
    taps = np.arange(2 * radius + 1)
    weights = np.exp(-(taps**2) / (2 * sd**2))
    angle = np.deg2rad(angle_deg)
    down, right = (np.ceil(taps * part - 0.5).astype(int) for part in (np.sin(angle), np.cos(angle)))
    rows = np.clip(np.arange(x.shape[0]) + down[:, None], 0, x.shape[0] - 1)
    columns = np.clip(np.arange(x.shape[1]) + right[:, None], 0, x.shape[1] - 1)
    return np.asarray(np.tensordot(weights / weights.sum(), x[rows[:, :, None], columns[:, None, :]], 1))


def sample(x: Floats, rows: Floats, columns: Floats, mode: str) -> Floats:
    """[H, W, 3] at fractional places, bilinear."""
    return np.stack([ndimage.map_coordinates(x[..., c], (rows, columns), order=1, mode=mode) for c in range(3)], -1)


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


def plasma(side: int, decay: float, rng: np.random.Generator) -> Floats:
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


def relief(drops: NDArray[np.uint8]) -> NDArray[np.float32]:
    """How light falls on drops of water: distance from their edges, embossed. uint8 [H, W] -> float32 [H, W]."""
    distance = cv2.distanceTransform(255 - cv2.Canny(drops, 50, 150), cv2.DIST_L2, 5)
    smooth = cv2.blur(np.minimum(distance, 20), (3, 3)).astype(np.uint8)
    light = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], np.float32)
    embossed = cv2.filter2D(cv2.equalizeHist(smooth), cv2.CV_8U, light)
    return np.asarray(cv2.blur(embossed, (3, 3)), np.float32)
