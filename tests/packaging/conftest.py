"""The wheel, installed as devices do: the base install, and with ``verify``; made once per session."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cema.bench.datasets import load_dataset

INSTALL = Path(__file__).parents[2] / "benchmarks" / "edge_install.py"
OFFLINE = "connection broken by"
"""What pip says when it retries a request that no server answered; a dependency it cannot resolve reads differently."""
PHOTOS = 64
TIMEOUT_S = 120


class Device:
    """A machine with an edge install. packages: MiB by name, cema not counted. mib: their sum."""

    def __init__(self, python: str, packages: dict[str, float], mib: float) -> None:
        self.python, self.packages, self.mib = Path(python), packages, mib

    @property
    def cema(self) -> str:
        """The command as pip installed it."""
        return str(self.python.parent / "cema")

    def run(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return self._done([self.cema, *arguments], cwd)

    def module(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._done([str(self.python), "-m", *arguments], None)

    def evaluate(self, script: str) -> Any:
        """Run Python there; it prints JSON."""
        done = self._done([str(self.python), "-c", script], None)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def _done(self, command: list[str], cwd: Path | None) -> subprocess.CompletedProcess[str]:
        # PYTHONPATH would let the development tree in
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S, cwd=cwd, env=environment
        )


@pytest.fixture(scope="session")
def edge_installs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("edge")
    done = subprocess.run([sys.executable, str(INSTALL), str(folder)], capture_output=True, text=True, check=False)
    if done.returncode != 0 and OFFLINE in done.stderr:
        pytest.skip("PyPI not reachable")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="session")
def wheel(edge_installs: dict[str, Any]) -> Path:
    return Path(edge_installs["wheel"])


@pytest.fixture(scope="session")
def base(edge_installs: dict[str, Any]) -> Device:
    return Device(**edge_installs["installs"]["base"])


@pytest.fixture(scope="session")
def verifying(edge_installs: dict[str, Any]) -> Device:
    return Device(**edge_installs["installs"]["verify"])


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    """A folder of digits as PNG, in order, and their labels."""
    folder, digits = tmp_path_factory.mktemp("photos"), load_dataset("digits", None)
    for index, image in enumerate(digits.images[:PHOTOS]):
        Image.fromarray(np.asarray(image)).save(folder / f"{index:04}.png")
    return folder, [int(label) for label in digits.labels[:PHOTOS]]
