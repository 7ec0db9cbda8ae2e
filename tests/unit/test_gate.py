"""The gate: what it refuses, and what only looks like a collapse."""

from __future__ import annotations

from typing import cast

import pytest
import torch

from cema.cloud.adapt.base import Adapter
from cema.cloud.gate import Gate, top_share

DIVERSE = torch.eye(10).repeat(4, 1)
COLLAPSED = torch.eye(10)[[3]].repeat(40, 1)


class Answers:
    """An adapter's answers before and after a step."""

    def __init__(self, *logits: torch.Tensor) -> None:
        self._logits = list(logits)

    def edge_logits(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return self._logits.pop(0)


def judge(before: torch.Tensor, after: torch.Tensor) -> str | None:
    gate, adapter = Gate(), cast(Adapter, Answers(before, after))
    gate.before(adapter, torch.zeros(len(before), 3, 1, 1))
    return gate.refusal(adapter)


def test_collapse_onto_one_class_is_refused_with_both_shares() -> None:
    refusal = judge(DIVERSE, COLLAPSED)
    assert refusal is not None
    assert "100% one class" in refusal
    assert "10% before" in refusal


def test_stream_of_one_class_is_not_a_collapse() -> None:
    assert judge(COLLAPSED, COLLAPSED) is None


def test_healthy_step_passes() -> None:
    assert judge(DIVERSE, DIVERSE.flip(0)) is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_answers_that_are_not_finite_are_refused(bad: float) -> None:
    after = DIVERSE.clone()
    after[7, 2] = bad
    assert "finite" in (judge(DIVERSE, after) or "")


def test_few_images_are_no_evidence_of_a_collapse() -> None:
    assert judge(torch.eye(10)[:5], torch.eye(10)[[1]].repeat(5, 1)) is None


def test_top_share() -> None:
    assert top_share(torch.eye(4)[[0, 0, 0, 1]]) == pytest.approx(0.75)
