"""The gate: no update leaves that would hurt a device for sure.

It judges the decoded update, as a device will see it: every number finite (wire/update.py checks on encoding and
decoding), finite answers, and no collapse onto one class between two versions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cema.cloud.adapt.base import Adapter


@dataclass(frozen=True)
class GateSettings:
    """collapse_share: share of one class in the answers from which they count as collapsed. diverse_share: only if
    the answers on the same images were below this before (a stream of one class is not a collapse). min_images: below
    this the shares mean nothing. Chosen by us: far outside what a healthy step of lr 0.0025 does."""

    collapse_share: float = 0.95
    diverse_share: float = 0.5
    min_images: int = 16


def top_share(logits_BK: torch.Tensor) -> float:
    """Share of the most frequent predicted class, 0..1."""
    return float(torch.bincount(logits_BK.argmax(1)).max()) / len(logits_BK)


class Gate:
    """Watches one step: ``before`` it, then ``refusal`` after it, both of the adapter that makes it."""

    def __init__(self, settings: GateSettings | None = None) -> None:
        self.settings = settings or GateSettings()
        self._images_BCHW: torch.Tensor | None = None
        self._share = 0.0

    def before(self, adapter: Adapter, images_BCHW: torch.Tensor) -> None:
        """Remember how diverse the edge's answers are."""
        self._images_BCHW = images_BCHW
        self._share = top_share(adapter.edge_logits(images_BCHW))

    def refusal(self, adapter: Adapter) -> str | None:
        """Why the present parameters must not be published; None if they may."""
        images_BCHW, self._images_BCHW = self._images_BCHW, None  # of many groups' gates, none keeps its images
        if images_BCHW is None:
            return None
        logits_BK = adapter.edge_logits(images_BCHW)
        if not bool(torch.isfinite(logits_BK).all()):
            return "the edge model's answers are not finite"
        share, s = top_share(logits_BK), self.settings
        if len(logits_BK) >= s.min_images and self._share < s.diverse_share and share >= s.collapse_share:
            return f"the edge model's answers collapsed: {share:.0%} one class, {self._share:.0%} before the step"
        return None
