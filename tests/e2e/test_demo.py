"""``cema demo`` as a stranger runs it, only shorter."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.e2e
FIELDS = {
    "name", "accuracy_adapted", "accuracy_source", "accuracy_adapted_clean", "accuracy_source_clean", "samples",
    "uploads", "bytes_up", "bytes_down", "updates_applied", "latency_ms_p50", "latency_ms_p99",
}  # fmt: skip


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cema", "demo", "--json", "--report", str(folder / "report.html"), *options]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_demo_adapts_both_edges_and_ends_with_the_documented_json(tmp_path: Path) -> None:
    demo = start(tmp_path, "--samples", "4000")  # with 2,000 the gain hangs on when the updates land: 5 to 12 points
    out, err = demo.communicate(timeout=280)
    assert demo.returncode == 0, err
    result = json.loads(out.splitlines()[-1])
    assert result.keys() == {"edges", "wall_s"}
    assert [edge["name"] for edge in result["edges"]] == ["edge-1", "edge-2"]
    for edge in result["edges"]:
        assert edge.keys() == FIELDS
        assert edge["accuracy_adapted"] > edge["accuracy_source"] + 0.15
        assert edge["updates_applied"] > 10
        assert 0 < edge["uploads"] < edge["samples"]
        assert edge["bytes_up"] > edge["bytes_down"] > 0
    assert (tmp_path / "report.html").read_text().count("<svg") == 2


def test_interrupted_demo_stops_at_once_and_leaves_no_process_behind(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # where it is ignored, children ignore it, too
    demo = start(tmp_path)
    signal.signal(signal.SIGINT, before)
    assert demo.stderr is not None
    guard = threading.Timer(120, demo.kill)
    guard.start()
    while "starting 2 edges" not in (line := demo.stderr.readline()):
        assert line, "the demo ended before it began"
    children = psutil.Process(demo.pid).children(recursive=True)
    assert children
    demo.send_signal(signal.SIGINT)
    _, err = demo.communicate(timeout=60)
    guard.cancel()
    assert demo.returncode == 130, err
    _, left = psutil.wait_procs(children, timeout=10)
    assert left == []


def test_demo_of_a_dataset_without_its_data_says_what_is_missing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cema", "demo", "--dataset", "cifar10"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env={"PATH": ""})
    assert done.returncode == 2
    assert "error[config_invalid]" in done.stderr
    assert "--data" in done.stderr
