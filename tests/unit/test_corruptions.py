"""Corruptions: the published strengths, the same pixels every time, nothing left behind."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cema.bench.corruptions import COMMON, EXTRA, NAMES, corrupt, corrupted
from cema.bench.corruptions_small import CONSTANTS
from cema.errors import ConfigError
from cema.types import Uint8Array


def scene(count: int = 1, height: int = 32, width: int = 32) -> Uint8Array:
    """Smooth colours with an edge: something to blur, to compress and to shift."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    planes = [np.stack([x, y, (x > 0.4 + 0.02 * i) * 0.7 + 0.1], -1) for i in range(count)]
    return (np.stack(planes) * 200 + 20).astype(np.uint8)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def change(name: str, severity: int) -> float:
    images = scene(8)
    return float(np.abs(corrupt(images, name, severity, rng()).astype(int) - images).mean())


@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize("name", [*COMMON, *EXTRA])
def test_a_corruption_changes_pixels_and_repeats_itself(name: str, side: int) -> None:
    images = scene(2, side, side)
    before = images.copy()
    for severity in (1, 3, 5):
        result = corrupt(images, name, severity, rng())
        assert result.shape == images.shape
        assert result.dtype == np.uint8
        np.testing.assert_array_equal(result, corrupt(images, name, severity, rng()))
        np.testing.assert_array_equal(images, before)
    assert (result != images).mean() > 0.02  # of severity 5


@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize("name", ["gaussian_noise", "impulse_noise", "glass_blur", "motion_blur", "fog", "snow"])
def test_another_seed_gives_other_pixels(name: str, side: int) -> None:
    images = scene(1, side, side)
    assert (corrupt(images, name, 3, rng(0)) != corrupt(images, name, 3, rng(1))).any()


@pytest.mark.parametrize("name", NAMES)
def test_pictures_need_not_be_square(name: str) -> None:
    for height, width in ((24, 40), (32, 200), (64, 80)):
        assert corrupt(scene(1, height, width), name, 5, rng()).shape == (1, height, width, 3)


@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "contrast", "brightness", "fog", "jpeg_compression"])
def test_severity_grows(name: str) -> None:
    assert change(name, 1) < change(name, 3) < change(name, 5)


def test_clean_is_the_same_pixels() -> None:
    np.testing.assert_array_equal(corrupt(scene(3), "clean", 5, rng()), scene(3))


def test_every_corruption_has_five_published_severities() -> None:
    assert set(CONSTANTS) == {*COMMON, *EXTRA}
    assert {len(values) for values in CONSTANTS.values()} == {5}


def test_gaussian_noise_5_has_standard_deviation_a_tenth() -> None:
    grey = np.full((20, 32, 32, 3), 128, np.uint8)
    noise = corrupt(grey, "gaussian_noise", 5, rng()).astype(float) / 255
    assert noise.std() == pytest.approx(0.10, rel=0.02)
    assert noise.mean() == pytest.approx(128 / 255, abs=0.003)


def test_impulse_noise_5_replaces_seven_per_cent_of_the_values() -> None:
    grey = np.full((20, 32, 32, 3), 128, np.uint8)
    noisy = corrupt(grey, "impulse_noise", 5, rng())
    assert (noisy != 128).mean() == pytest.approx(0.07, abs=0.004)
    assert set(np.unique(noisy)) == {0, 128, 255}


def test_contrast_5_keeps_fifteen_per_cent_around_the_mean_of_each_channel() -> None:
    image = scene()[0].astype(float)
    expected = (image - image.mean((0, 1))) * 0.15 + image.mean((0, 1))
    assert np.abs(corrupt(scene(), "contrast", 5, rng())[0] - expected).max() <= 1


def test_gaussian_blur_5_is_a_gaussian_of_one_pixel() -> None:
    dot = np.zeros((1, 33, 33, 3), np.uint8)
    dot[0, 16, 16] = 255
    weights = np.exp(-(np.arange(-4, 5) ** 2) / 2)
    expected = 255 * np.outer(weights, weights) / weights.sum() ** 2
    assert np.abs(corrupt(dot, "gaussian_blur", 5, rng())[0, 12:21, 12:21, 0] - expected).max() <= 1


def test_jpeg_5_is_quality_40() -> None:
    buffer = io.BytesIO()
    Image.fromarray(scene()[0]).save(buffer, "JPEG", quality=40)
    np.testing.assert_array_equal(corrupt(scene(), "jpeg_compression", 5, rng())[0], np.asarray(Image.open(buffer)))


def test_defocus_keeps_the_light() -> None:
    grey = np.full((1, 32, 32, 3), 200, np.uint8)
    assert np.abs(corrupt(grey, "defocus_blur", 5, rng()).astype(int) - 200).max() <= 1


def test_zoom_blur_keeps_the_middle_in_place() -> None:
    dot = np.zeros((1, 33, 33, 3), np.uint8)
    dot[0, 16, 16] = 255
    light = corrupt(dot, "zoom_blur", 5, rng())[0, ..., 0].astype(float)
    assert light[16, 16] > 30
    assert (light * np.arange(33)).sum() / light.sum() == pytest.approx(16, abs=1)


def test_glass_blur_moves_by_at_most_two_pixels() -> None:
    edge = np.zeros((1, 32, 32, 3), np.uint8)
    edge[:, :, 16:] = 255
    result = corrupt(edge, "glass_blur", 5, rng())[0]
    assert result[:, :14].max() < 5  # two passes of one pixel, and the blur around it
    assert result[:, 20:].min() > 250
    assert ((result[:, 14:20] > 20) & (result[:, 14:20] < 235)).any()


def test_the_global_generator_of_numpy_is_left_alone() -> None:
    np.random.seed(7)
    expected = np.random.random(3)
    np.random.seed(7)
    for name in COMMON:
        corrupt(scene(1, 64, 64), name, 2, rng())
    np.testing.assert_array_equal(np.random.random(3), expected)


def test_the_first_pictures_do_not_depend_on_those_that_follow() -> None:
    images = scene(6)
    for name in ("gaussian_noise", "elastic_transform", "frost"):
        np.testing.assert_array_equal(corrupted(images, name, 3, 5)[:4], corrupted(images[:4], name, 3, 5))


def test_equal_pictures_get_different_noise() -> None:
    same = np.repeat(scene(1), 2, axis=0)
    first, second = corrupted(same, "gaussian_noise", 3, 0)
    assert (first != second).any()


def test_the_cache_gives_what_was_computed(tmp_path: Path) -> None:
    images = scene(3)
    plain = corrupted(images, "shot_noise", 4, 1)
    np.testing.assert_array_equal(corrupted(images, "shot_noise", 4, 1, tmp_path), plain)
    (file,) = tmp_path.iterdir()
    np.save(file, np.zeros_like(plain))  # to see that the second answer comes from the file
    assert not corrupted(images, "shot_noise", 4, 1, tmp_path).any()


def test_the_cache_tells_apart_pictures_names_severities_and_seeds(tmp_path: Path) -> None:
    images = scene(2)
    for arguments in (("fog", 1, 0), ("fog", 2, 0), ("fog", 1, 1), ("snow", 1, 0)):
        corrupted(images, *arguments, tmp_path)
    corrupted(images[::-1], "fog", 1, 0, tmp_path)
    assert len(list(tmp_path.glob("*.npy"))) == len(list(tmp_path.iterdir())) == 5


class Roll(Sequence[Uint8Array]):
    """Pictures as photographs are: made when asked for. most: that were asked for at once."""

    def __init__(self, images: Uint8Array, most: list[int]) -> None:
        self.images, self.most = images, most

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            part = self.images[index]
            self.most.append(len(part))
            return Roll(part, [])
        return self.images[index]


def test_photographs_are_corrupted_a_few_at_a_time_and_stay_on_disk(tmp_path: Path) -> None:
    images, most = np.concatenate([scene(6)] * 25), [0]
    kept = corrupted(Roll(images, most), "shot_noise", 4, 1, tmp_path)
    assert max(most) <= 64
    assert isinstance(kept.base, np.memmap)
    assert not kept.flags.writeable
    np.testing.assert_array_equal(kept, corrupted(images, "shot_noise", 4, 1))
    np.testing.assert_array_equal(kept, corrupted(images, "shot_noise", 4, 1, tmp_path))
    assert len(list(tmp_path.iterdir())) == 1, "an array and photographs of equal pixels share the file"


def test_a_damaged_file_of_the_cache_is_made_again(tmp_path: Path) -> None:
    images = scene(3)
    expected = corrupted(images, "shot_noise", 4, 1)
    for content in (b"", b"nothing", None):
        corrupted(images, "shot_noise", 4, 1, tmp_path)
        (file,) = tmp_path.iterdir()
        file.write_bytes(file.read_bytes()[:-100] if content is None else content)
        np.testing.assert_array_equal(corrupted(images, "shot_noise", 4, 1, tmp_path), expected)


def test_a_cache_that_cannot_be_written_is_named_and_a_failure_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("x")
    with pytest.raises(ConfigError, match=r"can be kept in, got .*taken.*--cache"):
        corrupted(scene(1), "fog", 1, 0, tmp_path / "taken")
    with pytest.raises(ConfigError, match="rain"):
        corrupted(scene(1), "rain", 1, 0, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_pictures_of_other_library_versions_are_not_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corrupted(scene(1), "fog", 1, 0, tmp_path)
    monkeypatch.setattr("cema.bench.corruptions._versions", lambda: ("another",))
    corrupted(scene(1), "fog", 1, 0, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("images", "name", "severity", "word"),
    [
        (scene(), "rain", 1, "rain"),
        (scene(), "fog", 0, "1 to 5"),
        (scene(), "fog", 6, "1 to 5"),
        (scene()[0], "fog", 1, r"\[32, 32, 3\]"),
        (scene() / 255.0, "fog", 1, "float64"),
        (scene(1, 4, 32), "fog", 1, "4 px"),
    ],
)
def test_a_wrong_request_is_refused(images: Uint8Array, name: str, severity: int, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        corrupt(images, name, severity, rng())


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "expected"),
    [("gaussian_noise", 47.7), ("contrast", 24.0), ("gaussian_blur", 52.9), ("jpeg_compression", 81.0)],
)
def test_resnet20_is_hurt_as_much_as_measured_elsewhere(name: str, expected: float) -> None:
    if not os.environ.get("CEMA_DATA"):
        pytest.skip("needs CEMA_DATA, the folder with cifar10/")
    import torch

    from cema.bench.datasets import load_dataset
    from cema.cloud.models.registry import load_model
    from cema.wire.preprocess import normalise

    data = Path(os.environ["CEMA_DATA"])
    photographs = load_dataset("cifar10", data, 2000)
    model = load_model("resnet20", data / "cifar10" / "resnet20.safetensors")
    assert model.preprocess is not None
    images = corrupted(photographs.images, name, 5, 0)
    with torch.no_grad():
        batches = (torch.from_numpy(normalise(part, model.preprocess)) for part in np.split(images, 8))
        predicted = np.concatenate([model.module(batch).argmax(1).numpy() for batch in batches])
    tolerance = 3.0 if name == "gaussian_noise" else 0.5  # noise: seeds differ by up to 2.5 points
    assert 100 * (predicted == photographs.labels).mean() == pytest.approx(expected, abs=tolerance)
