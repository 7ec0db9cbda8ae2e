"""The targets of ``make fuzz`` without its fuzzer: seeds get through, what is made of them causes only our errors."""

from __future__ import annotations

import contextlib
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

FOLDER = Path(__file__).parents[2] / "fuzz" / "targets"
NAMES = sorted(file.stem for file in FOLDER.glob("*.py"))


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"fuzz_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=NAMES)
def target(request: pytest.FixtureRequest) -> ModuleType:
    return load(request.param)


def test_seeds_reach_what_is_behind_the_decoder(target: ModuleType) -> None:
    refused = []
    for seed in target.SEEDS:
        try:
            target.run(seed)
        except target.ALLOWED as error:
            refused.append((seed, error))
    if target.__name__ == "fuzz_credential":  # has seeds that nobody may get in with
        refused = [(seed, error) for seed, error in refused if seed.lower() == b"bearer " + target.SECRET.encode()]
    assert refused == []


@given(data=st.data())
@settings(max_examples=150)
def test_whatever_comes_causes_only_our_errors(target: ModuleType, data: st.DataObject) -> None:
    seed = data.draw(st.sampled_from(target.SEEDS))
    start = data.draw(st.integers(0, len(seed)))
    end = data.draw(st.integers(start, min(len(seed), start + 8)))
    with contextlib.suppress(target.ALLOWED):
        target.run(seed[:start] + data.draw(st.binary(max_size=8)) + seed[end:])
