"""CIFAR-10 (Krizhevsky, 2009) and CIFAR-10-C (Hendrycks & Dietterich, ICLR 2019), from the files their authors publish.

CIFAR-10 is read from the binary version: the Python version is pickled, and opening a pickle runs what it contains.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cema.bench.corruptions import COMMON, EXTRA, SEVERITIES
from cema.bench.datasets_files import check_labels, existing, in_range, labelled_arrays, mapped
from cema.bench.datasets_pictures import Absent, Dataset, Pictures
from cema.errors import ConfigError
from cema.types import Uint8Array

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_C_URL = "https://zenodo.org/records/2535967"
_SIDE_PX = 32
_RECORD_BYTES = 1 + 3 * _SIDE_PX**2
"""A label, then the planes red, green and blue, row by row."""
_BINARY = Path("cifar-10-batches-bin", "test_batch.bin")
_PICKLED = Path("cifar-10-batches-py", "test_batch")


def cifar10(data: Path) -> Dataset:
    """The test photographs: DATA/cifar10/test-5000.npz, else the official DATA/cifar-10-batches-bin/test_batch.bin (in
    DATA/cifar10 or as DATA itself too)."""
    path = data / "cifar10" / "test-5000.npz"
    if path.is_file():
        images, labels = labelled_arrays(path)
        return Dataset("cifar10", images, in_range(labels, len(CIFAR10_CLASSES), path), list(CIFAR10_CLASSES))
    binary = _first(data, _BINARY)
    if binary is None:
        raise _missing(data)
    images, labels = _records(binary)
    return Dataset("cifar10", images, labels, list(CIFAR10_CLASSES))


def cifar10_c(data: Path) -> Dataset:
    """DATA/CORRUPTION.npy and labels.npy (in DATA/CIFAR-10-C too). Clean pictures come from the official CIFAR-10 file
    when that is in DATA as well."""
    nested = data / "CIFAR-10-C"
    folder = nested if nested.is_dir() else data
    path = existing(folder / "labels.npy", f"download CIFAR-10-C.tar from {CIFAR10_C_URL} and unpack it")
    found = mapped(path)
    check_labels(path, found.shape, found.dtype)
    if not len(found) or len(found) % len(SEVERITIES):
        raise ConfigError(f"expected the labels of {len(SEVERITIES)} severities in {path}, got {len(found)} labels")
    parts = found.astype(np.int64).reshape(len(SEVERITIES), -1)
    if (parts != parts[0]).any():
        raise ConfigError(f"expected the same labels for each severity in {path}, got others")
    labels = in_range(parts[0], len(CIFAR10_CLASSES), path)
    return Dataset(
        "cifar10-c",
        _clean(data, labels),
        labels,
        list(CIFAR10_CLASSES),
        stored=lambda corruption, severity: _stored(folder, corruption, severity, len(labels)),
    )


def _stored(folder: Path, corruption: str, severity: int, count: int) -> Uint8Array:
    """uint8 [count, 32, 32, 3], left on disk: the severities follow each other in one file per corruption."""
    if corruption not in (*COMMON, *EXTRA) or severity not in SEVERITIES:
        raise ConfigError(f"expected a corruption and a severity of 1 to 5, got {corruption!r} and {severity!r}")
    path = existing(folder / f"{corruption}.npy", f"CIFAR-10-C.tar from {CIFAR10_C_URL} contains it")
    images = mapped(path)
    expected = (len(SEVERITIES) * count, _SIDE_PX, _SIDE_PX, 3)
    if images.dtype != np.uint8 or images.shape != expected:
        raise ConfigError(f"expected images as uint8 {[*expected]} in {path}, got {images.dtype} {[*images.shape]}")
    start = (severity - SEVERITIES[0]) * count
    return images[start : start + count]


def _clean(data: Path, labels: NDArray[np.int64]) -> Pictures:
    binary = _first(data, _BINARY)
    if binary is None:
        return Absent(
            len(labels),
            f"CIFAR-10-C holds no clean pictures, and there are none at {data / _BINARY}",
            f"leave clean out, or download {CIFAR10_URL} and unpack it in {data}",
        )
    images, own = _records(binary)
    if not np.array_equal(own, labels):
        raise ConfigError(f"expected the labels of CIFAR-10-C in {binary}, got others: not the same pictures")
    return images


def _records(path: Path) -> tuple[Uint8Array, NDArray[np.int64]]:
    """images uint8 [N, 32, 32, 3] and labels int64 [N] of a file of the binary version."""
    size_bytes = path.stat().st_size
    if not size_bytes or size_bytes % _RECORD_BYTES:
        raise ConfigError(
            f"expected records of {_RECORD_BYTES} bytes in {path}, got a file of {size_bytes} bytes",
            hint=f"the download may have been cut off; download {CIFAR10_URL} again",
        )
    records = np.fromfile(path, np.uint8).reshape(-1, _RECORD_BYTES)
    labels = in_range(records[:, 0].astype(np.int64), len(CIFAR10_CLASSES), path)
    planes = records[:, 1:].reshape(-1, 3, _SIDE_PX, _SIDE_PX)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels


def _first(data: Path, official: Path) -> Path | None:
    """Where the archive was unpacked: in DATA, in DATA/cifar10, or DATA is its folder."""
    places = (data / official, data / "cifar10" / official, data / official.name)
    return next((place for place in places if place.is_file()), None)


def _missing(data: Path) -> ConfigError:
    message = f"expected a file at {data / _BINARY}, there is none"
    pickled = _first(data, _PICKLED)
    if pickled is not None:
        message += f"; {pickled} is the Python version, which is pickled and never opened"
    return ConfigError(message, hint=f"download the binary version, {CIFAR10_URL}, and unpack it in {data}")
