"""The README's "your own model" section, run as it stands (but for the port: a free one)."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.e2e
README = Path(__file__).parents[2] / "README.md"
BLOCK = re.compile(r"<!-- test: (?P<kind>file|run) ?(?P<name>\S*) -->\n```\w+\n(?P<text>.*?)```", re.DOTALL)
PHOTOS = 96


class Block(NamedTuple):
    kind: str
    name: str
    text: str


def blocks() -> list[Block]:
    return [Block(found["kind"], found["name"], found["text"]) for found in BLOCK.finditer(README.read_text())]


def free_port() -> int:
    """One that has a free one behind it: the address for administration."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = int(listener.getsockname()[1])
            try:
                socket.create_server(("127.0.0.1", port + 1)).close()
            except OSError:
                continue
            return port


def command(line: str) -> list[str]:
    words = shlex.split(line)
    assert words[0] == "cema"
    return [sys.executable, "-m", "cema", *words[1:]]


def start(line: str, folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(command(line), cwd=folder, stdout=subprocess.PIPE, text=True, env=environment)


def test_own_model_section_works_as_written(tmp_path: Path) -> None:
    found, port = blocks(), free_port()
    assert [(block.kind, block.name) for block in found] == [
        ("file", "my_models.py"), ("file", "cema.toml"), ("run", ""), ("run", ""),
    ]  # fmt: skip
    assert len(found[0].text.splitlines()) <= 20
    for block in found[:2]:
        (tmp_path / block.name).write_text(block.text.replace("8470", str(port)))
    *preparations, serve = found[2].text.splitlines()
    for line in preparations:
        subprocess.run(command(line), cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    make_photos(tmp_path / "photos")
    cloud = start(serve, tmp_path)
    guard = threading.Timer(120, cloud.kill)
    guard.start()
    try:
        assert cloud.stdout is not None
        assert f"127.0.0.1:{port}" in cloud.stdout.readline()
        (run,) = found[3].text.splitlines()
        done = subprocess.run(command(run), cwd=tmp_path, capture_output=True, text=True, check=True, timeout=100)
    finally:
        guard.cancel()
        cloud.send_signal(signal.SIGINT)
        cloud.communicate(timeout=60)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == PHOTOS
    documented = json.loads(re.findall(r"```json\n(.*?)\n```", README.read_text())[0])
    for line in lines:
        assert line.keys() == documented.keys()
        assert 0 <= line["label"] < 10
        assert isinstance(line["selected"], bool)
    assert cloud.returncode == 0


def make_photos(folder: Path) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(PHOTOS):
        Image.fromarray(rng.integers(0, 256, (80, 100, 3), np.uint8)).save(folder / f"{index:04}.jpg")


def test_every_local_link_of_the_readme_exists() -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target
