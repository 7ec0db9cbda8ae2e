"""What ``rotta`` remembers: a few images, as many of each class as can be, recent and certain ones first.

Category-balanced sampling with timeliness and uncertainty, Yuan et al., CVPR 2023.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass
class Remembered:
    """One image [C, H, W] with its pseudo-label, its entropy in nats then, and its age in images seen since."""

    image: torch.Tensor
    label: int
    entropy: float
    age: int = 0


class Memory:
    """At most ``capacity`` images, each class with its share of ``capacity / classes``, rounded up.

    The highest score leaves, of equal ones the last. Of age A and entropy U, N = capacity, K classes:

        H = lambda_t / (1 + exp(-A / N)) + lambda_u U / log K
    """

    def __init__(self, capacity: int, classes: int, lambda_t: float, lambda_u: float) -> None:
        self.capacity, self.classes = capacity, classes
        self.lambda_t, self.lambda_u = lambda_t, lambda_u
        self.items: list[list[Remembered]] = [[] for _ in range(classes)]

    def __len__(self) -> int:
        return sum(len(own) for own in self.items)

    def add(self, image_CHW: torch.Tensor, label: int, entropy: float) -> None:
        """Offer one image: it enters if there is room for its class, or in place of one with a higher score.

        Room is made in its own class when that has its share, else in the largest ones. Then all grow older.
        """
        new = Remembered(image_CHW, label, entropy)
        full_class = len(self.items[label]) >= self.capacity / self.classes
        if not full_class and len(self) < self.capacity:
            self.items[label].append(new)
        else:
            self._replace([label] if full_class else self._largest(), new)
        for item in self.all():
            item.age += 1

    def all(self) -> list[Remembered]:
        """Everything remembered, class after class."""
        return [item for own in self.items for item in own]

    def score(self, item: Remembered) -> float:
        timeliness = 1 / (1 + math.exp(-item.age / self.capacity))
        uncertainty = item.entropy / math.log(self.classes) if self.classes > 1 else 0.0
        return self.lambda_t * timeliness + self.lambda_u * uncertainty

    def _largest(self) -> list[int]:
        most = max(len(own) for own in self.items)
        return [label for label, own in enumerate(self.items) if len(own) == most]

    def _replace(self, labels: list[int], new: Remembered) -> None:
        worst: Remembered | None = None
        for label in labels:
            for item in self.items[label]:
                if worst is None or self.score(item) >= self.score(worst):
                    worst = item
        if worst is not None and self.score(worst) > self.score(new):
            own = self.items[worst.label]
            own[:] = [item for item in own if item is not worst]
            self.items[new.label].append(new)
