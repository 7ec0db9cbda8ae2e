"""Random views of a batch, for the methods that teach themselves on them: ``cotta`` and ``rotta``.

Colour, place, sharpness, mirror and noise with the strengths of Wang et al. (CVPR 2022, released code), which Yuan
et al. (CVPR 2023) use as well. Input and output are what the model eats: normalised pixels; in between they are 0..1.
"""

from __future__ import annotations

import math
from typing import Annotated

import msgspec
import torch
from msgspec import Meta
from torch.nn import functional

from cema.wire.messages import Preprocess

Channels = tuple[float, float, float]
Strength = Annotated[float, Meta(ge=0, lt=1)]

_DEFAULT = Preprocess(size=(1, 1))
PIXEL_MEAN: Channels = (_DEFAULT.mean[0], _DEFAULT.mean[1], _DEFAULT.mean[2])
PIXEL_STD: Channels = (_DEFAULT.std[0], _DEFAULT.std[1], _DEFAULT.std[2])
"""What bundles are normalised by unless they say otherwise; methods have a setting for the others."""
GREY = (0.2989, 0.587, 0.114)
"""Luma of red, green, blue (ITU-R BT.601)."""
_BLUR_TAPS = 5
_BLUR_FLOOR_PX = 0.001
_GAMMA_FLOOR = 1e-8
"""Of a pixel before the power: 0 ** gamma has no finite gradient."""


class AugmentStrength(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far a view may be from its picture; every draw is uniform. The released values of CoTTA."""

    brightness: Strength = 0.4  # factor 1 +- this
    contrast: Strength = 0.3  # factor 1 +- this, about the picture's mean luma
    saturation: Strength = 0.5  # factor 1 +- this, about each pixel's luma
    hue: Annotated[float, Meta(ge=0, le=0.5)] = 0.06  # turns, +- this
    gamma: Strength = 0.3  # exponent 1 +- this
    rotation: Annotated[float, Meta(ge=0, le=180)] = 15.0  # degrees, +- this
    shift: Strength = 0.125  # of the side, +- this (1/16 of the side that the authors padded to twice its length)
    scale: Strength = 0.1  # factor 1 +- this
    blur: Annotated[float, Meta(ge=0, le=2)] = 0.5  # standard deviation in px, 0.001 to this; 0 = none
    mirror: Annotated[float, Meta(ge=0, le=1)] = 0.5  # probability of left and right exchanged
    noise: Strength = 0.005  # standard deviation of Gaussian noise per pixel


class Augment:
    """One call, one view: a single draw serves the whole batch, noise aside, as in the authors' code."""

    def __init__(
        self,
        generator: torch.Generator,
        mean: Channels = PIXEL_MEAN,
        std: Channels = PIXEL_STD,
        strength: AugmentStrength | None = None,
    ) -> None:
        self.generator = generator
        self.mean, self.std = mean, std
        self.strength = strength or AugmentStrength()

    @torch.no_grad()
    def __call__(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """A view of normalised pixels float [B, 3, H, W]; colours that no camera can give are clipped."""
        s = self.strength
        mean_CHW = images_BCHW.new_tensor(self.mean).view(-1, 1, 1)
        std_CHW = images_BCHW.new_tensor(self.std).view(-1, 1, 1)
        view_BCHW = self._jitter((images_BCHW * std_CHW + mean_CHW).clamp(0, 1))
        degrees, factor = self._around(0, s.rotation), self._around(1, s.scale)
        view_BCHW = move(view_BCHW, degrees, factor, (self._around(0, s.shift), self._around(0, s.shift)))
        if s.blur:
            view_BCHW = blur(view_BCHW, _BLUR_FLOOR_PX + (s.blur - _BLUR_FLOOR_PX) * self._uniform())
        if self._uniform() < s.mirror:
            view_BCHW = view_BCHW.flip(3)
        noise_BCHW = torch.randn(view_BCHW.shape, generator=self.generator, dtype=view_BCHW.dtype)
        return ((view_BCHW + s.noise * noise_BCHW).clamp(0, 1) - mean_CHW) / std_CHW

    def _jitter(self, view_BCHW: torch.Tensor) -> torch.Tensor:
        """Five changes of colour in random order."""
        s = self.strength
        for step in torch.randperm(5, generator=self.generator).tolist():
            if step == 0:
                view_BCHW = (view_BCHW * self._around(1, s.brightness)).clamp(0, 1)
            elif step == 1:
                view_BCHW = blend(view_BCHW, grey(view_BCHW).mean((2, 3), keepdim=True), self._around(1, s.contrast))
            elif step == 2:
                view_BCHW = blend(view_BCHW, grey(view_BCHW), self._around(1, s.saturation))
            elif step == 3:
                view_BCHW = turn_hue(view_BCHW, self._around(0, s.hue))
            else:
                view_BCHW = view_BCHW.clamp_min(_GAMMA_FLOOR) ** self._around(1, s.gamma)
        return view_BCHW

    def _around(self, centre: float, reach: float) -> float:
        return centre + reach * (2 * self._uniform() - 1)

    def _uniform(self) -> float:
        return float(torch.rand((), generator=self.generator))


def grey(pixels_BCHW: torch.Tensor) -> torch.Tensor:
    """Luma [B, 1, H, W] of red, green, blue."""
    return (pixels_BCHW * pixels_BCHW.new_tensor(GREY).view(-1, 1, 1)).sum(1, keepdim=True)


def blend(pixels_BCHW: torch.Tensor, base_BCHW: torch.Tensor, factor: float) -> torch.Tensor:
    """``factor`` times the distance from ``base_BCHW`` (which broadcasts), within 0..1."""
    return (base_BCHW + factor * (pixels_BCHW - base_BCHW)).clamp(0, 1)


def turn_hue(pixels_BCHW: torch.Tensor, turns: float) -> torch.Tensor:
    """Hue moved round the HSV circle, value and saturation kept; pixels 0..1."""
    red, green, blue = pixels_BCHW.unbind(1)
    value = pixels_BCHW.amax(1)
    chroma = value - pixels_BCHW.amin(1)
    safe = torch.where(chroma > 0, chroma, 1)
    sixths = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    corners = [(corner + sixths + 6 * turns) % 6 for corner in (5, 3, 1)]  # red, green, blue
    return torch.stack([value - chroma * torch.minimum(k, 4 - k).clamp(0, 1) for k in corners], 1)


def move(pixels_BCHW: torch.Tensor, degrees: float, factor: float, shift: tuple[float, float]) -> torch.Tensor:
    """Turned about the centre, enlarged by ``factor``, then shifted by parts of (width, height); bilinear.

    What lies outside is the nearest border pixel: the same as padding by the border first.
    """
    height, width = pixels_BCHW.shape[2:]
    cos, sin = math.cos(math.radians(degrees)) / factor, math.sin(math.radians(degrees)) / factor
    # from where in the picture each pixel of the view comes, in half sides: x' = R (x - t) / factor
    rows = [[cos, sin * height / width], [-sin * width / height, cos]]
    t_x, t_y = 2 * shift[0], 2 * shift[1]
    theta_23 = pixels_BCHW.new_tensor([[a, b, -a * t_x - b * t_y] for a, b in rows])
    grid_BHW2 = functional.affine_grid(
        theta_23.expand(len(pixels_BCHW), 2, 3), list(pixels_BCHW.shape), align_corners=False
    )
    return functional.grid_sample(pixels_BCHW, grid_BHW2, padding_mode="border", align_corners=False)


def blur(pixels_BCHW: torch.Tensor, sd_px: float) -> torch.Tensor:
    """Gaussian blur, five taps each way, borders repeated. sd_px > 0."""
    channels = pixels_BCHW.shape[1]
    taps = torch.arange(_BLUR_TAPS, dtype=torch.float64) - _BLUR_TAPS // 2
    kernel = torch.softmax(-((taps / sd_px) ** 2) / 2, 0).to(pixels_BCHW)
    reach = _BLUR_TAPS // 2
    padded = functional.pad(pixels_BCHW, (reach, reach, reach, reach), mode="replicate")
    padded = functional.conv2d(padded, kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
    return functional.conv2d(padded, kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
