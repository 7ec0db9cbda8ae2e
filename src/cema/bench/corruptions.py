"""The weather of the benchmark: clean pictures in, corrupted pictures out, the same every time.

Names are the ids of ImageNet-C (Hendrycks & Dietterich, ICLR 2019, arXiv 1903.12261). From 64 px on, pictures go
through the maintained library ``imagecorruptions`` (constants of ImageNet-C, made for 224 px); below, through
``corruptions_small`` (constants of CIFAR-10-C). ``corrupt`` is for a batch, ``corrupted`` for a whole data set with a
cache on disk.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np

from cema.errors import ConfigError, DependencyError
from cema.types import Uint8Array

CLEAN = "clean"
COMMON = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
"""The fifteen that mean errors are taken over."""
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
"""The four for choosing a method's numbers."""
NAMES = (CLEAN, *COMMON, *EXTRA)
SEVERITIES = range(1, 6)
LARGE_SIDE_PX = 64
"""From this short side on, the constants of ImageNet-C are used; below, those of CIFAR-10-C."""
SMALLEST_SIDE_PX = 8
"""Below this a picture has nothing left to pixelate or to bend."""
_SEEDED = ("impulse_noise", "glass_blur")
"""These two functions of the library take a seed instead of drawing from numpy's global generator."""
_SEED_LIMIT = 1 << 31
_CACHE_FORMAT = 1
"""Part of the cache's key: raise it when the pixels of any corruption change."""

_CHUNK = 64
"""Pictures computed at once: as float64 at 32 px they fill 1.5 MB, which stays in the processor's cache."""

_LIBRARIES = (
    "imagecorruptions-imaug", "numpy", "opencv-python", "opencv-python-headless", "pillow", "scikit-image", "scipy",
)  # fmt: skip
"""That compute the pixels: another version may compute others."""

Pictures = Sequence[Uint8Array] | Uint8Array
Rngs = Sequence[np.random.Generator]
Kernel = Callable[[Uint8Array, Rngs], Uint8Array]
"""Pictures uint8 [B, H, W, 3] and the generator of each -> uint8 [B, H, W, 3]."""


def corrupt(images_BHWC: Uint8Array, name: str, severity: int, rng: np.random.Generator) -> Uint8Array:
    """Corrupt each picture of uint8 [B, H, W, 3]; new array of the same shape. All randomness comes from ``rng``.

    Raises
    ------
    ConfigError: unknown name or severity, or not a batch of pictures. DependencyError: the extra ``bench`` is missing.

    >>> grey = np.full((1, 32, 32, 3), 128, np.uint8)
    >>> int(corrupt(grey, "brightness", 5, np.random.default_rng(0)).min())
    204
    """
    kernel, result = _kernel(images_BHWC, name, severity), np.empty_like(images_BHWC)
    _in_chunks(images_BHWC, kernel, lambda index: rng, result)
    return result


def corrupted(images: Pictures, name: str, severity: int, seed: int, cache_dir: Path | None = None) -> Uint8Array:
    """A whole set: pictures uint8 [H, W, 3] of one size, at least one -> uint8 [N, H, W, 3].

    Picture i draws from its own generator, made from (seed, i, name, severity): the first n pictures of a set are
    corrupted alike whether or not others follow. With ``cache_dir`` the result is kept there, by the hash of all that
    it depends on, and read from disk as it is used (read-only): photographs are never all in memory. Raises as
    ``corrupt``, and ConfigError for a cache that cannot be written.
    """
    shape = (len(images), *np.shape(images[0]))
    if cache_dir is None:
        result = np.empty(shape, np.uint8)
        _corrupt_all(images, name, severity, seed, result)
        return result
    path = cache_dir / f"{name}-{severity}-{_digest(images, shape, name, severity, seed)}.npy"
    try:
        kept = _kept(path, shape)
        return _make(path, shape, images, name, severity, seed) if kept is None else kept
    except OSError as error:
        raise ConfigError(
            f"expected a folder that corrupted pictures can be kept in, got {cache_dir}: {error}", hint="--cache DIR"
        ) from error


def _corrupt_all(images: Pictures, name: str, severity: int, seed: int, result: Uint8Array) -> None:
    key = zlib.crc32(name.encode())
    kernel = _kernel(_stacked(images[:1]), name, severity)
    _in_chunks(images, kernel, lambda index: np.random.default_rng((seed, index, key, severity)), result)


def _in_chunks(
    images: Pictures, kernel: Kernel, rng_of: Callable[[int], np.random.Generator], result: Uint8Array
) -> None:
    """Picture i of the whole with generator ``rng_of(i)``; the size of the chunks does not show in the pixels."""
    for start in range(0, len(images), _CHUNK):
        part = _stacked(images[start : start + _CHUNK])
        result[start : start + _CHUNK] = kernel(part, [rng_of(start + offset) for offset in range(len(part))])


def _stacked(images: Pictures) -> Uint8Array:
    return images if isinstance(images, np.ndarray) else np.stack(list(images))


def _digest(images: Pictures, shape: tuple[int, ...], name: str, severity: int, seed: int) -> str:
    """Of all that corrupted pictures depend on, the libraries that make them included."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(np.ascontiguousarray(image).data)
    digest.update(repr((_CACHE_FORMAT, _versions(), shape, name, severity, seed)).encode())
    return digest.hexdigest()[:32]


@cache
def _versions() -> tuple[str, ...]:
    installed = {each.metadata["Name"].lower(): each.version for each in metadata.distributions()}
    return tuple(installed.get(name, "") for name in _LIBRARIES)


def _kept(path: Path, shape: tuple[int, ...]) -> Uint8Array | None:
    """What an earlier run made; None if there is nothing, or a file that is damaged."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):
        return None
    return np.asarray(found) if found.shape == shape and found.dtype == np.uint8 else None


def _make(path: Path, shape: tuple[int, ...], images: Pictures, name: str, severity: int, seed: int) -> Uint8Array:
    """Chunk by chunk into a file; other processes see the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, suffix=".part")
    os.close(handle)
    try:
        result = np.lib.format.open_memmap(part, "w+", np.uint8, shape)
        _corrupt_all(images, name, severity, seed, result)
        result.flush()
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def _kernel(images_BHWC: Uint8Array, name: str, severity: int) -> Kernel:
    if images_BHWC.dtype != np.uint8 or images_BHWC.ndim != 4 or images_BHWC.shape[3] != 3:
        raise ConfigError(f"expected uint8 pictures [B, H, W, 3], got {images_BHWC.dtype} {[*images_BHWC.shape]}")
    if name not in NAMES:
        raise ConfigError(f"expected a corruption, got {name!r}", hint=f"known: {', '.join(NAMES)}")
    if severity not in SEVERITIES:
        raise ConfigError(f"expected a severity of 1 to 5, got {severity!r}")
    side_px = min(images_BHWC.shape[1:3])
    if side_px < SMALLEST_SIDE_PX:
        raise ConfigError(f"expected pictures of at least {SMALLEST_SIDE_PX} px, got {side_px} px on the short side")
    if name == CLEAN:
        return lambda images, rngs: images
    try:
        return _large(name, severity) if side_px >= LARGE_SIDE_PX else _small(name, severity)
    except ModuleNotFoundError as error:
        raise DependencyError(
            f"corruptions need {error.name}, which is not installed", hint="pip install 'cema[bench]'"
        ) from error


def _small(name: str, severity: int) -> Kernel:
    from cema.bench.corruptions_small import small_corruption

    function = small_corruption(name, severity)

    def kernel(images_BHWC: Uint8Array, rngs: Rngs) -> Uint8Array:
        changed = function(images_BHWC / 255.0, rngs)
        # The published files truncate; the epsilon keeps n / 255 * 255 from becoming n - 1.
        return (np.clip(changed, 0, 1) * 255 + 1e-6).astype(np.uint8)

    return kernel


def _large(name: str, severity: int) -> Kernel:
    import imagecorruptions

    def one(image: Uint8Array, rng: np.random.Generator) -> Uint8Array:
        seed = int(rng.integers(_SEED_LIMIT))
        options = {"seed": seed} if name in _SEEDED else {}
        with _numpy_seeded(seed):
            return np.asarray(imagecorruptions.corrupt(image, severity, name, **options))

    return lambda images_BHWC, rngs: np.stack([one(*each) for each in zip(images_BHWC, rngs, strict=True)])


@contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    """The library draws from numpy's global generator: lend it one, then put the old state back."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)
