"""How shall pictures be coded on their way up? Bytes and milliseconds of many codings, accuracy of the promising ones.

    python benchmarks/codings.py --data DIR [--only bytes,cifar10,cifar10-cema,imagenet] [--within MINUTES]

Bytes: of a sample with all that travels in the body for it, in full uploads, deflated; mean over the fifteen
corruptions at severity 5, and the worst. Milliseconds: processor time of coding one picture, medians of codings that
take turns. Accuracy: of ``cema-paper``, and of ``cema`` for many codings, each stream against the same stream with the
coding named first. Written to results/codings.json; finished streams are kept, and a part that is not run stays as it
was.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec
from kept import FOUR, cells_folder, workplace
from provenance import ROOT, provenance
from tables import DEEP, FAST, Lines

from cema.bench.corruptions import COMMON
from cema.bench.datasets import load_dataset
from cema.bench.grid import Spec, cells
from cema.bench.perf.timing import median_ms, take_turns
from cema.bench.rows import Row
from cema.bench.run import CELLS, run
from cema.bench.uploads import AT_ONCE, corrupted, upload_bytes
from cema.types import Uint8Array
from cema.wire.image import LARGE, SMALL, encode_image

RESULT = ROOT / "benchmarks" / "results" / "codings.json"
SIZES = {"cifar10": 32, "imagenet": 224}
"""Side in px of the pictures of each data set."""
TRIED = {
    "cifar10": ("png", "jpeg-98-444", "jpeg-97-444", "jpeg-96-444", "jpeg-95-444", "jpeg-92-444", "jpeg-90-444",
                "jpeg-85-444", "jpeg-95", "jpeg-90", "webp-100", "webp-95", "webp-90", "webp-75", "jpeg-95-444@24"),
    "imagenet": ("jpeg-90", "jpeg-85", "jpeg-80", "jpeg-80-444", "webp-85", "webp-80", "webp-75", "jpeg-90@192",
                 "jpeg-85@192", "webp-85@192"),
}  # fmt: skip
UPLOADS = (1, 4, AT_ONCE)
"""Samples per upload for which the default's bytes are given, deflated and not."""
TIMED = 2
"""Pictures of each corruption that are coded in a round."""
ROUNDS = 15
OTHERS = tuple(name for name in COMMON if name not in FOUR)
SEEDS = (0, 1, 2)
PROCESSES = 2
CIFAR = ("png", "jpeg-95-444", "jpeg-92-444", "jpeg-90-444")
"""Exact pixels, the default, and what else is promising."""
MANY = ("png", "jpeg-98-444", "jpeg-95-444", "jpeg-90-444", "jpeg-85-444", "jpeg-95", "webp-100", "webp-95", "webp-90",
        "webp-75", "jpeg-95-444@24")  # fmt: skip
"""Of ``cema``, whose statistics are the device's own: every kind and several qualities."""
PROMISING = ("png", "jpeg-95-444", "jpeg-85-444", "webp-90")
"""Of these, what further seeds confirm."""
IMAGENET = ("jpeg-90", "jpeg-85")
"""The first: the default before."""
PHOTOGRAPHED = ("fog", "contrast", "jpeg_compression")
"""Those with enough uploads among 500 photographs for several adapt steps."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10/ and imagenet/")
    parser.add_argument("--only", default="bytes,cifar10,cifar10-cema,imagenet")
    parser.add_argument("--within", type=float, default=24 * 60, help="minutes; no other stream is begun then")
    arguments = parser.parse_args()
    end_s = time.monotonic() + 60 * arguments.within
    known = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for part in arguments.only.split(","):
        if part == "bytes":
            known["bytes"] = {name: sizes(name, arguments.data) for name in TRIED}
        else:
            known[part] = accuracy(part, arguments.data, end_s)
        known["provenance"] = {**known.get("provenance", {}), part: provenance(("cema", "pillow", "torch"))}
        RESULT.write_text(json.dumps(known, indent=1) + "\n")


def sizes(name: str, data: Path) -> dict[str, object]:
    """Of all codings of a data set."""
    side = SIZES[name]
    pictures = corrupted(load_dataset(name, data), (side, side))
    some = [picture for group in pictures.values() for picture in group[:TIMED]]
    coders = {coding: _coder(some, coding) for coding in TRIED[name]}
    times = take_turns(coders, rounds=ROUNDS, clock=time.process_time)
    table = [
        {**_summary(pictures, coding), "encode_ms": round(median_ms(times, coding) / len(some), 3)}
        for coding in TRIED[name]
    ]
    default = SMALL if name == "cifar10" else LARGE
    uploads = {
        f"{at_once}, {'deflated' if deflate else 'plain'}": _mean(
            upload_bytes(group, default, at_once=at_once, deflate=deflate) for group in pictures.values()
        )
        for at_once in UPLOADS
        for deflate in (True, False)
    }
    for row in table:
        print(side, row, flush=True)
    print(side, default, uploads, flush=True)
    return {"side_px": side, "codings": table, "default": default, "bytes_by_samples_per_upload": uploads}


def _coder(pictures: Sequence[Uint8Array], coding: str) -> Callable[[], object]:
    return lambda: [encode_image(picture, coding) for picture in pictures]


def _summary(pictures: dict[str, list[Uint8Array]], coding: str) -> dict[str, object]:
    means = {name: upload_bytes(group, coding) for name, group in pictures.items()}
    worst = max(means, key=lambda name: means[name])
    return {"coding": coding, "bytes": _mean(means.values()), "worst": worst, "worst_bytes": round(means[worst])}


def _mean(values: Iterable[float]) -> int:
    return round(statistics.mean(values))


def accuracy(name: str, data: Path, end_s: float) -> dict[str, object]:
    """All streams of one pair, and what each coding changes."""
    rows = [(coding, row) for coding, spec in _specs(name) for row in _run(spec, data, end_s)]
    first = rows[0][0]
    base = {_key(row): row.accuracy for coding, row in rows if coding == first}
    groups: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for coding, row in rows:
        if coding != first and _key(row) in base:
            change = 100 * (row.accuracy - base[_key(row)])
            for part in ("all", "tuning" if row.corruption in FOUR else "others"):
                groups[coding, part][row.seed].append(change)
    changes = [_change(coding, part, seeds) for (coding, part), seeds in groups.items()]
    for change in changes:
        print(name, change, flush=True)
    streams = [
        {"coding": coding, "corruption": row.corruption, "severity": row.severity, "seed": row.seed,
         "accuracy": row.accuracy, "uploads": row.uploads, "bytes_up": row.bytes_up}
        for coding, row in rows
    ]  # fmt: skip
    return {"against": first, "changes": changes, "streams": streams}


def _change(coding: str, part: str, seeds: dict[int, list[float]]) -> dict[str, object]:
    """points: accuracy minus that of the exact stream, mean over corruptions and seeds. sd: over all paired streams;
    error: of the mean, by it."""
    every = [value for values in seeds.values() for value in values]
    sd = statistics.stdev(every) if len(every) > 1 else 0.0
    return {
        "coding": coding, "corruptions": part, "points": round(statistics.mean(every), 2), "sd": round(sd, 2),
        "error": round(sd / len(every) ** 0.5, 2), "streams": len(every),
        "by_seed": {seed: round(statistics.mean(values), 2) for seed, values in sorted(seeds.items())},
    }  # fmt: skip


def _specs(name: str) -> list[tuple[str, Spec]]:
    """Tuning corruptions with all seeds; the others, for confirmation, with exact pixels and the default.

    In an order in which an interrupted run has pairs to compare.
    """
    if name == "cifar10-cema":
        return [
            (coding, _spec("cifar10", coding, FOUR, {}, method="cema", seed=seed, limit=2000))
            for seed in SEEDS
            for coding in (PROMISING if seed else MANY)
        ]
    if name == "imagenet":
        return [
            (coding, _spec(name, coding, PHOTOGRAPHED, DEEP, severity=3, seed=seed))
            for seed in SEEDS[:2]
            for coding in IMAGENET
        ]
    chosen, rest = CIFAR[:2], CIFAR[2:]
    return [
        *((coding, _spec(name, coding, FOUR, FAST, seed=seed, limit=2000)) for seed in SEEDS for coding in chosen),
        *((coding, _spec(name, coding, (other,), FAST, limit=2000)) for other in OTHERS for coding in chosen),
        *((coding, _spec(name, coding, FOUR, FAST, seed=seed, limit=2000)) for seed in SEEDS for coding in rest),
    ]


def _spec(
    name: str, coding: str, corruptions: tuple[str, ...], options: dict[str, bool | int | float | str], *,
    method: str = "cema-paper", severity: int = 5, seed: int = 0, limit: int | None = None,
) -> Spec:  # fmt: skip
    return Spec(
        dataset=name, methods=(method,), corruptions=corruptions, severity=severity, seeds=(seed,), limit=limit,
        options={method: {**options, "image_coding": coding}},
    )  # fmt: skip


def _run(spec: Spec, data: Path, end_s: float) -> list[Row]:
    place, folder = workplace(spec, data, PROCESSES), cells_folder("codings")
    if time.monotonic() > end_s:
        paths = [folder / CELLS / f"{cell.key(place.spec)}.json" for cell in cells(place.spec)]
        return [
            row for path in paths if path.exists() for row in msgspec.json.decode(path.read_bytes(), type=list[Row])
        ]
    finished = run(
        place, folder, resume=True, processes=PROCESSES, watcher=Lines(),
        stop=lambda: time.monotonic() > end_s,
    )  # fmt: skip
    if finished.failures:
        raise SystemExit(finished.failures[0].message)
    return finished.rows


def _key(row: Row) -> tuple[str, int, int]:
    return row.corruption, row.severity, row.seed


if __name__ == "__main__":
    main()
