"""``cema edge`` as a process: one line per image, bad images do not stop it, signals do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cema.wire.bundle import Bundle, encode_bundle
from cema.wire.image import encode_image

CEMA = [sys.executable, "-c", "from cema.cli.main import run; run()", "edge"]


@pytest.fixture
def command(scripted_cloud: Any, tiny_bundle: Bundle, tmp_path: Path) -> list[str]:
    scripted_cloud.fingerprint, scripted_cloud.bundle = (
        tiny_bundle.manifest.fingerprint,
        (encode_bundle(tiny_bundle), ""),
    )
    (tmp_path / "token").write_text("secret\n")
    return [
        *CEMA, "run", "--cloud", scripted_cloud.url, "--group", "g", "--device-id", "d", "--insecure",
        "--token-file", str(tmp_path / "token"), "--state", str(tmp_path / "state"),
    ]  # fmt: skip


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a", "b", "d"):
        (folder / f"{name}.png").write_bytes(encode_image(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), "png"))
    (folder / "c.png").write_bytes(b"torn")
    return folder


def test_a_folder_gives_one_line_per_image_and_the_outbox_drains(
    command: list[str], pictures: Path, scripted_cloud: Any, tmp_path: Path
) -> None:
    done = subprocess.run([*command, "--images", str(pictures), "--batch", "3"], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [Path(line["image"]).name for line in lines] == ["a.png", "b.png", "c.png", "d.png"]
    assert lines[2]["error"]["code"] == "image_invalid"
    for line in (lines[0], lines[1], lines[3]):
        assert line["class"] == ["cat", "dog", "eel"][line["label"]]
        assert line["version"] == 0
    assert len(scripted_cloud.samples) == sum(line.get("selected", False) for line in lines)
    assert scripted_cloud.batches[-1].samples_seen == 3
    shown = subprocess.run(
        [*CEMA, "status", "--state", str(tmp_path / "state"), "--json"], capture_output=True, timeout=60
    )
    assert json.loads(shown.stdout)["samples_seen"] == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_names_from_standard_input_and_a_clean_stop(command: list[str], pictures: Path, number: int) -> None:
    process = subprocess.Popen(
        [*command, "--images", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    for name, expected in (("a.png", "label"), ("missing.png", "error"), ("b.png", "label")):
        process.stdin.write(f"{pictures / name}\n".encode())
        process.stdin.flush()
        assert expected in json.loads(process.stdout.readline())
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0
    assert stderr == b""


def test_missing_options_and_a_missing_status_are_errors_with_a_code(tmp_path: Path) -> None:
    run = subprocess.run([*CEMA, "run", "--images", str(tmp_path), "--json"], capture_output=True, timeout=60)
    assert run.returncode == 2
    assert json.loads(run.stderr)["code"] == "config_invalid"
    shown = subprocess.run([*CEMA, "status", "--state", str(tmp_path), "--json"], capture_output=True, timeout=60)
    assert json.loads(shown.stderr)["code"] == "not_found"
