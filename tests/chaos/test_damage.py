"""What the run does to files and processes is what it says it does."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from chaos.damage import damage
from chaos.disks import Disk
from chaos.evidence import Recorder
from chaos.processes import Kept, stopped

SLEEPER = [sys.executable, "-c", "import sys; print('up', flush=True); sys.stdin.read()"]

WRITER = """
import sys
from pathlib import Path
for name in sys.stdin:
    try:
        Path(name.strip()).write_text("x")
        print("yes", flush=True)
    except OSError:
        print("no", flush=True)
"""


@pytest.mark.parametrize("draw", range(12))
def test_damage_changes_a_file_the_same_way_for_the_same_draw(tmp_path: Path, draw: int) -> None:
    contents = []
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(bytes(range(1, 256)) * 20)
        assert damage(tmp_path / name, draw) in ("flipped", "zeroed", "cut off")
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1] != bytes(range(1, 256)) * 20


def test_there_is_nothing_to_damage_in_a_file_that_is_not_there_or_empty(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert damage(tmp_path / "empty", 0) is None
    assert damage(tmp_path / "absent", 0) is None


def test_a_process_cannot_write_while_its_disk_is_full_and_can_again_afterwards(tmp_path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert writer.stdin is not None
    assert writer.stdout is not None
    disk = Disk(tmp_path / "disk", 4, lambda: [writer.pid])

    def can_write(name: str) -> str:
        print(disk.folder / name, file=writer.stdin, flush=True)
        return writer.stdout.readline().strip()

    answers = [can_write("before")]
    with disk.full():
        answers.append(can_write("during"))
    answers.append(can_write("after"))
    writer.communicate()
    assert answers == ["yes", "no", "yes"]


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[tuple[Kept, threading.Semaphore, Recorder]]:
    record, lines = Recorder(tmp_path), threading.Semaphore(0)
    process = Kept(
        "sleeper", lambda: subprocess.Popen(SLEEPER, stdin=subprocess.PIPE, stdout=subprocess.PIPE), record,
        lambda _: lines.release(),
    )  # fmt: skip
    process.start()
    assert lines.acquire(timeout=30)
    yield process, lines, record
    process.stop()
    record.close()


def events(folder: Path) -> list[tuple[str, object]]:
    lines = [json.loads(line) for line in (folder / "harness.jsonl").read_text().splitlines()]
    return [(line["event"], line.get("ours")) for line in lines]


def test_a_process_that_we_kill_stays_down_and_comes_back(
    kept: tuple[Kept, threading.Semaphore, Recorder], tmp_path: Path
) -> None:
    process, lines, _ = kept
    before = process.pid
    with process.down() as found:
        assert found
        assert process.pid is None
    assert lines.acquire(timeout=30)
    assert process.pid not in (None, before)
    assert events(tmp_path) == [("spawn", None), ("kill", None), ("exit", True), ("spawn", None)]


def test_a_process_that_ends_by_itself_is_on_record_as_that(
    kept: tuple[Kept, threading.Semaphore, Recorder], tmp_path: Path
) -> None:
    process, lines, _ = kept
    assert process.child is not None
    assert process.child.stdin is not None
    process.child.stdin.close()
    assert lines.acquire(timeout=30)
    assert events(tmp_path) == [("spawn", None), ("exit", False), ("spawn", None)]


def test_a_stopped_process_stands_still_until_the_end_of_the_block(
    kept: tuple[Kept, threading.Semaphore, Recorder],
) -> None:
    process, _, record = kept
    assert process.pid is not None
    with stopped(process.pid, "sleeper", record):
        pause = threading.Event()
        for _ in range(1000):  # the signal takes effect when the kernel comes round to it
            if psutil.Process(process.pid).status() == psutil.STATUS_STOPPED or pause.wait(0.01):
                break
        assert psutil.Process(process.pid).status() == psutil.STATUS_STOPPED
    assert psutil.Process(process.pid).status() != psutil.STATUS_STOPPED
