"""Data sets: what comes in, at which size, and what is said when it is missing."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image

from cema.bench.corruptions import corrupted
from cema.bench.datasets import KINDS, Photographs, load_dataset
from cema.errors import ConfigError

RED, BLUE = (250, 10, 10), (10, 10, 250)


def photograph(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (300, 280)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def write_npz(path: Path, **other: NDArray[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {"images": np.full((6, 32, 32, 3), 7, np.uint8), "labels": np.arange(6) % 3, **other}
    np.savez(path, **arrays)
    return path


def test_the_digits_are_those_that_the_embedded_models_have_not_seen() -> None:
    from cema.cloud.models import digits

    stream = load_dataset("digits", None)
    train, held_out = digits.split()
    assert np.shape(stream.images) == (len(held_out), 32, 32, 3)
    assert not set(train) & set(held_out)
    images, labels = digits.digit_images()
    np.testing.assert_array_equal(stream.images[:9], images[held_out[:9]])
    np.testing.assert_array_equal(stream.labels, labels[held_out])
    assert stream.classes == [str(i) for i in range(10)]


def test_cifar10_is_read_from_its_place(tmp_path: Path) -> None:
    write_npz(tmp_path / "cifar10" / "test-5000.npz")
    photographs = load_dataset("cifar10", tmp_path, limit=4)
    assert len(photographs) == len(photographs.images) == 4
    assert photographs.labels.dtype == np.int64
    assert photographs.classes[1] == "automobile"


def test_an_npz_of_other_integer_labels_is_converted(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "mine.npz", labels=np.array([0, 1, 2, 1, 0, 2], np.uint8))
    mine = load_dataset("npz", path)
    assert (mine.name, mine.classes) == ("mine", ["0", "1", "2"])
    assert mine.labels.dtype == np.int64


def test_imagenet_photographs_are_cropped_to_the_models_size(tmp_path: Path) -> None:
    photos = tmp_path / "imagenet" / "photos"
    photograph(photos / "n02.jpg", RED)
    photograph(photos / "n01.jpg", BLUE, (500, 400))
    (tmp_path / "imagenet" / "labels.csv").write_text("wnid,label,name\nn02,4,red\nn01,0,blue\n")
    imagenet = load_dataset("imagenet", tmp_path)
    assert isinstance(imagenet.images, Photographs)
    assert [image.shape for image in imagenet.images] == [(224, 224, 3)] * 2
    assert imagenet.images[0][100, 100, 0] > 200
    assert imagenet.images[-1][100, 100, 2] > 200
    assert list(imagenet.labels) == [4, 0]
    assert (imagenet.classes[4], imagenet.classes[0], len(imagenet.classes)) == ("red", "blue", 1000)


def test_a_folder_has_one_class_per_folder(tmp_path: Path) -> None:
    photograph(tmp_path / "b" / "1.png", RED)
    photograph(tmp_path / "a" / "2.JPG", BLUE)
    (tmp_path / "a" / "notes.txt").write_text("not a picture")
    mine = load_dataset("folder", tmp_path)
    assert (mine.classes, list(mine.labels), len(mine.images)) == (["a", "b"], [0, 1], 2)
    assert mine.images[1][0, 0, 0] > 200


def test_a_part_of_a_folder_has_a_share_of_every_class_and_hidden_folders_are_none(tmp_path: Path) -> None:
    for name, count in (("Ärger", 3), ("zorn", 2), (".cache", 1)):
        for index in range(count):
            photograph(tmp_path / name / f"{index}.png", RED)
    few, everything = load_dataset("folder", tmp_path, limit=2), load_dataset("folder", tmp_path)
    assert everything.classes == ["zorn", "Ärger"]
    assert list(few.labels) == [0, 1]
    assert list(everything.labels) == [0, 1, 0, 1, 1]
    assert everything.name == tmp_path.name


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "digits"])
def test_missing_data_names_the_expected_path(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absent"):
        load_dataset(kind, tmp_path / "absent")


def test_a_data_set_on_disk_needs_a_path() -> None:
    with pytest.raises(ConfigError, match="CEMA_DATA"):
        load_dataset("cifar10", None)


def test_an_unknown_kind_and_an_empty_limit_are_refused() -> None:
    with pytest.raises(ConfigError, match="mnist"):
        load_dataset("mnist", None)
    with pytest.raises(ConfigError, match="limit"):
        load_dataset("digits", None, limit=0)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"images": np.zeros((6, 3, 32, 32), np.uint8)}, "uint8"),
        ({"images": np.zeros((6, 32, 32, 3), np.float32)}, "float32"),
        ({"images": np.zeros((0, 32, 32, 3), np.uint8), "labels": np.zeros(0, np.int64)}, "uint8"),
        ({"labels": np.arange(5)}, r"int64 \[6\]"),
        ({"labels": np.arange(6) / 2}, "float64"),
        ({"labels": np.array([0, 1, 2, 3, -1, 0])}, "-1"),
        ({"labels": np.array([{}] * 6, object)}, "pickle"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change: dict[str, NDArray[Any]], word: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=word):
        load_dataset("npz", write_npz(tmp_path / "bad.npz", **change))


def test_a_file_that_is_no_npz_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    np.save(tmp_path / "array.npy", np.zeros(3))
    for content in (b"", b"hello", b"PK\x03\x04 truncated", (tmp_path / "array.npy").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="npz"):
            load_dataset("npz", path)


def test_cifar_labels_beyond_ten_classes_are_refused(tmp_path: Path) -> None:
    write_npz(tmp_path / "cifar10" / "test-5000.npz", labels=np.arange(6) + 5)
    with pytest.raises(ConfigError, match="0 to 9"):
        load_dataset("cifar10", tmp_path)


def test_a_label_table_is_utf_8_with_or_without_a_mark(tmp_path: Path) -> None:
    photograph(tmp_path / "imagenet" / "photos" / "n01.jpg", RED)
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "imagenet" / "labels.csv").write_text("wnid,label,name\nn01,3,Müsli\n", encoding=encoding)
        assert load_dataset("imagenet", tmp_path).classes[3] == "Müsli"


@pytest.mark.parametrize("table", ["", "wnid,label,name\n", "wnid,label,name\nn01,cat,x\n", "a,b\n1,2\n"])
def test_an_unusable_label_table_is_refused(table: str, tmp_path: Path) -> None:
    photograph(tmp_path / "imagenet" / "photos" / "n01.jpg", RED)
    (tmp_path / "imagenet" / "labels.csv").write_text(table)
    with pytest.raises(ConfigError, match=r"labels\.csv"):
        load_dataset("imagenet", tmp_path)


def test_a_photograph_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "broken.jpg").write_bytes(b"\xff\xd8 nothing")
    with pytest.raises(ConfigError, match=r"broken\.jpg"):
        load_dataset("folder", tmp_path).images[0]


def test_a_condition_is_the_corrupted_pictures_and_clean_the_pictures(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3)).astype(np.uint8)
    mine = load_dataset("npz", write_npz(tmp_path / "mine.npz", images=images), limit=4)
    np.testing.assert_array_equal(mine.condition("clean", 5, 1), images[:4])
    expected = corrupted(images[:4], "gaussian_noise", 3, 7)
    np.testing.assert_array_equal(mine.condition("gaussian_noise", 3, 7), expected)
    np.testing.assert_array_equal(mine.condition("gaussian_noise", 3, 7, tmp_path / "cache"), expected)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert mine.mask is None


def test_photographs_are_decoded_for_a_condition(tmp_path: Path) -> None:
    photograph(tmp_path / "a" / "1.png", RED)
    photograph(tmp_path / "b" / "1.png", BLUE)
    mine = load_dataset("folder", tmp_path)
    np.testing.assert_array_equal(mine.condition("clean", 1, 0), np.stack(list(mine.images)))
    darker = mine.condition("contrast", 3, 0)
    assert darker.shape == (2, 224, 224, 3)


OWN = """
import numpy as np
from cema.bench.datasets import Dataset

def shades(data):
    return Dataset(str(data), np.arange(5 * 192, dtype=np.uint8).reshape(5, 8, 8, 3), np.arange(5), list("abcde"))

def nothing(data):
    return None

def short(data):
    return Dataset("short", np.zeros((3, 8, 8, 3), np.uint8), np.arange(2), list("ab"))

def empty(data):
    return Dataset("empty", np.zeros((0, 8, 8, 3), np.uint8), np.arange(0), list("ab"))

def floats(data):
    return Dataset("floats", np.zeros((2, 8, 8, 3)), np.arange(2), list("ab"))

def negative(data):
    return Dataset("negative", np.zeros((2, 8, 8, 3), np.uint8), [0, -1], list("ab"))

def listed(data):
    return Dataset("listed", np.zeros((2, 8, 8, 3), np.uint8), [0, 1], list("ab"))

def failing(data):
    raise LookupError("no such table")

number = 3
"""


def test_a_function_of_the_users_is_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_shades.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    shades = load_dataset("own_shades:shades", Path("there"), limit=3)
    assert (shades.name, len(shades), len(shades.images)) == ("there", 3, 3)
    assert load_dataset("own_shades:shades", None).name == "None"
    assert load_dataset("own_shades:listed", None).labels.dtype == np.int64


@pytest.mark.parametrize(
    ("function", "word"),
    [
        ("absent", "absent"),
        ("nothing", "to return a cema.bench.datasets.Dataset, got NoneType"),
        ("short", "a label per picture, got 2 for 3"),
        ("empty", "at least one picture, got none"),
        ("floats", r"uint8 \[N, H, W, 3\], got float64 \[2, 8, 8, 3\]"),
        ("negative", "labels as int64"),
        ("failing", "failed: LookupError: no such table"),
        ("number", "to be a function of the path, got int"),
    ],
)
def test_another_thing_than_a_data_set_is_refused(
    function: str, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_wrong.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=word):
        load_dataset(f"own_wrong:{function}", None)


@pytest.mark.parametrize("kind", ["no_such_module:shades", ":shades", "cema.bench.datasets:"])
def test_a_function_that_cannot_be_imported_is_named(kind: str) -> None:
    with pytest.raises(ConfigError, match=rf"{kind} cannot be imported.*module:name"):
        load_dataset(kind, None)


def test_an_array_that_promises_more_than_it_holds_is_refused_before_it_takes_memory(tmp_path: Path) -> None:
    header = io.BytesIO()
    npy.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (1 << 40, 32, 32, 3)})
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive:
        archive.writestr("images.npy", header.getvalue() + bytes(3072))
        archive.writestr("labels.npy", header.getvalue())
    with pytest.raises(ConfigError, match="3072 there"):
        load_dataset("npz", tmp_path / "huge.npz")


def test_an_archive_that_is_damaged_inside_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3)).astype(np.uint8)
    np.savez_compressed(tmp_path / "bad.npz", images=noise, labels=np.arange(6))
    content = bytearray((tmp_path / "bad.npz").read_bytes())
    content[5000:5400] = bytes(400)
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(ConfigError, match="npz"):
        load_dataset("npz", tmp_path / "bad.npz")
