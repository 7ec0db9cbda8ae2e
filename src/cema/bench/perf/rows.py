"""A row of ``cema bench perf``: what was measured, and what it had to be."""

from __future__ import annotations

import msgspec

from cema.bench.rows import Provenance


class PerfRow(msgspec.Struct, frozen=True, kw_only=True):
    """target: in words, empty for what is only reported. value: in ``unit``. met: None without a target. detail: what
    was compared, and the figures behind a ratio."""

    section: str
    name: str
    unit: str
    target: str
    value: float
    met: bool | None
    detail: str = ""


class PerfResults(msgspec.Struct, frozen=True, kw_only=True):
    """What a run writes. skipped: sections that could not be measured here, and why."""

    rows: list[PerfRow]
    skipped: dict[str, str]
    provenance: Provenance


class Sheet:
    """Collects the rows of a section."""

    def __init__(self, section: str) -> None:
        self.section = section
        self.rows: list[PerfRow] = []

    def at_most(self, name: str, unit: str, limit: float, value: float, detail: str = "") -> None:
        self._add(name, unit, f"<= {limit:g}", value, value <= limit, detail)

    def at_least(self, name: str, unit: str, limit: float, value: float, detail: str = "") -> None:
        self._add(name, unit, f">= {limit:g}", value, value >= limit, detail)

    def report(self, name: str, unit: str, value: float, detail: str = "") -> None:
        """A figure without a target."""
        self._add(name, unit, "", value, None, detail)

    def _add(self, name: str, unit: str, target: str, value: float, met: bool | None, detail: str) -> None:
        row = PerfRow(
            section=self.section, name=name, unit=unit, target=target, value=float(f"{value:.4g}"), met=met,
            detail=detail,
        )  # fmt: skip
        self.rows.append(row)
