"""What the demo shows: per dataset the model pair, and the conditions that each edge drives through.

Every edge starts and pauses on clean stretches, so that one sees what adaptation costs when there is nothing to
adapt to. Edges have different orders of conditions: each is a group of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cema.cloud.adapt import Options
from cema.errors import ConfigError

CLEAN = "clean"
TICK_IMAGES = 64
_DEEP: Options = {"norm_targets": "batch"}
"""For networks of many norm layers (ADR 9)."""
CLEAN_SHARE = 1.5
"""Length of a clean stretch in stretches of drift: long enough to see the way back as well as what follows it."""


def corruption_steps(condition: str) -> list[tuple[str, int]]:
    """``snow:5+contrast:3`` -> [("snow", 5), ("contrast", 3)]; ``clean`` -> []."""
    if condition == CLEAN:
        return []
    parts = [step.partition(":") for step in condition.split("+")]
    return [(name, int(severity)) for name, _, severity in parts]


@dataclass(frozen=True)
class Phase:
    """A stretch of the stream. condition: ``clean`` or corruptions with severity that follow each other, such as
    ``snow:5+contrast:3``. share: of the stream's images, in relation to the other phases."""

    condition: str
    share: float = 1.0

    @property
    def steps(self) -> list[tuple[str, int]]:
        """(corruption, severity 1..5) in order."""
        return corruption_steps(self.condition)


@dataclass(frozen=True)
class Scenario:
    """One dataset's demo.

    edge_weights, foundation_weights: below the data folder, None when the model brings its own. images: per edge, by
    default. batch_size: frames per call of predict. sequences: one per edge, in turn. worker_threads: of torch, 0 = all
    cores; small networks are faster with one. method_options: of the group, by method.
    """

    dataset: str
    edge_model: str
    foundation_model: str
    images: int
    batch_size: int
    sequences: tuple[tuple[Phase, ...], ...]
    edge_weights: str | None = None
    foundation_weights: str | None = None
    worker_threads: int = 0
    method_options: Mapping[str, Options] = field(default_factory=dict)

    def phases(self, edge: int, images: int) -> list[tuple[Phase, int]]:
        """The phases of one edge with their number of images, whole ticks each."""
        sequence = self.sequences[edge % len(self.sequences)]
        total = sum(phase.share for phase in sequence)
        ticks = [max(1, round(images * phase.share / total / TICK_IMAGES)) for phase in sequence]
        return [(phase, count * TICK_IMAGES) for phase, count in zip(sequence, ticks, strict=True)]

    def weights(self, data: Path | None) -> tuple[str | None, str | None]:
        """Files of edge and foundation weights."""
        names = (self.edge_weights, self.foundation_weights)
        if any(names) and data is None:
            raise ConfigError(
                f"the {self.dataset} demo needs a folder with images and weights", hint="--data DIR, or set CEMA_DATA"
            )
        edge, foundation = (str(data / name) if data and name else None for name in names)
        return edge, foundation


def _drive(*conditions: str, share: float = 1.0) -> tuple[Phase, ...]:
    """clean, the first half of the conditions, clean, the other half; ``share``: of each condition."""
    drift = [Phase(name, share) for name in conditions]
    half = len(drift) // 2
    pause = Phase(CLEAN, CLEAN_SHARE)
    return (pause, *drift[:half], pause, *drift[half:])


SCENARIOS = {
    "digits": Scenario(
        "digits",
        "digits-edge",
        "digits-foundation",
        images=6400,
        batch_size=16,
        worker_threads=1,
        sequences=(
            _drive("frost:5+gaussian_noise:5", "contrast:5", "fog:4+gaussian_noise:4", "snow:5+contrast:3"),
            _drive("snow:5+contrast:3", "fog:4+gaussian_noise:4", "contrast:5", "brightness:5+gaussian_noise:5"),
        ),
    ),
    "cifar10": Scenario(
        "cifar10",
        "resnet20",
        "resnet56",
        images=6400,
        batch_size=32,
        edge_weights="cifar10/resnet20.safetensors",
        foundation_weights="cifar10/resnet56.safetensors",
        sequences=(
            _drive("gaussian_noise:5", "contrast:5", "gaussian_blur:5", "fog:5"),
            _drive("contrast:5", "impulse_noise:5", "defocus_blur:5", "gaussian_noise:5"),
        ),
    ),
    "imagenet": Scenario(
        "imagenet",
        "efficientnet-lite0",
        "efficientnet-lite2",
        images=1280,
        batch_size=8,
        method_options={"cema-paper": _DEEP, "bn": _DEEP},
        sequences=(
            _drive("fog:3", "frost:3", share=3.0),
            _drive("snow:3", "brightness:4", share=3.0),
        ),
    ),
}


def scenario(dataset: str) -> Scenario:
    """Raises ConfigError for an unknown dataset."""
    if dataset not in SCENARIOS:
        raise ConfigError(f"expected a dataset out of {', '.join(SCENARIOS)}, got {dataset!r}")
    return SCENARIOS[dataset]
