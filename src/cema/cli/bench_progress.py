"""What a waiting person sees of ``cema bench run``: pictures per second, cells done, the last result."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from cema.bench.grid import Cell
from cema.bench.rows import Row
from cema.bench.run import Watcher


class Progress(Watcher):
    """Bars on a terminal, one line per finished cell everywhere; on standard error."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bars = Bars(*columns, console=self._console, disable=not self._console.is_terminal)
        self._cells = self._bars.add_task("cells", total=None)
        self._pictures = self._bars.add_task("pictures", total=None)
        self._seen = 0

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def begin(self, todo: int, kept: int) -> None:
        self._todo, self._done = todo, 0
        self._bars.update(self._cells, total=todo)
        self._console.print(f"{todo} cells to run, {kept} kept")

    def pictures(self, count: int) -> None:
        self._seen += count
        self._bars.update(self._pictures, completed=self._seen)

    def finished(self, cell: Cell, rows: Sequence[Row]) -> None:
        self._done += 1
        self._bars.advance(self._cells)
        last = rows[-1]
        where = cell.corruptions[0] if len(cell.corruptions) == 1 else last.setting
        self._console.print(
            f"{self._done}/{self._todo}  {cell.method:14} {where:18} seed {cell.seed}  {100 * last.accuracy:5.1f} %  "
            f"{last.uploads} uploads  edge {last.edge_s:.1f} s  cloud {last.cloud_s:.1f} s",
            highlight=False,
            soft_wrap=True,
        )
