"""Arrays from files that may be anything: headers are checked before memory is taken, nothing is ever unpickled."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cema.cloud.npz import array_header
from cema.errors import ConfigError
from cema.types import Uint8Array

_UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    EOFError,
    MemoryError,
    RuntimeError,  # an encrypted archive
    zipfile.BadZipFile,
    zlib.error,
)
_NO_OBJECTS = "arrays of Python objects would need pickle, which is never read"


def existing(path: Path, hint: str) -> Path:
    """The path of a file that is there."""
    if not path.is_file():
        raise ConfigError(f"expected a file at {path}, there is none", hint=hint)
    return path


def labelled_arrays(path: Path) -> tuple[Uint8Array, NDArray[np.int64]]:
    """images uint8 [N, H, W, 3] and labels int64 [N] of an npz file, checked against each other. Raises ConfigError."""
    try:
        with zipfile.ZipFile(path) as archive:
            for name, check in (("images", check_images), ("labels", check_labels)):
                with archive.open(f"{name}.npy") as member:
                    shape, dtype, _ = array_header(member, archive.getinfo(f"{name}.npy").file_size)
                    check(path, shape, dtype)
        with np.load(path, allow_pickle=False) as content:
            images, labels = content["images"], content["labels"]
    except _UNREADABLE as error:
        raise ConfigError(f"expected an npz file with images and labels at {path}: {error}") from error
    if len(labels) != len(images):
        raise ConfigError(f"expected labels as int64 [{len(images)}] in {path}, got {labels.dtype} [{len(labels)}]")
    return images, labels.astype(np.int64)


def mapped(path: Path) -> NDArray[Any]:
    """The array of an npy file, read from disk as it is used. Raises ConfigError."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except _UNREADABLE as error:
        raise ConfigError(f"expected a numpy array at {path}: {error}", hint=_NO_OBJECTS) from error
    if not isinstance(found, np.ndarray):
        raise ConfigError(f"expected a single numpy array (npy) at {path}, got an archive of them")
    return found


def check_images(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or min(shape) < 1:
        raise ConfigError(f"expected images as uint8 [N, H, W, 3] in {path}, got {dtype} {[*shape]}")


def check_labels(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "iu" or len(shape) != 1:
        hint = _NO_OBJECTS if dtype.hasobject else ""
        raise ConfigError(f"expected labels as int64 [N] in {path}, got {dtype} {[*shape]}", hint=hint)


def in_range(labels: NDArray[np.int64], count: int, path: Path) -> NDArray[np.int64]:
    """The labels, if all are classes of 0 to count - 1."""
    if labels.min() < 0 or labels.max() >= count:
        raise ConfigError(f"expected labels of 0 to {count - 1} in {path}, got {labels.min()} to {labels.max()}")
    return labels
