"""Uploaded samples as the store hands them out, and what belongs together among them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Condition(NamedTuple):
    """Samples that belong together: of one device, while its stream looks the same."""

    device_id: str
    domain: int


class Waiting(NamedTuple):
    """Of a condition, what no step has used: how many, and the row_id of the last that came."""

    uploads: int
    newest: int


@dataclass(frozen=True)
class StoredSample:
    """An uploaded sample. row_id: rises with arrival within the store; the order of the queue."""

    row_id: int
    sample_id: bytes
    codec: str
    image: bytes
    device_id: str = ""
    domain: int = 0

    @property
    def condition(self) -> Condition:
        """Whose it is, and of which stretch of that device's stream."""
        return Condition(self.device_id, self.domain)
