"""What the device remembers of its stream: a few recent pictures, balanced over the classes it saw in them.

Statistics of the last pictures alone are those of whatever class passes by; a memory that keeps some of each class is
mixed even when the stream is not (as in RoTTA, Yuan et al., CVPR 2023, whose memory also weighs age and certainty).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import chain, islice, zip_longest
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cema.types import Float32Array, Uint8Array

QUOTA_MIN = 4
"""Pictures of one class that are kept even when there are more classes than places."""
PATCH_PX = 64
"""Side of the middle part that ``pixel_style`` looks at: weather, light and sensor show in any part."""
STYLES = 6
"""Numbers of ``pixel_style``."""
_FLOOR = 1e-3


class Remembered(NamedTuple):
    """picture: fitted, uint8 [H, W, 3]. style: see ``pixel_style``. order: rises with arrival."""

    picture: Uint8Array
    style: Float32Array
    order: int


Labelled = tuple[int, Remembered]
"""With the class that was predicted for it."""


class ClassMemory:
    """At most ``places`` pictures; of one class at most its share of them, the latest. classes: C."""

    def __init__(self, places: int, classes: int) -> None:
        self.places, self.classes = places, classes
        self._rings: dict[int, deque[Remembered]] = {}
        self._quota = max(QUOTA_MIN, round(places / classes))
        self._taken = 0

    def __len__(self) -> int:
        return sum(map(len, self._rings.values()))

    def add(self, pictures: Sequence[Uint8Array], styles: Float32Array, labels: Sequence[int]) -> None:
        """Take in pictures by their predicted class; the oldest of the largest class go when there is no room."""
        for picture, style, label in zip(pictures, styles, labels, strict=True):
            self._rings.setdefault(label, deque(maxlen=self._quota)).append(
                Remembered(picture.copy(), style, self._taken)  # a copy: the rest of its batch need not stay
            )
            self._taken += 1
            self.thin(self.places)

    def drop_latest(self, count: int) -> None:
        """Forget what is among the latest so many pictures taken in."""
        self._keep(range(self._taken - count))

    def keep_latest(self, count: int) -> None:
        """Forget all others."""
        self._keep(range(self._taken - count, self._taken))

    def thin(self, places: int) -> None:
        """Keep so many: the oldest of the largest class go, one after the other."""
        while len(self) > places:
            self._drop_one()

    @property
    def size_bytes(self) -> int:
        """Of the pictures."""
        return sum(each.picture.nbytes for ring in self._rings.values() for each in ring)

    def pictures(self, most: int) -> Uint8Array:
        """uint8 [N, H, W, 3], N <= most: the latest of each class, then the one before of each class, and so on; of
        more classes than that, those that were seen last."""
        rings = [ring for ring in self._rings.values() if ring]
        if len(rings) > most:
            rings.sort(key=lambda ring: ring[-1].order, reverse=True)
        rounds = zip_longest(*(reversed(ring) for ring in rings))
        return np.stack([each.picture for each in islice(filter(None, chain(*rounds)), most)])

    def labelled(self) -> list[Labelled]:
        """All, oldest first."""
        found = [(label, each) for label, ring in self._rings.items() for each in ring]
        return sorted(found, key=lambda pair: pair[1].order)

    def styles(self, but_latest: int = 0) -> Float32Array:
        """Of all pictures but those that are among the latest so many taken in, float32 [N, S]."""
        before = self._taken - but_latest
        found = [each.style for each in chain(*self._rings.values()) if each.order < before]
        return np.array(found, np.float32).reshape(len(found), STYLES)

    def counts(self) -> NDArray[np.int64]:
        """Pictures of each class that has some."""
        return np.array([len(ring) for ring in self._rings.values() if ring], np.int64)

    def copy(self) -> ClassMemory:
        """With the same pictures, to be changed on its own."""
        other = ClassMemory(self.places, self.classes)
        other._rings = {label: ring.copy() for label, ring in self._rings.items()}
        other._taken = self._taken
        return other

    def _keep(self, orders: range) -> None:
        kept = {label: [each for each in ring if each.order in orders] for label, ring in self._rings.items()}
        self._rings = {label: deque(ring, maxlen=self._quota) for label, ring in kept.items() if ring}

    def _drop_one(self) -> None:
        largest = max(self._rings.values(), key=lambda ring: (len(ring), -ring[0].order))
        largest.popleft()
        if not largest:
            self._rings = {label: ring for label, ring in self._rings.items() if ring}


def pixel_style(images_BHWC: Uint8Array) -> Float32Array:
    """How pictures look, whatever is in them, float32 [B, 6]: mean brightness, and the logarithms of contrast,
    gradient, Laplacian, Laplacian over gradient, and colour, all of the middle ``PATCH_PX`` of uint8 [B, H, W, 3]."""
    patch_BHWC = _middle(images_BHWC)
    red, green, blue = (patch_BHWC[..., channel].astype(np.float32) for channel in range(3))
    grey = (red + green + blue) * np.float32(1 / (3 * 255))
    apart = np.square(red - green) + np.square(green - blue) + np.square(blue - red)  # nine times their variance
    brightness_B, colour_B = _mean(grey), _mean(np.sqrt(apart)) / (3 * 255) + _FLOOR
    contrast_B = np.sqrt(_mean(np.square(grey - brightness_B[:, None, None]))) + _FLOOR
    across, down = np.abs(np.diff(grey, axis=2)), np.abs(np.diff(grey, axis=1))
    around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    gradient_B = (_mean(across) + _mean(down)) / 2 + _FLOOR
    laplacian_B = _mean(np.abs(4 * grey[:, 1:-1, 1:-1] - around)) + _FLOOR
    looks = contrast_B, gradient_B, laplacian_B, laplacian_B / gradient_B, colour_B
    return np.stack([brightness_B, *map(np.log, looks)], axis=1).astype(np.float32)


def _middle(images_BHWC: Uint8Array) -> Uint8Array:
    height, width = images_BHWC.shape[1:3]
    top, left = max(0, height - PATCH_PX) // 2, max(0, width - PATCH_PX) // 2
    return images_BHWC[:, top : top + PATCH_PX, left : left + PATCH_PX]


def _mean(values_BHW: Float32Array) -> Float32Array:
    """Per picture; 0 for one too small to have any."""
    count = len(values_BHW)
    return values_BHW.reshape(count, -1).mean(axis=1) if values_BHW.size else np.zeros(count, np.float32)
