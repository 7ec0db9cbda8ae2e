"""The replay buffer: order, bound, draws, pixels, and a disk that is full."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cema.cloud.replay import Replay
from cema.errors import StorageError


def picture(number: int) -> np.ndarray:
    return np.full((1, 2, 3), number % 256, np.uint8)


def fill(replay: Replay, first: int, count: int) -> list[int]:
    rows = list(range(first, first + count))
    return replay.extend(rows, [picture(row) for row in rows])


@given(st.integers(0, 20), st.lists(st.integers(0, 9), max_size=12), st.booleans())
def test_keeps_the_newest_and_reports_every_row_that_leaves_once_in_order(
    capacity: int, batches: list[int], sealed: bool
) -> None:
    replay, added, evicted = Replay(capacity, sealed=sealed), 0, []
    for size in batches:
        evicted += fill(replay, added + 1, size)
        added += size
        assert len(replay) <= capacity
    assert evicted == list(range(1, max(0, added - capacity) + 1))
    assert len(replay) == min(added, capacity)
    drawn = [np.unique(image).tolist() for image in replay.draw(capacity, np.random.default_rng(0))]
    assert sorted(drawn) == [[row] for row in range(max(0, added - capacity) + 1, added + 1)]


def test_draws_are_without_replacement_and_repeatable() -> None:
    replay = Replay(100)
    fill(replay, 0, 50)
    drawn = replay.draw(30, np.random.default_rng(1))
    assert drawn.shape == (30, 1, 2, 3)
    assert len(np.unique(drawn[:, 0, 0, 0])) == 30
    np.testing.assert_array_equal(drawn, replay.draw(30, np.random.default_rng(1)))
    assert len(replay.draw(80, np.random.default_rng(1))) == 50


def test_pixels_leave_no_file_behind_that_has_a_name(tmp_path: Path) -> None:
    replay = Replay(10, tmp_path)
    fill(replay, 0, 5)
    assert list(tmp_path.iterdir()) == []
    assert len(replay) == 5


@pytest.mark.parametrize("sealed", [False, True])
def test_sealed_pixels_are_not_to_be_found_in_the_file_and_changed_ones_are_refused(
    tmp_path: Path, sealed: bool
) -> None:
    replay = Replay(4, tmp_path, sealed=sealed)
    image = np.arange(64 * 3, dtype=np.uint8).reshape(8, 8, 3)
    replay.extend([1], [image])
    file = replay._opened()
    written = os.pread(file, 4096, 0)
    assert (image.tobytes() in written) is not sealed
    np.testing.assert_array_equal(replay.draw(1, np.random.default_rng(0)), image[None])
    if sealed:
        os.pwrite(file, bytes([written[-1] ^ 1]), len(written) - 1)
        with pytest.raises(StorageError, match="not what was written"):
            replay.draw(1, np.random.default_rng(0))


def test_a_full_disk_is_a_storage_error_and_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    replay = Replay(10)
    fill(replay, 0, 3)

    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for answer in (refuse, lambda *_: 1):
        monkeypatch.setattr(os, "pwrite", answer)
        with pytest.raises(StorageError, match="replay buffer"):
            fill(replay, 3, 1)
    assert len(replay) == 3


def test_a_folder_that_is_not_there_is_a_storage_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="could not be written") as caught:
        fill(Replay(10, tmp_path / "gone"), 0, 1)
    assert "data_dir" in caught.value.hint


def test_methods_without_replay_open_no_file(tmp_path: Path) -> None:
    replay = Replay(0, tmp_path / "gone")
    assert fill(replay, 1, 3) == [1, 2, 3]
