"""The published files of CIFAR-10, CIFAR-10-C, ImageNet-C, ImageNet-R and ImageNet-A, in miniature and damaged."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cema.bench.datasets import Absent, Photographs, load_dataset
from cema.errors import ConfigError

COUNT = 4
LABELS = np.array([3, 8, 0, 9])
BINARY = Path("cifar-10-batches-bin", "test_batch.bin")


def random_images(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)


def write_binary(path: Path, images: NDArray[np.uint8], labels: NDArray[Any] = LABELS) -> Path:
    """As www.cs.toronto.edu/~kriz/cifar.html says: 1 byte label, 1,024 of red, 1,024 of green, 1,024 of blue."""
    path.parent.mkdir(parents=True, exist_ok=True)
    records = (
        bytes([label]) + b"".join(image[..., channel].tobytes() for channel in range(3))
        for label, image in zip(labels, images, strict=True)
    )
    path.write_bytes(b"".join(records))
    return path


def write_cifar10_c(folder: Path, **other: NDArray[Any]) -> NDArray[np.uint8]:
    folder.mkdir(parents=True, exist_ok=True)
    images = random_images(5 * COUNT, 1)
    arrays = {"fog": images, "labels": np.tile(LABELS, 5).astype(np.uint8), **other}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return images


def jpeg(path: Path, value: int, side: int = 16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), (value, value, value)).save(path)


def write_table(path: Path, labels: dict[str, int]) -> None:
    rows = "".join(f"{wnid},{label},class {label}\n" for wnid, label in labels.items())
    path.write_text("wnid,label,name\n" + rows)


def wnid(index: int) -> str:
    return f"n{index:08d}"


@pytest.mark.parametrize("place", [BINARY, "cifar10" / BINARY, BINARY.name])
def test_cifar10_is_read_from_the_binary_version(place: Path | str, tmp_path: Path) -> None:
    images = random_images(COUNT)
    write_binary(tmp_path / place, images)
    cifar = load_dataset("cifar10", tmp_path)
    np.testing.assert_array_equal(np.asarray(cifar.images), images)
    np.testing.assert_array_equal(cifar.labels, LABELS)
    assert cifar.labels.dtype == np.int64
    assert (cifar.name, cifar.classes[3]) == ("cifar10", "cat")


def test_a_pickled_cifar10_is_left_closed_and_the_other_download_named(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "exploded",))

    pickled = tmp_path / "cifar-10-batches-py" / "test_batch"
    pickled.parent.mkdir()
    pickled.write_bytes(pickle.dumps({"data": Bomb()}))
    with pytest.raises(ConfigError, match=r"test_batch is the Python version.*cifar-10-binary\.tar\.gz"):
        load_dataset("cifar10", tmp_path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("size", [0, 1, 3072, 3074, 3 * 3073 - 1])
def test_a_binary_of_another_size_is_refused(size: int, tmp_path: Path) -> None:
    path = write_binary(tmp_path / BINARY, random_images(COUNT))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ConfigError, match=rf"3073 bytes in .*, got a file of {size} bytes"):
        load_dataset("cifar10", tmp_path)


def test_a_binary_of_other_labels_is_refused(tmp_path: Path) -> None:
    write_binary(tmp_path / BINARY, random_images(COUNT), LABELS + 1)
    with pytest.raises(ConfigError, match="0 to 9"):
        load_dataset("cifar10", tmp_path)


def test_cifar10_c_hands_out_the_stored_severity_from_disk(tmp_path: Path) -> None:
    images = write_cifar10_c(tmp_path / "CIFAR-10-C")
    for data in (tmp_path, tmp_path / "CIFAR-10-C"):
        cifar = load_dataset("cifar10-c", data)
        for severity in range(1, 6):
            foggy = cifar.condition("fog", severity, seed=9)
            np.testing.assert_array_equal(foggy, images[(severity - 1) * COUNT : severity * COUNT])
            assert isinstance(foggy, np.memmap)
        np.testing.assert_array_equal(cifar.labels, LABELS)
    few = load_dataset("cifar10-c", tmp_path, limit=3)
    np.testing.assert_array_equal(few.condition("fog", 2, 0), images[COUNT : COUNT + 3])
    later = load_dataset("cifar10-c", tmp_path).part(1, 2).part(1, None)
    np.testing.assert_array_equal(later.condition("fog", 5, 0), few.condition("fog", 5, 0)[2:3])
    np.testing.assert_array_equal(later.labels, few.labels[2:3])
    with pytest.raises(ConfigError, match="skip fewer"):
        few.part(3, None)


def test_cifar10_c_takes_its_clean_pictures_from_cifar10(tmp_path: Path) -> None:
    write_cifar10_c(tmp_path / "CIFAR-10-C")
    images = random_images(COUNT)
    write_binary(tmp_path / BINARY, images)
    np.testing.assert_array_equal(load_dataset("cifar10-c", tmp_path).condition("clean", 1, 0), images)
    write_binary(tmp_path / BINARY, images, LABELS[::-1])
    with pytest.raises(ConfigError, match="not the same pictures"):
        load_dataset("cifar10-c", tmp_path)


def test_cifar10_c_without_clean_pictures_says_so_when_they_are_asked_for(tmp_path: Path) -> None:
    write_cifar10_c(tmp_path)
    cifar = load_dataset("cifar10-c", tmp_path, limit=2)
    assert isinstance(cifar.images, Absent)
    assert len(cifar.images) == 2
    with pytest.raises(ConfigError, match=r"no clean pictures.*cifar-10-binary\.tar\.gz"):
        cifar.condition("clean", 1, 0)


@pytest.mark.parametrize(
    ("other", "word"),
    [
        ({"labels": np.arange(6)}, "5 severities"),
        ({"labels": np.zeros(0, np.uint8)}, "5 severities"),
        ({"labels": np.arange(5 * COUNT) % 10}, "same labels for each severity"),
        ({"labels": np.full(5 * COUNT, 10)}, "0 to 9"),
        ({"labels": np.zeros((5, COUNT), int)}, r"int64 \[N\]"),
        ({"labels": np.zeros(5 * COUNT)}, "float64"),
        ({"labels": np.array([{}] * 5, object)}, "never read"),
        ({"fog": random_images(5 * COUNT - 1)}, r"\[20, 32, 32, 3\]"),
        ({"fog": np.zeros((5 * COUNT, 32, 32, 3), np.float32)}, "float32"),
        ({"fog": np.array([{}] * 20, object)}, "never read"),
    ],
)
def test_arrays_of_cifar10_c_that_do_not_fit_are_refused(
    other: dict[str, NDArray[Any]], word: str, tmp_path: Path
) -> None:
    write_cifar10_c(tmp_path, **other)
    with pytest.raises(ConfigError, match=word):
        load_dataset("cifar10-c", tmp_path).condition("fog", 1, 0)


def test_cut_off_and_foreign_files_of_cifar10_c_are_refused(tmp_path: Path) -> None:
    write_cifar10_c(tmp_path)
    whole = (tmp_path / "fog.npy").read_bytes()
    np.savez(tmp_path / "archive.npz", fog=np.zeros(3))
    for content in (b"", b"hello", whole[:-1], whole[:60], (tmp_path / "archive.npz").read_bytes()):
        (tmp_path / "fog.npy").write_bytes(content)
        with pytest.raises(ConfigError, match=r"fog\.npy"):
            load_dataset("cifar10-c", tmp_path).condition("fog", 1, 0)


def test_a_missing_or_unknown_corruption_of_cifar10_c_is_named(tmp_path: Path) -> None:
    write_cifar10_c(tmp_path)
    cifar = load_dataset("cifar10-c", tmp_path)
    with pytest.raises(ConfigError, match=r"snow\.npy.*zenodo\.org/records/2535967"):
        cifar.condition("snow", 1, 0)
    for name, severity in (("../fog", 1), ("labels", 1), ("fog", 0), ("fog", 6)):
        with pytest.raises(ConfigError, match="severity of 1 to 5"):
            cifar.condition(name, severity, 0)


def write_imagenet_c(root: Path, classes: list[str], conditions: tuple[str, ...] = ("fog/3", "snow/3")) -> None:
    for brighter, condition in enumerate(conditions):
        for index, name in enumerate(classes):
            for photograph in range(2):
                jpeg(root / condition / name / f"val_{photograph}.JPEG", 40 * index + 20 * photograph + 100 * brighter)


def test_imagenet_c_is_read_class_by_class_in_turn(tmp_path: Path) -> None:
    write_imagenet_c(tmp_path / "imagenet-c", ["n00000007", "n00000002"])
    write_table(tmp_path / "labels.csv", {"n00000002": 2, "n00000005": 5, "n00000007": 700})
    for data in (tmp_path, tmp_path / "imagenet-c"):
        imagenet = load_dataset("imagenet-c", data)
        assert list(imagenet.labels) == [2, 700, 2, 700]
        foggy, snowy = (imagenet.condition(name, 3, 0) for name in ("fog", "snow"))
        assert [image.shape for image in foggy] == [(224, 224, 3)] * 4
        np.testing.assert_allclose([image[100, 100, 0] for image in foggy], [40, 0, 60, 20], atol=2)
        np.testing.assert_allclose([image[100, 100, 0] for image in snowy], [140, 100, 160, 120], atol=2)
        assert (imagenet.classes[700], imagenet.classes[0], len(imagenet.classes)) == ("class 700", "0", 1000)
        assert imagenet.mask is None
    few = load_dataset("imagenet-c", tmp_path, limit=3)
    assert len(few.condition("fog", 3, 0)) == len(few) == 3


def test_imagenet_c_of_a_thousand_folders_needs_no_table(tmp_path: Path) -> None:
    names = [wnid(7 * index + 3) for index in range(1000)]
    jpeg(tmp_path / "one.jpg", 9)
    for name in reversed(names):
        (tmp_path / "fog" / "1" / name).mkdir(parents=True)
        (tmp_path / "fog" / "1" / name / "a.JPEG").hardlink_to(tmp_path / "one.jpg")
    imagenet = load_dataset("imagenet-c", tmp_path)
    np.testing.assert_array_equal(imagenet.labels, np.arange(1000))
    assert imagenet.classes == names


def test_imagenet_c_without_a_table_or_with_too_small_a_one_says_what_is_needed(tmp_path: Path) -> None:
    root = tmp_path / "imagenet-c"
    write_imagenet_c(root, ["n00000002", "n00000007"])
    with pytest.raises(ConfigError, match=r"labels\.csv.*with all 1000 class folders.*wnid, label \(0 to 999\), name"):
        load_dataset("imagenet-c", tmp_path)
    write_table(root / "labels.csv", {"n00000002": 2})
    with pytest.raises(ConfigError, match=r"not there: 1, e\.g\. n00000007"):
        load_dataset("imagenet-c", tmp_path)
    write_table(root / "labels.csv", {"n00000002": 2, "n00000007": 1000})
    with pytest.raises(ConfigError, match="0 to 999"):
        load_dataset("imagenet-c", tmp_path)


def test_conditions_of_imagenet_c_that_are_missing_or_differ_are_refused(tmp_path: Path) -> None:
    write_imagenet_c(tmp_path, ["n00000002"])
    write_table(tmp_path / "labels.csv", {"n00000002": 2})
    imagenet = load_dataset("imagenet-c", tmp_path)
    (tmp_path / "snow" / "3" / "n00000002" / "val_1.JPEG").unlink()
    with pytest.raises(ConfigError, match=r"same photographs in .*snow.*val_1\.JPEG"):
        imagenet.condition("snow", 3, 0)
    with pytest.raises(ConfigError, match=r"fog/4.*zenodo\.org/records/2235448"):
        imagenet.condition("fog", 4, 0)
    with pytest.raises(ConfigError, match="no clean pictures"):
        imagenet.condition("clean", 1, 0)


def write_subset(root: Path, count: int = 200) -> list[int]:
    """``count`` classes, every fifth of the thousand; a table of all thousand beside the folder."""
    labels = [5 * index + 4 for index in range(count)]
    jpeg(root.parent / "one.jpg", 50)
    for label in labels:
        (root / wnid(label)).mkdir(parents=True)
        (root / wnid(label) / "art_0.jpg").hardlink_to(root.parent / "one.jpg")
    (root / "README.txt").write_text("as in the archive")
    write_table(root.parent / "labels.csv", {wnid(label): label for label in range(1000)})
    return labels


@pytest.mark.parametrize("kind", ["imagenet-r", "imagenet-a"])
def test_only_the_two_hundred_classes_count_unless_all_are_asked_for(kind: str, tmp_path: Path) -> None:
    labels = write_subset(tmp_path / kind)
    masked, unmasked = load_dataset(kind, tmp_path), load_dataset(f"{kind}-all", tmp_path, limit=10)
    assert masked.mask is not None
    assert masked.mask.dtype == np.bool_
    assert masked.mask.shape == (1000,)
    np.testing.assert_array_equal(np.flatnonzero(masked.mask), labels)
    np.testing.assert_array_equal(masked.labels, labels)
    assert isinstance(masked.images, Photographs)
    few = masked.head(3)
    np.testing.assert_array_equal(few.mask, masked.mask)
    assert np.shape(list(few.condition("clean", 1, 0))) == (3, 224, 224, 3)
    assert (unmasked.mask, unmasked.name, len(unmasked)) == (None, f"{kind}-all", 10)


def test_a_part_of_the_two_hundred_classes_is_refused(tmp_path: Path) -> None:
    write_subset(tmp_path / "imagenet-r", 199)
    with pytest.raises(ConfigError, match=r"200 classes in .*, got 199.*imagenet-r\.tar"):
        load_dataset("imagenet-r", tmp_path)


@pytest.mark.parametrize(
    ("kind", "address"),
    [
        ("cifar10", "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"),
        ("cifar10-c", "https://zenodo.org/records/2535967"),
        ("imagenet-c", "https://zenodo.org/records/2235448"),
        ("imagenet-r", "https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar"),
        ("imagenet-r-all", "https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar"),
        ("imagenet-a", "https://people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar"),
        ("imagenet-a-all", "https://people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar"),
    ],
)
def test_what_is_missing_comes_with_its_address(kind: str, address: str, tmp_path: Path) -> None:
    for data in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ConfigError) as caught:
            load_dataset(kind, data)
        assert address in caught.value.hint
        assert str(data) in caught.value.message
