"""The examples of docs/benchmark.md, run as they stand: a method and a data set of one's own."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e
PAGE = Path(__file__).parents[2] / "docs" / "benchmark.md"
BLOCK = re.compile(r"<!-- test: (file|run) ?(\S*) -->\n```\w+\n(.*?)```", re.DOTALL)


def test_a_method_and_a_data_set_of_ones_own_run_as_written(tmp_path: Path) -> None:
    for kind, name, text in BLOCK.findall(PAGE.read_text()):
        if kind == "file":
            assert len(text.splitlines()) < 40
            (tmp_path / name).write_text(text)
            continue
        words = shlex.split(text)
        assert words.pop(0) == "cema"
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
        # -P: the current folder is not on Python's path, as with an installed command
        python = [sys.executable, "-P", "-m", "cema"]
        subprocess.run([*python, *words], cwd=tmp_path, env=environment, check=True, timeout=240)
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["source", "mirror:Mirror"]
    assert rows[1]["options"] == {"share": 0.3}
    assert {row["dataset"] for row in rows} == {"halves"}
    assert all(row["samples"] == 64 for row in rows)
    assert (tmp_path / "cema-bench" / "report.html").stat().st_size > 5_000
