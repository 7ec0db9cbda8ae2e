"""What is measured of a stream: plain functions from what happened to one number.

The runner turns predictions into a ``Row`` with these; the summary and the report turn rows into tables.
Accuracies, errors and confidences are 0..1 throughout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cema.bench.corruptions import COMMON, SEVERITIES
from cema.errors import ConfigError

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64] | NDArray[np.float32]

ECE_BINS = 15
"""Bins of equal width of the calibration error (Guo et al., ICML 2017, section 5)."""
IMAGENET_C = "imagenet-c"
"""The only data set that AlexNet's errors below belong to."""
ALEXNET_ERROR = {
    "gaussian_noise": 0.886428, "shot_noise": 0.894468, "impulse_noise": 0.922640, "defocus_blur": 0.819880,
    "glass_blur": 0.826268, "motion_blur": 0.785948, "zoom_blur": 0.798360, "snow": 0.866816, "frost": 0.826572,
    "fog": 0.819324, "brightness": 0.564592, "contrast": 0.853204, "elastic_transform": 0.646056,
    "pixelate": 0.717840, "jpeg_compression": 0.606500,
}  # fmt: skip
"""Error of AlexNet on ImageNet-C, mean of the five severities, as published (Hendrycks & Dietterich, ICLR 2019)."""
_MS_PER_S = 1000.0
_PER_CENT = 100.0


def accuracy(correct_N: BoolArray) -> float:
    """Share of right answers. Raises ConfigError when there are none to judge."""
    _expect_some(len(correct_N), "answers")
    return float(np.mean(correct_N))


def accuracy_second_half(correct_N: BoolArray) -> float:
    """Of the stream's second half, in stream order: after a method has had time to adapt."""
    return accuracy(correct_N[len(correct_N) // 2 :])


def expected_calibration_error(confidence_N: FloatArray, correct_N: BoolArray, bins: int = ECE_BINS) -> float:
    """How far confidence is from accuracy (Eq. 3 of Guo et al., ICML 2017): mean gap of the bins, by their size.

    confidence_N: probability of the predicted class. Bin m of M is ((m - 1) / M, m / M]; 0 belongs to the first.

    >>> expected_calibration_error(np.array([0.9, 0.9]), np.array([True, False]))
    0.4
    """
    _expect_some(len(correct_N), "answers")
    confidence = np.asarray(confidence_N, np.float64)
    if len(confidence) != len(correct_N) or not bool(((confidence >= 0) & (confidence <= 1)).all()):
        raise ConfigError(
            f"expected one confidence in 0..1 for each of {len(correct_N)} answers, got {len(confidence)} values, "
            f"{int(((confidence >= 0) & (confidence <= 1)).sum())} of them in 0..1"
        )
    bin_N = np.searchsorted(np.arange(1, bins) / bins, confidence, side="left")
    gap_M = np.bincount(bin_N, weights=confidence - np.asarray(correct_N, np.float64), minlength=bins)
    return float(np.abs(gap_M).sum() / len(correct_N))


def curve(correct_N: BoolArray, window: int) -> list[float]:
    """Accuracy of each ``window`` images in stream order; the last window may be shorter."""
    if window < 1:
        raise ConfigError(f"expected a window of 1 image or more, got {window}")
    return [float(np.mean(correct_N[start : start + window])) for start in range(0, len(correct_N), window)]


def mean_error(error_of: Mapping[str, float]) -> float:
    """Plain mean over the corruptions: what is reported where AlexNet's errors do not apply."""
    _expect_some(len(error_of), "corruptions")
    return float(np.mean(list(error_of.values())))


def mce(error_of: Mapping[tuple[str, int], float]) -> float:
    """Mean corruption error (Hendrycks & Dietterich, ICLR 2019, section 4.1), 1.0 = as AlexNet.

    error_of: by (corruption, severity); the 15 corruptions at all 5 severities, others are ignored. Because the mean
    over severities is what is normalised, fewer severities would give a number that cannot be compared with any other.
    For ImageNet-C alone. Raises ConfigError when cells are missing.
    """
    missing = [f"{name} {severity}" for name in COMMON for severity in SEVERITIES if (name, severity) not in error_of]
    if missing:
        raise ConfigError(
            f"expected the errors of {len(COMMON)} corruptions at {len(SEVERITIES)} severities for mCE, "
            f"got none of {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}",
            hint="use the mean error",
        )
    relative = [np.mean([error_of[name, s] for s in SEVERITIES]) / ALEXNET_ERROR[name] for name in COMMON]
    return float(np.mean(relative))


def worst_corruption(accuracy_of: Mapping[str, float]) -> tuple[str, float]:
    """(name, accuracy) of the lowest accuracy; of equals, the first."""
    _expect_some(len(accuracy_of), "corruptions")
    name = min(accuracy_of, key=lambda key: accuracy_of[key])
    return name, accuracy_of[name]


def bytes_per_recovered_point(size_bytes: float, accuracy: float, source_accuracy: float) -> float | None:
    """What one percentage point above the unadapted model costs in traffic; None when nothing was recovered.

    size_bytes: up and down, of the stream that the accuracies are of.
    """
    points = _PER_CENT * (accuracy - source_accuracy)
    return size_bytes / points if points > 0 else None


def percentiles(batch_s: Sequence[float], batch_images: Sequence[int]) -> tuple[float, float]:
    """(p50, p99) in ms per image, where an image takes its batch's time / the batch's images."""
    _expect_some(len(batch_s), "batches")
    if len(batch_s) != len(batch_images) or min(batch_images) < 1:
        raise ConfigError(f"expected the images (1 or more) of each of {len(batch_s)} batches, got {batch_images!r}")
    per_image_ms = _MS_PER_S * np.asarray(batch_s) / np.asarray(batch_images)
    p50, p99 = np.percentile(per_image_ms, [50, 99])
    return float(p50), float(p99)


def _expect_some(count: int, what: str) -> None:
    if count == 0:
        raise ConfigError(f"expected at least one of the {what} to measure, got none")
