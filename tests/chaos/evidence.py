"""What a run has left behind: the diary of the harness, of each device and of the network, and both stores.

Everything is read with sqlite3, json and hashlib; the product's own readers are under suspicion.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import sqlite3
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

HARNESS_FILE, DATABASE, OUTBOX, POINTER = "harness.jsonl", "cema.db", "outbox.db", "pointer.json"
PRISTINE = "pristine"
"""Folder of blobs as they were before we damaged them."""
Facts = dict[str, Any]
_WORKER_ENDED = re.compile(r"worker \d+ ended with exit code (-?\d+)")


class Recorder:
    """Writes events of the harness and the network, one JSON line each. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / HARNESS_FILE).open("a")
        self._mutex = threading.Lock()

    def __call__(self, event: str, **facts: object) -> None:
        line = json.dumps({"event": event, "t": time.monotonic(), **facts})
        with self._mutex:
            self._file.write(line + "\n")
            self._file.flush()

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True)
class Version:
    """One published update. counted: samples that it learned from, as noted when it was published. learned: those that
    name it now. digests: of its parameters, ``affine`` and ``whole``; None if its bytes are not to be found."""

    group: str
    version: int
    signature: str
    counted: int
    learned: int
    blob: str
    digests: Facts | None


@dataclass
class Cloud:
    """The cloud's store at the end. samples: (group, id in hex) -> device, version that learned from it (None: none).
    devices: id -> group."""

    samples: dict[tuple[str, str], tuple[str, int | None]] = field(default_factory=dict)
    devices: dict[str, str] = field(default_factory=dict)
    versions: dict[tuple[str, int], Version] = field(default_factory=dict)


@dataclass
class Evidence:
    """All of it. harness: events of harness and network, by time. edges: diaries, by edge. source: digests of the
    bundle's own parameters. worker_exits: exit codes that the cloud's log has."""

    harness: list[Facts] = field(default_factory=list)
    edges: dict[str, list[Facts]] = field(default_factory=dict)
    cloud: Cloud = field(default_factory=Cloud)
    source: Facts = field(default_factory=dict)
    worker_exits: list[int] = field(default_factory=list)

    def of(self, *events: str) -> Iterator[Facts]:
        """Events of harness and network with one of these names."""
        return (each for each in self.harness if each["event"] in events)


def read_evidence(folder: Path, source: Facts) -> Evidence:
    """folder: harness.jsonl, edge-N.jsonl, serve.log and, in ``cloud``, database and blobs."""
    edges = {file.stem: _lines(file) for file in sorted(folder.glob("edge-*.jsonl"))}
    log = (folder / "serve.log").read_text(errors="replace")
    exits = [int(code) for code in _WORKER_ENDED.findall(log)]
    return Evidence(_lines(folder / HARNESS_FILE), edges, read_cloud(folder / "cloud"), source, exits)


def read_cloud(folder: Path) -> Cloud:
    """A copy of the cloud's ``data_dir``."""
    with closing(sqlite3.connect(folder / DATABASE)) as database:
        rows = database.execute("SELECT group_name, hex(sample_id), device_id, version FROM samples").fetchall()
        devices = dict(database.execute("SELECT device_id, group_name FROM devices").fetchall())
        learned = dict(_learned(database))
        updates = database.execute("SELECT group_name, version, signature, samples, blob FROM updates").fetchall()
    samples = {(group, name.lower()): (device, version) for group, name, device, version in rows}
    assert len(samples) == len(rows)
    versions = {
        (group, version): Version(group, version, signature, counted, learned.get((group, version), 0), blob,
                                  _digests_of(folder, blob))
        for group, version, signature, counted, blob in updates
    }  # fmt: skip
    return Cloud(samples, devices, versions)


def learned_by_version(database_file: Path) -> dict[str, int]:
    """'group id' -> the version that learned from it: what must never change again."""
    with closing(sqlite3.connect(f"file:{database_file}?mode=ro", uri=True)) as database:
        query = "SELECT group_name || ' ' || lower(hex(sample_id)), version FROM samples WHERE version IS NOT NULL"
        return dict(database.execute(query).fetchall())


def read_outbox(file: Path, scratch: Path) -> Facts | None:
    """ids (hex) and counters of a device's outbox while no process has it open, from a copy; None if it is damaged."""
    scratch.mkdir(parents=True, exist_ok=True)
    for suffix in ("", "-wal"):
        copy = scratch / f"{OUTBOX}{suffix}"
        copy.unlink(missing_ok=True)
        original = file.with_name(file.name + suffix)
        if original.exists():
            shutil.copy(original, copy)
    try:
        with closing(sqlite3.connect(scratch / OUTBOX)) as database:
            ids = [name.lower() for (name,) in database.execute("SELECT hex(id) FROM samples ORDER BY row")]
            return {"ids": ids, "counters": dict(database.execute("SELECT name, value FROM counters").fetchall())}
    except sqlite3.DatabaseError:
        return None


def read_slots(state: Path) -> list[Facts]:
    """The update slots by ``pointer.json``: sha256 as named there and of the file, version, whether it is active.
    None by one whose checksum says that it is damaged."""
    try:
        pointer = json.loads((state / POINTER).read_bytes())
        check = pointer.pop("check")
        if hashlib.sha256(json.dumps(pointer, separators=(",", ":")).encode()).hexdigest() != check:
            return []
        slots = [(name, entry, (state / f"slot-{name}").read_bytes()) for name, entry in pointer["slots"].items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    return [
        {"slot": name, "named": entry["sha256"], "found": hashlib.sha256(data).hexdigest(),
         "version": entry["version"], "active": name == pointer["active"]}
        for name, entry, data in slots
    ]  # fmt: skip


def source_digests(bundle: Path) -> Facts:
    """Of the parameters that a bundle file comes with."""
    with zipfile.ZipFile(bundle) as archive:
        manifest, norm = json.loads(archive.read("manifest.json")), archive.read("norm.bin")
    return digests({
        tensor["name"]: np.frombuffer(norm, "<f4", math.prod(tensor["shape"]), tensor["offset"])
        for tensor in manifest["norm"]
    })  # fmt: skip


def digests(tensors: dict[str, Any]) -> Facts:
    """sha256 of norm tensors as float32, in the order of their names: of weights and biases, and of all."""
    affine, whole = hashlib.sha256(), hashlib.sha256()
    for name in sorted(tensors):
        data = np.ascontiguousarray(tensors[name], "<f4").tobytes()
        whole.update(data)
        if name.rpartition(".")[2] in ("weight", "bias"):
            affine.update(data)
    return {"affine": affine.hexdigest(), "whole": whole.hexdigest()}


def _digests_of(folder: Path, blob: str) -> Facts | None:
    for file in (folder / "blobs" / blob[:2] / blob, folder / PRISTINE / blob):
        try:
            data = file.read_bytes()
            if hashlib.sha256(data).hexdigest() == blob:
                return digests(load(data))
        except (OSError, SafetensorError):
            continue
    return None


def _learned(database: sqlite3.Connection) -> Iterator[tuple[tuple[str, int], int]]:
    query = "SELECT group_name, version, count(*) FROM samples WHERE version IS NOT NULL GROUP BY group_name, version"
    return (((group, version), count) for group, version, count in database.execute(query))


def _lines(file: Path) -> list[Facts]:
    """Whole lines; what a kill cut off is left out."""
    found = []
    for line in file.read_text(errors="replace").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
