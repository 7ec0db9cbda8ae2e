"""Where the benchmark's pictures come from: data sets by name, or from a function of the user's.

Nothing is downloaded: what is missing is named, with the address to download it from. A new data set is one function
from its path to a ``Dataset`` and one line in ``_LOADERS``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from cema.bench.datasets_cifar import CIFAR10_CLASSES, cifar10, cifar10_c
from cema.bench.datasets_files import existing, in_range, labelled_arrays
from cema.bench.datasets_imagenet import imagenet, imagenet_a, imagenet_a_all, imagenet_c, imagenet_r, imagenet_r_all
from cema.bench.datasets_pictures import PHOTOGRAPH, SUFFIXES, Absent, Dataset, Photographs
from cema.bench.own import load_own
from cema.errors import CemaError, ConfigError, DependencyError

__all__ = ["CIFAR10_CLASSES", "KINDS", "PHOTOGRAPH", "Absent", "Dataset", "Photographs", "load_dataset"]


def load_dataset(kind: str, data: Path | None, limit: int | None = None) -> Dataset:
    """A data set by name.

    kind: ``digits`` (comes with scikit-learn; the part that the embedded models were not trained on) | ``cifar10``
    (DATA/cifar10/test-5000.npz or the official binary version) | ``cifar10-c`` (the official files CORRUPTION.npy) |
    ``imagenet`` (DATA/imagenet/photos and labels.csv) | ``imagenet-c`` (DATA/CORRUPTION/SEVERITY/WNID/*.JPEG) |
    ``imagenet-r``, ``imagenet-a`` (DATA/WNID/*.jpg; with ``-all`` every class of ImageNet may be answered, not only
    theirs) | ``npz`` (the file DATA with ``images`` uint8 [N, H, W, 3] and ``labels`` int64 [N]) | ``folder``
    (DATA/CLASS/*.jpg or png) | ``module:function``, importable or in the current folder: is given DATA, returns a
    ``Dataset``.
    limit: the first so many pictures only.

    Raises
    ------
    ConfigError: unknown kind, missing files or unsuitable content. DependencyError: digits without scikit-learn.
    """
    if kind not in KINDS and ":" not in kind:
        raise ConfigError(f"expected one of the data sets {', '.join(KINDS)} or module:function, got {kind!r}")
    if limit is not None and limit < 1:
        raise ConfigError(f"expected a limit of at least 1 picture, got {limit}")
    if kind == "digits":
        return _digits().head(limit)
    if kind not in KINDS:
        return _custom(kind, data).head(limit)
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


def _npz(data: Path) -> Dataset:
    path = existing(data, "numpy.savez(path, images=uint8 [N, H, W, 3], labels=int64 [N])")
    images, labels = labelled_arrays(path)
    count = int(labels.max()) + 1
    return Dataset(data.stem, images, in_range(labels, count, path), [str(index) for index in range(count)])


def _folder(data: Path) -> Dataset:
    if not data.is_dir():
        raise ConfigError(f"expected a folder with one folder per class at {data}, there is none")
    classes = sorted(entry.name for entry in data.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    found = sorted(  # the first of each class, then the second of each: a limit keeps a share of every class
        (rank, label, path)
        for label, name in enumerate(classes)
        for rank, path in enumerate(sorted(p for p in (data / name).iterdir() if p.suffix.lower() in SUFFIXES))
    )
    if not found:
        raise ConfigError(f"expected pictures ({', '.join(SUFFIXES)}) in {data}/CLASS/, got none")
    labels = np.array([label for _, label, _ in found], np.int64)
    return Dataset(data.absolute().name, Photographs([path for _, _, path in found]), labels, classes)


def _custom(kind: str, data: Path | None) -> Dataset:
    function = load_own(kind)
    if not callable(function):
        raise ConfigError(f"expected {kind} to be a function of the path, got {type(function).__name__}")
    try:
        dataset = function(data)
    except CemaError:
        raise
    except Exception as error:
        raise ConfigError(f"{kind} failed: {type(error).__name__}: {error}") from error
    if not isinstance(dataset, Dataset):
        raise ConfigError(f"expected {kind} to return a cema.bench.datasets.Dataset, got {type(dataset).__name__}")
    return _checked(dataset, kind)


def _checked(dataset: Dataset, kind: str) -> Dataset:
    """A data set of the user's, labels as int64."""
    images, labels = dataset.images, np.asarray(dataset.labels)
    if len(images) != len(labels):
        raise ConfigError(f"expected {kind} to return a label per picture, got {len(labels)} for {len(images)}")
    if not len(labels):
        raise ConfigError(f"expected {kind} to return at least one picture, got none")
    if labels.dtype.kind not in "iu" or labels.ndim != 1 or labels.min() < 0:
        raise ConfigError(f"expected {kind} to return labels as int64 [N] from 0, got {labels.dtype} {[*labels.shape]}")
    if isinstance(images, np.ndarray) and (images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3):
        raise ConfigError(
            f"expected {kind} to return pictures as uint8 [N, H, W, 3], got {images.dtype} {[*images.shape]}"
        )
    return replace(dataset, labels=labels.astype(np.int64))


_LOADERS: dict[str, Callable[[Path], Dataset]] = {
    "cifar10": cifar10,
    "cifar10-c": cifar10_c,
    "imagenet": imagenet,
    "imagenet-c": imagenet_c,
    "imagenet-r": imagenet_r,
    "imagenet-r-all": imagenet_r_all,
    "imagenet-a": imagenet_a,
    "imagenet-a-all": imagenet_a_all,
    "npz": _npz,
    "folder": _folder,
}
KINDS = ("digits", *_LOADERS)
