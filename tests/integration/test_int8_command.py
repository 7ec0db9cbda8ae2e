"""``cema bundle build --int8``: which pictures it takes, and what it says about those that it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from cema.cli.bundle import bundle as bundle_command
from cema.cloud.calibration import PICTURES, PICTURES_MIN, load_pictures
from cema.cloud.models import digits
from cema.errors import ConfigError
from cema.types import Uint8Array
from cema.wire.bundle import load_bundle
from cema.wire.messages import Preprocess

RECIPE = Preprocess(size=(16, 16))


@pytest.fixture(scope="module")
def pictures() -> Uint8Array:
    return digits.digit_images()[0][digits.split().train][:PICTURES]


def save(folder: Path, images: Uint8Array) -> Path:
    for index, image in enumerate(images):
        sub = folder / f"class-{index % 3}"
        sub.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(sub / f"{index:04}.png")
    return folder


def build(tmp_path: Path, *options: str) -> dict[str, object]:
    arguments = ["build", "digits-edge", "--out", str(tmp_path / "d.cema"), *options, "--json"]
    result = CliRunner().invoke(bundle_command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    facts: dict[str, object] = json.loads(result.stdout)
    return facts


def test_the_command_builds_from_a_folder_and_inspect_says_int8(tmp_path: Path, pictures: Uint8Array) -> None:
    facts = build(tmp_path, "--int8", "--calibration", str(save(tmp_path / "photos", pictures[:64])))
    assert facts["precision"] == "int8"
    assert float(str(facts["label_agreement"])) > 0.9
    seen = CliRunner().invoke(bundle_command, ["inspect", str(tmp_path / "d.cema")], catch_exceptions=False).stdout
    assert "int8" in seen
    assert load_bundle(tmp_path / "d.cema").manifest.fingerprint == facts["fingerprint"]


def test_the_command_builds_from_an_npz(tmp_path: Path, pictures: Uint8Array) -> None:
    np.savez_compressed(tmp_path / "photos.npz", images=pictures)
    assert build(tmp_path, "--int8", "--calibration", str(tmp_path / "photos.npz"))["precision"] == "int8"
    assert build(tmp_path)["precision"] == "float32"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--int8"], "--int8 needs pictures"),
        (["--calibration", "photos"], "for int8 bundles only"),
        (["--int8", "--calibration", "absent"], "there is nothing"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    options: list[str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=reason) as caught:
        build(tmp_path, *options)
    assert caught.value.hint
    assert not (tmp_path / "d.cema").exists()


def test_a_folder_of_many_pictures_is_sampled_evenly(tmp_path: Path) -> None:
    images = np.zeros((2 * PICTURES, 1, 1, 3), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.divmod(np.arange(2 * PICTURES), 256)
    np.savez(tmp_path / "many.npz", images=images, labels=np.zeros(2 * PICTURES))
    found = load_pictures(tmp_path / "many.npz", Preprocess(size=(1, 1)))[:, 0, 0, :2].astype(int)
    assert (found[:, 0] * 256 + found[:, 1]).tolist() == list(range(0, 2 * PICTURES, 2))


def test_calibration_folders_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "photos", np.zeros((PICTURES_MIN, 8, 8, 3), np.uint8))
    assert len(load_pictures(folder, RECIPE)) == PICTURES_MIN
    (folder / "class-0" / "0000.png").write_bytes(b"\x89PNG not a picture")
    with pytest.raises(ConfigError, match=r"readable picture at .*0000\.png"):
        load_pictures(folder, RECIPE)
    (folder / "class-0" / "0000.png").unlink()
    with pytest.raises(ConfigError, match=f"at least {PICTURES_MIN} calibration pictures .*got {PICTURES_MIN - 1}"):
        load_pictures(folder, RECIPE)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="got 0"):
        load_pictures(tmp_path / "empty", RECIPE)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"images": np.zeros((40, 8, 8), np.uint8)}, "uint8 .N, H, W, 3."),
        ({"images": np.zeros((40, 8, 8, 3), np.float32)}, "got float32"),
        ({"images": np.zeros((9, 8, 8, 3), np.uint8)}, "got 9"),
        ({"images": np.zeros((40, 8, 0, 3), np.uint8)}, "uint8 .N, H, W, 3."),
        ({"images": np.asfortranarray(np.zeros((40, 8, 8, 3), np.uint8))}, "row order"),
        ({"images": np.array([None] * 40)}, "got object"),
        ({"pictures": np.zeros((40, 8, 8, 3), np.uint8)}, "images"),
    ],
)
def test_an_npz_of_something_else_is_refused(content: dict[str, np.ndarray], reason: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **content)
    with pytest.raises(ConfigError, match=reason):
        load_pictures(tmp_path / "x.npz", RECIPE)


def test_a_file_that_is_no_archive_or_ends_early_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=np.zeros((40, 8, 8, 3), np.uint8))
    data = (tmp_path / "x.npz").read_bytes()
    for broken in (b"", b"hello", data[: len(data) // 2], data[:200] + b"\xff" * 50 + data[250:]):
        (tmp_path / "x.npz").write_bytes(broken)
        with pytest.raises(ConfigError, match="npz file"):
            load_pictures(tmp_path / "x.npz", RECIPE)
