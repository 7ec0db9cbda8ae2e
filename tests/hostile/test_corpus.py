"""The corpus itself: large enough, no case twice, nothing but documented codes, and nothing written by building it."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from hostile import batches, bundles, exchanges, images, payloads, settings, updates
from hostile.case import CODES, TAKEN

CASES = [
    case
    for module in (images, payloads, batches, updates, bundles, settings, exchanges)
    for case in module.CASES
]  # fmt: skip
FEWEST, FEWEST_KINDS = 1000, 900
"""Cases, and kinds of them by (decoder, defect, code): a refactoring must not lose any unnoticed."""
FEWEST_OF_A_DECODER = 10
ERRORS_PAGE = Path(__file__).parents[2] / "docs" / "errors.md"


def test_the_corpus_is_as_large_as_documented() -> None:
    kinds = {(case.decoder, case.defect, case.code) for case in CASES}
    assert len(CASES) >= FEWEST
    assert len(kinds) >= FEWEST_KINDS
    decoders = Counter(decoder for decoder, _, _ in kinds)
    assert min(decoders.values()) >= FEWEST_OF_A_DECODER, decoders


def test_no_case_is_there_twice() -> None:
    names = Counter((case.decoder, case.name) for case in CASES)
    assert [name for name, count in names.items() if count > 1] == []


def test_every_code_is_documented_and_few_cases_are_harmless() -> None:
    documented = set(re.findall(r"^\| `(\w+)`", ERRORS_PAGE.read_text(), re.MULTILINE))
    assert {case.code for case in CASES} <= CODES & {*documented, TAKEN}
    assert sum(case.code == TAKEN for case in CASES) < len(CASES) / 5


def test_building_a_case_writes_nothing_and_gives_the_same_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for case in CASES[::7]:
        assert case.build() == case.build(), case.name
    assert list(tmp_path.iterdir()) == []
