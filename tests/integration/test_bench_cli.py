"""``cema bench`` as it is typed: what is refused before anything runs, and what is printed and written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from cema.cli.bench import bench

ONE = ("run", "--methods", "source", "--corruptions", "fog", "--limit", "8", "--processes", "1")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CEMA_DATA", raising=False)


def typed(*words: str) -> Result:
    return CliRunner().invoke(bench, words)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--methods", "source,tent", "--option", "tent.lrr=1"), "lrr"),
        (("--methods", "nothing_there:Method"), "nothing_there:Method cannot be imported"),
        (("--methods", "cema-paper", "--edge-model", "digits-edge"), "needs a foundation model"),
        (("--dataset", "cifar10-c", "--data", "cifar"), "snow"),
        (("--dataset", "cifar10-c", "--data", "cifar", "--corruptions", "fog"), "resnet20.safetensors"),
        (("--setting", "recurring", "--limit", "2"), "3 visits"),
        (("--json", "."), "is a directory"),
        (("--seeds", "one"), "whole numbers"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(words: tuple[str, ...], expected: str) -> None:
    Path("cifar").mkdir()
    np.save("cifar/labels.npy", np.zeros(5, np.uint8))
    np.save("cifar/fog.npy", np.zeros((5, 32, 32, 3), np.uint8))
    result = typed(*ONE, "--corruptions", "fog,snow", *words)
    assert result.exit_code != 0
    assert expected in f"{result.exception} {result.output}"
    assert not Path("cema-bench").exists()


def test_a_run_is_written_reported_and_reported_again() -> None:
    first = typed(*ONE, "--out", "ümlaut", "--json", "rows.json")
    assert first.exit_code == 0, first.output
    finished = [line for line in first.output.splitlines() if line.startswith("1/1")]
    assert [line.endswith("cloud 0.0 s") for line in finished] == [True], "one line, however long"
    assert "1 row; report: " in first.output
    other = typed(*ONE, "--out", "other", "--severity", "3", "--json", "other.json")
    assert other.exit_code == 0, other.output
    assert typed("report", "rows.json", "other.json", "--out", "both").exit_code == 0
    again = typed("report", "both/results.json", "ümlaut/results.json", "--out", "again", "--json")
    assert json.loads(again.stdout)["html"] == "again/report.html"
    assert Path("again/results.json").read_bytes() == Path("both/results.json").read_bytes()


def test_two_methods_of_a_run_are_compared() -> None:
    words = ("--methods", "source,bn", "--passes", "2", "--out", "out", "--json", "rows.json")
    assert typed(*ONE, *words).exit_code == 0
    shown = typed("compare", "rows.json", "--method", "bn")
    assert shown.exit_code == 0, shown.output
    heading, line = shown.output.splitlines()
    assert heading.startswith("bn - source, digits, reset, severity 5, ")
    assert "passes=2" in heading
    (found,) = json.loads(typed("compare", "rows.json", "--method", "bn", "--json").stdout)
    assert found["low"] <= found["difference"] <= found["high"]
    assert line.split()[:2] == [found["corruption"], f"{found['difference']:+.2f}"]


def test_a_file_that_holds_no_results_is_named() -> None:
    Path("odd.json").write_text("[1, 2]")
    assert "odd.json" in str(typed("report", "odd.json").exception)
