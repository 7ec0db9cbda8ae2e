"""All cells of a benchmark over several processes. Each finished cell is a file: an interrupted run goes on later."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import threading
import traceback
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from cema.bench.grid import Cell, cells
from cema.bench.rows import Row
from cema.bench.work import Workplace, run_cell
from cema.cloud.memory import keep_freed_memory
from cema.errors import BenchError, CemaError, ConfigError

CELLS = "cells"
"""Folder of finished cells below the output folder, one JSON file each."""


@dataclass(frozen=True)
class Failure:
    """A cell that could not be run, and why."""

    cell: Cell
    message: str


@dataclass(frozen=True)
class Finished:
    """rows: of all cells, kept ones included, in the order of the specification."""

    rows: list[Row]
    failures: list[Failure]
    kept: int


class Watcher:
    """Told how it goes: override what is of interest."""

    def begin(self, todo: int, kept: int) -> None:
        """So many cells to run; so many are there already."""

    def pictures(self, count: int) -> None:
        """More pictures have been predicted, by whatever process."""

    def finished(self, cell: Cell, rows: Sequence[Row]) -> None:
        """A cell is done and on disk."""


def run(
    place: Workplace,
    out: Path,
    *,
    resume: bool,
    processes: int,
    watcher: Watcher | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Finished:
    """Run what is missing.

    out: results are kept below. resume: use the cells that are there already; else they are run again.
    processes: each with ``place.threads`` threads. stop: asked after every cell; True ends the run with what is there.

    Raises
    ------
    BenchError: a process died (out of memory?). Cells that fail otherwise are returned, and do not stop the others.
    ConfigError: a folder that cannot be written.
    """
    watcher = watcher or Watcher()
    folder = _cells_folder(out)
    wanted = {cell.key(place.spec): cell for cell in cells(place.spec)}
    done = {key: _load(folder / f"{key}.json") for key in wanted} if resume else {}
    rows: dict[str, list[Row]] = {key: found for key, found in done.items() if found}
    kept, failures = len(rows), []
    watcher.begin(len(wanted) - kept, kept)
    todo = {key: cell for key, cell in wanted.items() if key not in rows}
    with closing(_everywhere(place, todo, processes, watcher.pictures)) as results:
        for key, result in results:
            if isinstance(result, str):
                failures.append(Failure(wanted[key], result))
                continue
            _save(folder / f"{key}.json", result)
            rows[key] = result
            watcher.finished(wanted[key], result)
            if stop():
                break
    return Finished([row for key in wanted for row in rows.get(key, [])], failures, kept)


def _cells_folder(out: Path) -> Path:
    folder = out / CELLS
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"expected a folder to keep finished cells in, got {out}: {error.strerror}") from error
    return folder


def _everywhere(
    place: Workplace, todo: dict[str, Cell], processes: int, pictures: Callable[[int], None]
) -> Generator[tuple[str, list[Row] | str], None, None]:
    """(key, rows or message) as cells finish; closed early, it ends its processes."""
    if not todo:
        return
    context = multiprocessing.get_context("spawn")
    counts = context.SimpleQueue()
    counter = threading.Thread(target=_count, args=(counts, pictures), daemon=True, name="bench-progress")
    counter.start()
    bare = replace(place)  # what is loaded here stays here
    pool = ProcessPoolExecutor(processes, context, _settle, (bare, counts))
    try:
        futures: dict[Future[list[Row] | str], str] = {pool.submit(_work, cell): key for key, cell in todo.items()}
        for future in as_completed(futures):
            yield futures[future], future.result()
        counts.put(None)
        counter.join()
    except BrokenProcessPool as error:
        raise BenchError(
            "a process of the benchmark died", hint="finished cells are kept: fewer --processes and --resume"
        ) from error
    except BaseException:  # Ctrl-C, or nobody wants the rest
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    finally:  # a process ended by force may hold the queue's lock: the counter, a daemon, is left alone then
        pool.shutdown(cancel_futures=True)


def _count(counts: Any, pictures: Callable[[int], None]) -> None:
    while (count := counts.get()) is not None:
        pictures(count)


_PLACE: Workplace | None = None
_COUNTS: Any = None


def _settle(place: Workplace, counts: Any) -> None:
    """In each process, once. Ctrl-C is the parent's business."""
    import torch

    global _PLACE, _COUNTS
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_freed_memory()
    torch.set_num_threads(place.threads)
    _PLACE, _COUNTS = place, counts


def _work(cell: Cell) -> list[Row] | str:
    assert _PLACE is not None
    try:
        return run_cell(_PLACE, cell, _COUNTS.put)
    except CemaError as error:
        return f"{error.message}; {error.hint}" if error.hint else error.message
    except Exception as error:  # of a method or a data set of the user's, as likely as not: say where
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"


def _load(path: Path) -> list[Row] | None:
    """A finished cell; None if there is none, or one that cannot be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Row])
    except (OSError, msgspec.DecodeError):
        return None


def _save(path: Path, rows: list[Row]) -> None:
    """The whole file or none, also when the power goes."""
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
        file.write(msgspec.json.format(msgspec.json.encode(rows)))
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, path)
