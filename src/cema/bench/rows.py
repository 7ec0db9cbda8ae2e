"""One line of the benchmark's result: what a method did on one part of one stream, in bytes and milliseconds too.

The command line writes these rows (``cema bench run --json``), the report reads them; others build on the names.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Where = Literal["none", "forward", "backward", "cloud"]
"""What a method asks of the device beside the inference: nothing, forward passes only (statistics, prototypes),
back-propagation, or nothing but an uplink."""
ALL = "all"
"""In ``corruption``: the whole stream of a setting that passes through several."""


class Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Result of one method on one corruption of one stream. Accuracies, error and ECE are 0..1.

    Bytes, uploads, seconds and memory of a stream that passes through several corruptions are those of its stretch;
    memory is that of the whole run. Fields whose cause does not exist (a device without clear_refs) are None.
    """

    method: str
    options: dict[str, bool | int | float | str] = {}
    """What differs from the method's own settings, with the preset resolved."""
    where: Where
    dataset: str
    corruption: str
    """An ImageNet-C id, ``clean``, ``mixed`` or ``all``."""
    severity: int
    visit: int = 0
    """How often the stream had been here before (setting ``recurring``)."""
    setting: str
    batch_size: int
    seed: int
    edges: int = 1
    link: str = "instant"
    delay: int = 0
    """Batches between the publication of an update and its use."""
    stream: str = ""
    """What else shaped the stream, as key=value: skip, limit, order, passes, alpha, imbalance, visits, fps where it has
    them; edge, foundation and their weights where they are not the data set's own."""
    samples: int
    accuracy: float
    accuracy_second_half: float
    error: float
    ece: float
    """Expected calibration error, 15 bins of equal width (Guo et al., ICML 2017)."""
    uploads: int
    bytes_up: int
    bytes_down: int
    updates: int = 0
    edge_s: float
    """Until the answers; uploads are encoded and updates prepared beside it."""
    edge_ms_p50: float
    """Per image: time of a batch / its images."""
    edge_ms_p99: float
    cloud_s: float
    peak_rss_mb: float
    """Of the process that ran both sides, torch included."""
    edge_peak_mb: float | None = None
    """Memory that the edge's work added to the process, at its highest."""
    cloud_peak_mb: float | None = None
    digest: str = ""
    """Of all probabilities, to the bit: equal for two runs that are equal."""
    curve: list[float] = []
    """Accuracy of each window of CURVE_WINDOW images, in stream order; the last may be shorter."""
    photographs: int = 0
    """How many different ones the samples are; 0 in files of older versions."""
    right: str = ""
    """Which answers were right: a bit per sample, by photograph and then in stream order, eight in a byte, base64."""


CURVE_WINDOW = 100
"""Images per point of ``Row.curve``: 200 points on the longest stream of the tables, errors of about 5 points each."""


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """Where rows come from."""

    command: str
    commit: str
    versions: dict[str, str]
    hardware: dict[str, str | int]
    started_at: str
    """ISO 8601, UTC."""


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """The file of ``--json``."""

    rows: list[Row]
    provenance: Provenance


def encode_results(results: Results) -> bytes:
    """JSON with one row per line, so that a difference between two runs can be read."""
    rows = b",\n".join(map(msgspec.json.encode, results.rows))
    return b'{"rows":[\n' + rows + b'\n],\n"provenance":' + msgspec.json.encode(results.provenance) + b"}\n"
