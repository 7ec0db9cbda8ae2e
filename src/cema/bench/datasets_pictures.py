"""What a data set is to the benchmark: labelled pictures, and the same pictures under each condition.

Photographs stay on disk until they are asked for, and come at the model's resolution, so that a corruption is applied
there, as ImageNet-C does. Data sets that come already corrupted hand out their own files instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cema.bench.corruptions import CLEAN, corrupted
from cema.errors import CemaError, ConfigError
from cema.types import Uint8Array
from cema.wire.image import decode_image
from cema.wire.messages import Preprocess
from cema.wire.preprocess import fit

PHOTOGRAPH = Preprocess(size=(224, 224), resize_short=256)
"""Short side 256 px, centre crop of 224 px: the usual evaluation of ImageNet models."""
SUFFIXES = (".jpg", ".jpeg", ".png")


class Photographs(Sequence[Uint8Array]):
    """Image files, decoded and brought to 224 px when they are asked for: uint8 [224, 224, 3] each."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # an index gives a picture, a slice a Photographs
        if isinstance(index, slice):
            return Photographs(self.paths[index])
        path = self.paths[index]
        try:
            return fit(decode_image(path.read_bytes()), PHOTOGRAPH)
        except (OSError, CemaError) as error:
            raise ConfigError(f"expected a readable photograph at {path}: {error}") from error

    def __iter__(self) -> Iterator[Uint8Array]:
        return (self[index] for index in range(len(self)))


class Absent(Sequence[Uint8Array]):
    """The clean pictures of a set that is published without them: asking for one says so.

    size: how many there would be. message, hint: of the ConfigError that is raised then.
    """

    def __init__(self, size: int, message: str, hint: str) -> None:
        self.size, self.message, self.hint = size, message, hint

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # a slice is only fewer of them
        if isinstance(index, slice):
            return Absent(len(range(self.size)[index]), self.message, self.hint)
        raise ConfigError(self.message, hint=self.hint)


Pictures = Uint8Array | Photographs | Absent
"""uint8 [N, H, W, 3], or as many pictures on disk, or none at all."""


@dataclass(frozen=True)
class Dataset:
    """Labelled pictures.

    images: the clean ones, N of them. labels: int64 [N], into classes. mask: bool [K], the classes that count when
    the K outputs of a model are compared; None for all. stored: for sets that come corrupted, (corruption, severity)
    -> their pictures in the order of the labels; None where corruptions are computed. first: position of the first
    label among those.
    """

    name: str
    images: Pictures
    labels: NDArray[np.int64]
    classes: list[str]
    mask: NDArray[np.bool_] | None = None
    stored: Callable[[str, int], Pictures] | None = None
    first: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def head(self, limit: int | None) -> Dataset:
        """The first ``limit`` pictures; all of them for None."""
        return self.part(0, limit)

    def part(self, skip: int, limit: int | None) -> Dataset:
        """``limit`` pictures (None: all) after the first ``skip``. Raises ConfigError if none are left."""
        if not len(self):
            raise ConfigError(f"expected at least one picture in {self.name}, got none")
        if skip >= len(self):
            raise ConfigError(f"expected to skip fewer than the {len(self)} pictures of {self.name}, got {skip}")
        images, labels = self.images[skip:][:limit], self.labels[skip:][:limit]
        return replace(self, images=images, labels=labels, first=self.first + skip)

    def condition(
        self, corruption: str, severity: int, seed: int, cache_dir: Path | None = None
    ) -> Uint8Array | Photographs:
        """All pictures under one condition, in the order of the labels: uint8 [N, H, W, 3], or photographs that are
        decoded one by one. With a cache folder an array stays on disk and is read as it is used.

        corruption: an ImageNet-C id, or ``clean`` with any severity. seed and cache_dir: for corruptions that are
        computed (see ``cema.bench.corruptions.corrupted``); a set that comes corrupted has one version of each.

        Raises
        ------
        ConfigError: unknown corruption or severity, files missing or unsuitable. DependencyError: the extra ``bench``
        is missing.
        """
        if corruption == CLEAN:
            return _there(self.images)
        if self.stored is None:
            return corrupted(_there(self.images), corruption, severity, seed, cache_dir)
        return _there(self.stored(corruption, severity)[self.first :][: len(self)])


def _there(pictures: Pictures) -> Uint8Array | Photographs:
    if isinstance(pictures, Absent):
        raise ConfigError(pictures.message, hint=pictures.hint)
    return pictures
