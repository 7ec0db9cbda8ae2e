"""Where the benchmark's pictures come from: handwritten digits, CIFAR-10, ImageNet photographs, a file, a folder.

Nothing is downloaded. Photographs stay on disk until they are asked for, and come at the model's resolution, so that
a corruption is applied there, as ImageNet-C does.
"""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cema.errors import CemaError, ConfigError, DependencyError
from cema.types import Uint8Array
from cema.wire.image import decode_image
from cema.wire.messages import Preprocess
from cema.wire.preprocess import fit

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PHOTOGRAPH = Preprocess(size=(224, 224), resize_short=256)
"""Short side 256 px, centre crop of 224 px: the usual evaluation of ImageNet models."""
_SUFFIXES = (".jpg", ".jpeg", ".png")


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


@dataclass(frozen=True)
class Dataset:
    """Labelled pictures. images: uint8 [N, H, W, 3], or as many pictures on disk. labels: int64 [N], into classes."""

    name: str
    images: Uint8Array | Photographs
    labels: NDArray[np.int64]
    classes: list[str]

    def __len__(self) -> int:
        return len(self.labels)

    def head(self, limit: int | None) -> Dataset:
        """The first ``limit`` pictures; all of them for None."""
        return Dataset(self.name, self.images[:limit], self.labels[:limit], self.classes)


def load_dataset(kind: str, data: Path | None, limit: int | None = None) -> Dataset:
    """A data set by name.

    kind: ``digits`` (comes with scikit-learn; the part that the embedded models were not trained on) | ``cifar10``
    (DATA/cifar10/test-5000.npz) | ``imagenet`` (DATA/imagenet/photos and labels.csv) | ``npz`` (the file DATA with
    ``images`` uint8 [N, H, W, 3] and ``labels`` int64 [N]) | ``folder`` (DATA/CLASS/*.jpg or png).

    Raises
    ------
    ConfigError: unknown kind, missing files or unsuitable content. DependencyError: digits without scikit-learn.
    """
    if kind not in KINDS:
        raise ConfigError(f"expected one of the data sets {', '.join(KINDS)}, got {kind!r}")
    if limit is not None and limit < 1:
        raise ConfigError(f"expected a limit of at least 1 picture, got {limit}")
    if kind == "digits":
        return _digits().head(limit)
    if data is None:
        raise ConfigError(
            f"the data set {kind} needs a path", hint="give --data PATH or set the environment variable CEMA_DATA"
        )
    return _LOADERS[kind](Path(data)).head(limit)


def _digits() -> Dataset:
    try:
        from cema.cloud.models import digits
    except ModuleNotFoundError as error:
        raise DependencyError(
            f"the digits need {error.name}, which is not installed", hint="pip install 'cema[cloud,bench]'"
        ) from error
    images, labels = digits.digit_images()
    stream = digits.split().stream
    return Dataset("digits", images[stream], labels[stream], list(digits.CLASSES))


def _cifar10(data: Path) -> Dataset:
    path = _existing(
        data / "cifar10" / "test-5000.npz",
        "make it from the CIFAR-10 test set (https://www.cs.toronto.edu/~kriz/cifar.html): arrays images, labels",
    )
    images, labels = _arrays(path)
    return Dataset("cifar10", images, _checked(labels, len(CIFAR10_CLASSES), path), list(CIFAR10_CLASSES))


def _npz(data: Path) -> Dataset:
    images, labels = _arrays(_existing(data, "numpy.savez(path, images=uint8 [N, H, W, 3], labels=int64 [N])"))
    count = int(labels.max()) + 1
    return Dataset(data.stem, images, _checked(labels, count, data), [str(index) for index in range(count)])


def _imagenet(data: Path) -> Dataset:
    table = _existing(
        data / "imagenet" / "labels.csv",
        "columns wnid, label, name, beside photos/WNID.jpg, e.g. from github.com/EliSchwartz/imagenet-sample-images",
    )
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        named = {int(row["label"]): row["name"] for row in rows}
        labels = np.array([int(row["label"]) for row in rows], np.int64)
        paths = [table.parent / "photos" / f"{row['wnid']}.jpg" for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"expected rows of wnid, label (a number) and name in {table}: {error!r}") from error
    if not rows:
        raise ConfigError(f"expected at least one photograph in {table}, got none")
    for path in paths:
        _existing(path, f"each row of {table} has a photograph")
    classes = [named.get(index, str(index)) for index in range(1000)]
    return Dataset("imagenet", Photographs(paths), _checked(labels, len(classes), table), classes)


def _folder(data: Path) -> Dataset:
    if not data.is_dir():
        raise ConfigError(f"expected a folder with one folder per class at {data}, there is none")
    classes = sorted(entry.name for entry in data.iterdir() if entry.is_dir())
    found = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((data / name).iterdir())
        if path.suffix.lower() in _SUFFIXES
    ]
    if not found:
        raise ConfigError(f"expected pictures ({', '.join(_SUFFIXES)}) in {data}/CLASS/, got none")
    return Dataset(data.name, Photographs([p for p, _ in found]), np.array([i for _, i in found], np.int64), classes)


def _existing(path: Path, hint: str) -> Path:
    if not path.is_file():
        raise ConfigError(f"expected a file at {path}, there is none", hint=hint)
    return path


def _arrays(path: Path) -> tuple[Uint8Array, NDArray[np.int64]]:
    """images and labels of an npz file, checked against each other; nothing in it is ever unpickled."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            images, labels = content["images"], content["labels"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"expected an npz file with images and labels at {path}: {error}") from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not images.size:
        raise ConfigError(f"expected images as uint8 [N, H, W, 3] in {path}, got {images.dtype} {[*images.shape]}")
    if labels.dtype.kind not in "iu" or labels.shape != (len(images),):
        raise ConfigError(f"expected labels as int64 [{len(images)}] in {path}, got {labels.dtype} {[*labels.shape]}")
    return images, labels.astype(np.int64)


def _checked(labels: NDArray[np.int64], count: int, path: Path) -> NDArray[np.int64]:
    if labels.min() < 0 or labels.max() >= count:
        raise ConfigError(f"expected labels of 0 to {count - 1} in {path}, got {labels.min()} to {labels.max()}")
    return labels


_LOADERS: dict[str, Callable[[Path], Dataset]] = {
    "cifar10": _cifar10,
    "imagenet": _imagenet,
    "npz": _npz,
    "folder": _folder,
}
KINDS = ("digits", *_LOADERS)
