"""The benchmark's page in a real browser: on a desk and on a telephone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
PHONE_PX, DESK_PX = 360, 1200


@pytest.mark.e2e
def test_the_benchmarks_page_fits_a_telephone_and_a_desk(
    tmp_path: Path, look: Callable[[Path, int], tuple[int, int]]
) -> None:
    files = [str(RESULTS / name) for name in ("cifar-reset.json", "cifar-continual.json")]
    subprocess.run([sys.executable, "-m", "cema", "bench", "report", *files, "--out", str(tmp_path)], check=True)
    page = tmp_path / "report.html"
    assert "http://" not in page.read_text().replace("http://www.w3.org/", "")
    for width_px in (PHONE_PX, DESK_PX):
        taken_px, drawn = look(page, width_px)
        assert taken_px <= width_px
        assert drawn >= 9  # the table of all conditions; per condition two tables and two plots
