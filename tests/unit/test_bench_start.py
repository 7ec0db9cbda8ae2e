"""What is found out before a benchmark begins: models, methods of one's own, their options, what a cell's key holds."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from cema.bench.datasets import Dataset
from cema.bench.grid import DEVICE_PARTS, Cell, Spec, conditions, read_options
from cema.bench.methods import METHODS
from cema.bench.pairs import PairNames, load_pair, pair_names
from cema.bench.provenance import provenance
from cema.bench.start import check_method
from cema.bench.work import identity
from cema.errors import ConfigError

DIGITS = pair_names("digits", None)
OWN = """
import msgspec
from cema.bench.methods.base import DeviceMethod
from cema.cloud.models import LoadedModel, load_model

class Mine(DeviceMethod):
    class Settings(msgspec.Struct, frozen=True):
        share: float = 0.5

class Bare(DeviceMethod):
    pass

def model():
    return LoadedModel(load_model("digits-edge").module.train(), load_model("digits-edge").preprocess, None, "")

def broken():
    return 1 / 0
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_start.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)


def test_what_is_given_takes_the_place_of_the_data_sets_models() -> None:
    data = Path("there")
    cifar = PairNames(
        "resnet20", "resnet56", str(data / "cifar10/resnet20.safetensors"), str(data / "cifar10/resnet56.safetensors")
    )
    assert pair_names("cifar10", data) == cifar
    assert str(cifar) == ""
    bigger = pair_names("cifar10", data, foundation="resnet110", foundation_weights="big/110.safetensors")
    assert (bigger.edge, bigger.edge_weights) == (cifar.edge, cifar.edge_weights)
    assert (bigger.foundation, bigger.foundation_weights) == ("resnet110", "big/110.safetensors")
    assert "foundation=resnet110 foundation_weights=110.safetensors" in str(bigger)
    assert pair_names("cifar10", data, foundation="digits-foundation").foundation_weights is None
    assert pair_names("cifar10", data, edge_weights="w").edge_weights == "w"
    assert pair_names("folder", data, edge="m:f") == PairNames("m:f", None, given=True)
    for arguments in ({}, {"foundation": "resnet56"}, {"edge": "m:f", "foundation_weights": "w"}):
        with pytest.raises(ConfigError, match="model"):
            pair_names("folder", data, **arguments)


def test_a_model_of_ones_own_says_how_pictures_are_brought_to_it() -> None:
    pair = load_pair(PairNames("own_start:model", "own_start:model"), list("0123456789"))
    assert not pair.edge.training
    assert pair.bundle.manifest.preprocess.size == (32, 32)
    with pytest.raises(ConfigError, match="ZeroDivisionError"):
        load_pair(PairNames("own_start:broken", None), list("01"))


@pytest.mark.parametrize("method", METHODS)
def test_options_and_a_missing_foundation_model_are_refused_before_anything_runs(method: str) -> None:
    check_method(method, {}, foundation=True)
    with pytest.raises(ConfigError, match="lrr"):
        check_method(method, {"lrr": 1}, foundation=True)
    if method.startswith(("cema", "upload", "cloud-only")) and method not in ("cema-lite", "cema-offline"):
        with pytest.raises(ConfigError, match="foundation"):
            check_method(method, {}, foundation=False)


def test_a_method_of_ones_own_is_found_in_the_current_folder() -> None:
    check_method("own_start:Mine", {"share": 0.25}, foundation=False)
    for name, word in (("Mine", "typo"), ("Bare", "Settings"), ("model", "subclass"), ("None", "cannot be imported")):
        with pytest.raises(ConfigError, match=word):
            check_method(f"own_start:{name}", {"typo": 1}, foundation=False)


def test_a_cell_is_not_taken_for_one_of_other_code() -> None:
    Path("own_key.py").write_text(OWN)
    spec = Spec(dataset="digits", methods=("own_key:Mine", "bn"), corruptions=("fog",))
    mine, bn = (Cell(method=method, corruptions=("fog",), seed=0, delay=0) for method in spec.methods)
    before = mine.key(spec), bn.key(spec)
    Path("own_key.py").write_text(OWN.replace("0.5", "0.75"))
    assert mine.key(spec) != before[0]
    assert bn.key(spec) == before[1]


def test_pictures_that_come_corrupted_are_part_of_the_identity() -> None:
    def digest(value: int, limit: int = 3) -> str:
        stored = np.full((4, 8, 8, 3), value, np.uint8)
        mine = Dataset("mine", stored[:0], np.zeros(4, np.int64), ["a"], stored=lambda name, severity: stored)
        spec = Spec(
            dataset="mine:mine", methods=("source",), corruptions=("fog", "snow"), setting="gradual", severity=2
        )
        passed = conditions(spec, mine.labels)
        assert passed == [("fog", 1), ("fog", 2), ("snow", 1), ("snow", 2)]
        return identity(mine, DIGITS, passed)

    assert digest(1) == digest(1) != digest(2)


def test_weights_that_are_not_there_are_named() -> None:
    dataset = Dataset("mine", np.zeros((1, 8, 8, 3), np.uint8), np.zeros(1, np.int64), ["a"])
    with pytest.raises(ConfigError, match=r"weights at .*resnet20\.safetensors"):
        identity(dataset, pair_names("cifar10", Path("nowhere")))


def test_a_command_is_kept_without_the_places_of_this_machine() -> None:
    arguments = ["bench", "run", "--data", "/home/me/x", "--out=/home/me/y", "--option", "tent.lr=0.1", "--dataset=npz"]
    command = provenance(arguments, datetime.now(UTC)).command
    assert command == "cema bench run --data DIR --out=DIR --option tent.lr=0.1 --dataset=npz"


def test_every_part_of_a_device_has_its_options() -> None:
    numbers = ("statistics.memory", "blend.evidence", "classes.window", "pacing.start", "mixture.most")
    options = read_options([f"cema.{number}=3" for number in numbers])
    assert options == {"cema": dict.fromkeys(numbers, 3)}
    check_method("cema", options["cema"], foundation=True)
    assert {number.partition(".")[0] for number in numbers} == set(DEVICE_PARTS)
