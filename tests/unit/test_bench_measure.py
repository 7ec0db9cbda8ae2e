"""From answers to figures: what an answer must be, and whose time the whole stream is told in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from cema.bench.answer import Answer
from cema.bench.datasets import Dataset
from cema.bench.measure import Tally, measure, whole
from cema.bench.memory_probe import MemoryProbe
from cema.bench.streams import Pictures, for_edge, make_streams
from cema.errors import BenchError

LABELS = np.arange(40) % 2


class Improving:
    """Answers at random at first, and rightly from the middle of the run on. Pictures carry their label."""

    def __init__(self, steps: int) -> None:
        self.left, self.half, self.probe = steps, steps // 2, MemoryProbe()

    def step(self, batches: Sequence[np.ndarray | None]) -> list[Answer | None]:
        self.left -= 1
        return [None if images is None else self._answer(images[:, 0, 0, 0].astype(int)) for images in batches]

    def learn(self, labels: Sequence[np.ndarray | None]) -> None:
        pass

    def _answer(self, labels_B: np.ndarray) -> Answer:
        named_B = labels_B if self.left < self.half else 1 - labels_B
        return Answer(np.eye(2, dtype=np.float32)[named_B], edge_s=0.001 * len(labels_B))


def test_the_whole_of_several_devices_is_told_in_the_order_of_time() -> None:
    images = np.broadcast_to(LABELS[:, None, None, None].astype(np.uint8), (40, 8, 8, 3))
    dataset = Dataset("two", images, LABELS, ["0", "1"], stored=lambda corruption, severity: images)
    (stream,) = make_streams("continual", ("fog", "snow"), 5, LABELS, seed=0)
    streams = [for_edge(stream, edge, 2) for edge in range(2)]
    measured = measure(Improving(8), streams, [Pictures(dataset, 0)] * 2, batch_size=10)
    assert [entry.tally.figures()["accuracy"] for entry in measured] == [0.5, 0.5]
    figures = whole(measured).figures()
    assert figures["samples"] == 160
    assert (figures["accuracy"], figures["accuracy_second_half"]) == (0.5, 1.0)
    assert figures["curve"] == [0.2, 1.0]
    assert figures["photographs"] == 40
    assert figures["edge_ms_p99"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (np.array([[2.0, -1.0], [3.0, 0.5]]), "probabilities, which are 0 to 1"),
        (np.array([[2.0, 1.0], [3.0, 0.5]]), "sum up to 1"),
        (np.array([[np.nan, np.nan], [0.5, 0.5]]), "diverge"),
        (np.array([[0.5, 0.5]]), r"probabilities \[2, K\] for batch 7, got \[1, 2\]"),
        (np.array([0.5, 0.5]), r"got \[2\]"),
    ],
)
def test_answers_that_are_no_probabilities_are_refused_at_once(answer: np.ndarray, word: str) -> None:
    with pytest.raises(BenchError, match=word):
        Tally().add(7, Answer(answer.astype(np.float32)), np.arange(2), LABELS[:2])


def test_classes_that_do_not_count_are_not_answered() -> None:
    tally = Tally()
    answer = Answer(np.array([[0.6, 0.3, 0.1], [0.1, 0.2, 0.7]], np.float32))
    tally.add(0, answer, np.arange(2), np.array([1, 2]), np.array([False, True, True]))
    np.testing.assert_array_equal(tally.correct[0], [True, True])
    np.testing.assert_allclose(tally.confidence[0], [0.75, 7 / 9], rtol=1e-6)
