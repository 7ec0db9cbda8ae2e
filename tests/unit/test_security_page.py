"""What SECURITY.md promises is what docs/operations.md promises, and what is named as its proof exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROMISE = re.compile(r"^(\d)\. \*\*([^*]+?)\.?\*\*(.*)$", re.MULTILINE)
TEST = re.compile(r"`(tests/[\w./]+)`")
PAGES = ("SECURITY.md", "CONTRIBUTING.md", "docs/operations.md", "docs/threat-model.md")


def promises(page: str) -> list[tuple[str, str, str]]:
    """Number, name and the rest of the line, of the first list of the kind (after it come the criteria of a load)."""
    found = PROMISE.findall((ROOT / page).read_text())
    return found[: next((at for at in range(1, len(found)) if found[at][0] == "1"), len(found))]


def test_both_pages_make_the_same_five_promises() -> None:
    named = [(number, name) for number, name, _ in promises("SECURITY.md")]
    assert named == [(number, name) for number, name, _ in promises("docs/operations.md")]
    assert [number for number, _ in named] == list("12345")


def test_each_promise_names_modules_with_tests() -> None:
    for _, name, rest in promises("SECURITY.md"):
        modules = [ROOT / path for path in TEST.findall(rest)]
        assert modules, name
        for module in modules:
            assert re.search(r"^def test_|\.TestCase\b", module.read_text(), re.MULTILINE), module


@pytest.mark.parametrize("page", PAGES)
def test_tests_and_make_targets_that_a_page_names_exist(page: str) -> None:
    text, makefile = (ROOT / page).read_text(), (ROOT / "Makefile").read_text()
    missing = [path for path in TEST.findall(text) if not (ROOT / path).exists()]
    missing += [
        name for name in re.findall(r"`make ([a-z]+)", text) if not re.search(rf"^{name}:", makefile, re.MULTILINE)
    ]
    assert missing == []
