"""A benchmark run over real processes: rows, resumption, failing cells, every method by its name."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from cema.bench.grid import Cell, Spec
from cema.bench.methods import METHODS
from cema.bench.pairs import pair_names
from cema.bench.rows import ALL, Row
from cema.bench.run import CELLS, Watcher, run
from cema.bench.work import Workplace, run_cell
from cema.errors import ConfigError

SPEC = Spec(dataset="digits", methods=("source", "bn"), corruptions=("contrast", "fog"), limit=128)


class Notes(Watcher):
    def __init__(self) -> None:
        self.ran: list[Cell] = []
        self.seen, self.kept = 0, 0

    def begin(self, todo: int, kept: int) -> None:
        self.kept = kept

    def pictures(self, count: int) -> None:
        self.seen += count

    def finished(self, cell: Cell, rows: Sequence[Row]) -> None:
        self.ran.append(cell)


def place(tmp_path: Path, spec: Spec = SPEC) -> Workplace:
    return Workplace(spec, pair_names("digits", None), None, tmp_path / "cache", threads=1)


def same(rows: Sequence[Row]) -> list[dict[str, object]]:
    """Rows without what differs from run to run: times and memory."""
    plain = [msgspec.to_builtins(row) for row in rows]
    return [{k: v for k, v in row.items() if not k.endswith(("_s", "_mb", "_p50", "_p99"))} for row in plain]


def test_a_run_gives_a_row_per_method_and_corruption_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    notes = Notes()
    first = run(place(tmp_path), tmp_path, resume=False, processes=2, watcher=notes)
    assert [(row.corruption, row.method) for row in first.rows] == [
        ("contrast", "source"), ("contrast", "bn"), ("fog", "source"), ("fog", "bn"),
    ]  # fmt: skip
    assert notes.seen == 4 * 128
    assert len(notes.ran) == 4

    lost, torn, *_ = sorted((tmp_path / CELLS).iterdir())
    lost.unlink()
    torn.write_bytes(torn.read_bytes()[:100])
    again = Notes()
    second = run(place(tmp_path), tmp_path, resume=True, processes=1, watcher=again)
    assert (again.kept, len(again.ran), second.kept) == (2, 2, 2)
    assert same(second.rows) == same(first.rows)


def test_another_specification_does_not_reuse_cells(tmp_path: Path) -> None:
    one = dataclasses.replace(place(tmp_path), spec=msgspec.structs.replace(SPEC, methods=("source",)))
    cell = Cell(method="source", corruptions=("fog",), seed=0, delay=0)
    key = cell.key(one.spec)
    for change in ({"severity": 3}, {"limit": 64}, {"batch_size": 8}, {"identity": "other weights"}):
        assert cell.key(msgspec.structs.replace(one.spec, **change)) != key
    assert cell.key(SPEC) == key  # what other methods run beside it is of no matter


def test_a_cell_that_fails_is_named_and_does_not_stop_the_others(tmp_path: Path) -> None:
    spec = msgspec.structs.replace(SPEC, corruptions=("fog",), options={"bn": {"colour": 3}})
    finished = run(place(tmp_path, spec), tmp_path, resume=False, processes=1)
    assert [row.method for row in finished.rows] == ["source"]
    (failure,) = finished.failures
    assert failure.cell.method == "bn"
    assert "colour" in failure.message


OWN = """
import msgspec
from cema.bench.methods.base import DeviceMethod

class Broken(DeviceMethod):
    class Settings(msgspec.Struct, frozen=True):
        pass
    def __init__(self, model, settings, seed):
        pass
    def predict(self, images_BCHW):
        raise ValueError("out of tea")
"""


def test_an_error_in_a_method_of_ones_own_is_named_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_broken.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    methods = ("own_broken:Broken", "source")
    spec = msgspec.structs.replace(SPEC, corruptions=("fog",), methods=methods, limit=8)
    finished = run(place(tmp_path, spec), tmp_path / "out", resume=False, processes=1)
    assert [row.method for row in finished.rows] == ["source"]
    assert [failure.message.partition(" (")[0] for failure in finished.failures] == ["ValueError: out of tea"]
    assert "own_broken.py:11" in finished.failures[0].message


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("x")
    with pytest.raises(ConfigError, match="taken"):
        run(place(tmp_path), tmp_path / "taken", resume=False, processes=1)


@pytest.mark.parametrize(("limit", "first_batch"), [(1, False), (7, False), (8, True)])
def test_a_stream_shorter_than_a_batch_starts_from_the_source_statistics(
    limit: int, first_batch: bool, tmp_path: Path
) -> None:
    spec = msgspec.structs.replace(SPEC, methods=("cema-paper",), limit=limit)
    (row,) = run_cell(place(tmp_path, spec), Cell(method="cema-paper", corruptions=("fog",), seed=0, delay=0))
    assert (row.samples, row.options["first_batch"]) == (limit, first_batch)


def test_labels_that_the_model_cannot_answer_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "far.npz", images=np.zeros((4, 32, 32, 3), np.uint8), labels=np.array([0, 3, 9, 10]))
    spec = msgspec.structs.replace(SPEC, dataset="npz", limit=None)
    far = Workplace(spec, pair_names("npz", None, "digits-edge"), tmp_path / "far.npz", None, threads=1)
    with pytest.raises(ConfigError, match=r"labels below 10, .* got 10"):
        run_cell(far, Cell(method="source", corruptions=("fog",), seed=0, delay=0))


def test_rows_tell_apart_what_other_models_gave(tmp_path: Path) -> None:
    spec = msgspec.structs.replace(SPEC, limit=8)
    cell = Cell(method="source", corruptions=("fog",), seed=0, delay=0)
    (usual,) = run_cell(place(tmp_path, spec), cell)
    names = pair_names("digits", None, foundation="digits-edge")
    (other,) = run_cell(dataclasses.replace(place(tmp_path, spec), names=names), cell)
    assert usual.stream == "limit=8"
    assert other.stream == "limit=8 edge=digits-edge foundation=digits-edge"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_on_a_short_stream_with_an_odd_last_batch(method: str, tmp_path: Path) -> None:
    spec = msgspec.structs.replace(SPEC, methods=(method,), limit=97, batch_size=32)
    (row,) = run_cell(place(tmp_path, spec), Cell(method=method, corruptions=("contrast",), seed=1, delay=0))
    assert row.samples == 97
    assert 0 <= row.accuracy <= 1
    assert row.error == pytest.approx(1 - row.accuracy)
    assert 0 <= row.ece <= 1
    assert row.edge_s > 0
    assert (row.bytes_up > 0) == (row.where == "cloud")
    assert (row.uploads > 0) == (row.where == "cloud")


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("cotta", "rotta")])
def test_every_method_survives_batches_of_one_image(method: str, tmp_path: Path) -> None:
    spec = msgspec.structs.replace(SPEC, methods=(method,), limit=5, batch_size=1)
    (row,) = run_cell(place(tmp_path, spec), Cell(method=method, corruptions=("contrast",), seed=1, delay=0))
    assert row.samples == 5


def test_a_passing_stream_gives_a_row_per_corruption_and_one_for_the_whole(tmp_path: Path) -> None:
    spec = msgspec.structs.replace(SPEC, setting="continual", methods=("bn",))
    cell = Cell(method="bn", corruptions=spec.corruptions, seed=0, delay=0)
    contrast, fog, everything = run_cell(place(tmp_path, spec), cell)
    assert [contrast.corruption, fog.corruption, everything.corruption] == ["contrast", "fog", ALL]
    assert everything.samples == contrast.samples + fog.samples
    assert everything.accuracy == pytest.approx((contrast.accuracy + fog.accuracy) / 2)


def test_clean_pictures_come_from_outside_the_stream_while_there_are_any(tmp_path: Path) -> None:
    assert place(tmp_path).clean()[1] == "outside"
    assert place(tmp_path, msgspec.structs.replace(SPEC, limit=None)).clean()[1] == "stream"


def test_nonsense_is_refused_before_anything_runs() -> None:
    for change, expected in (
        ({"methods": ("magic",)}, "expected a method"),
        ({"setting": "sideways"}, "expected a setting"),
        ({"options": {"tent": {"lr": 1.0}}}, "do not run"),
        ({"batch_size": 0}, "at least 1"),
        ({"seeds": ()}, "at least one"),
    ):
        with pytest.raises(ConfigError, match=expected):
            msgspec.structs.replace(SPEC, **change)


def test_a_run_that_is_told_to_stop_keeps_what_is_finished(tmp_path: Path) -> None:
    asked: list[bool] = []
    first = run(place(tmp_path), tmp_path, resume=False, processes=1, stop=lambda: asked.append(True) or True)
    assert len(first.rows) == len(asked) == 1
    (kept,) = (tmp_path / CELLS).glob("*.json")
    assert msgspec.json.decode(kept.read_bytes(), type=list[Row]) == first.rows


def test_cema_paper_on_photographs_is_the_same_to_the_bit_for_a_seed(data_dir: Path, tmp_path: Path) -> None:
    spec = Spec(dataset="cifar10", methods=("cema-paper",), corruptions=("contrast",), limit=448)
    cell = Cell(method="cema-paper", corruptions=("contrast",), seed=0, delay=0)
    runs = [
        run_cell(Workplace(spec, pair_names("cifar10", data_dir), data_dir, tmp_path, threads=1), cell)[0]
        for _ in range(2)
    ]
    assert runs[0].digest == runs[1].digest
    assert runs[0].updates > 0
    assert same(runs[:1]) == same(runs[1:])
