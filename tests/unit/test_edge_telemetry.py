"""Logs as text and as JSON."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from cema.telemetry import ROOT, configure_logging


@pytest.fixture(autouse=True)
def logger() -> Iterator[logging.Logger]:
    found = logging.getLogger(ROOT)
    before = found.handlers, found.propagate, found.level
    yield found
    found.handlers, found.propagate, found.level = before


def test_json_lines_carry_level_message_extras_and_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("debug", json=True)
    configure_logging("info", json=True)
    logger = logging.getLogger("cema.edge")
    logger.debug("not shown")
    try:
        raise ValueError("boom")
    except ValueError:
        logger.warning("refused %d", 3, extra={"code": "x"}, exc_info=True)
    (line,) = capsys.readouterr().err.splitlines()
    entry = json.loads(line)
    assert (entry["level"], entry["logger"], entry["message"], entry["code"]) == (
        "warning",
        "cema.edge",
        "refused 3",
        "x",
    )
    assert "ValueError: boom" in entry["traceback"]


def test_text_and_an_unknown_level(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info")
    logging.getLogger("cema").info("hello")
    assert "INFO cema: hello" in capsys.readouterr().err
    with pytest.raises(ValueError, match="LOUD"):
        configure_logging("loud")
