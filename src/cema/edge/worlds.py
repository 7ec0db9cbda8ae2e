"""The worlds of a device's stream: the one it is in, and those that it has left and may come back to.

A camera at a window knows noon, lamplight and fog; each comes again. What was measured in a world is put aside when
the stream leaves it, and is there at once when pictures look like it again. What was learned in it, the cloud keeps
(cloud/worlds.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from cema.edge.measuring import Measured, moments_of
from cema.edge.memory import ClassMemory
from cema.types import Float32Array, NormParameters
from cema.wire.blend import early, log_ratio

SCENE_SD = 0.05
"""What pictures of a scene that never moves still differ by, in the units of ``pixel_style``: else one odd one among
them would be another world."""
LayerStatistics = tuple[Float32Array, Float32Array]
"""Mean and variance of one layer, float32 [C] each."""
UNLIKE_MOST = 20.0
"""What one channel counts for at most in ``unlike``: a dead one that wakes up says little about all others."""
LEAST_ERROR = 0.0025
"""Square of what logarithms of a variance differ by in the same world, however alike its pictures are: 5 %."""


@dataclass
class World:
    """domain: its number. memory: pictures of it. latest: mean and variance of every batch norm, by name. pool:
    measured (mean [C], variance [C]) of each layer, shift: how far the early ones' variances are from the source's,
    None before the first look. rounds: measurements; error: of the pool, squared, in those of one picture. seen, since:
    pictures since the stream came here, and since the last measurement, of which there is one each ``period``. left: as
    it was when the stream left it, while it is not confirmed that this is the same world."""

    domain: int
    memory: ClassMemory
    latest: NormParameters
    period: int
    pool: list[LayerStatistics] = field(default_factory=list)
    shift: float | None = None
    rounds: int = 0
    error: float = 0.0
    seen: int = 0
    since: int = 0
    left: World | None = None

    def again(self, period: int) -> World:
        """The same world, to which the stream has just come back."""
        return replace(self, memory=self.memory.copy(), period=period, seen=0, since=0, left=self)

    def begin_anew(self, pictures: int) -> None:
        """Forget what was measured, and all but the latest pictures."""
        self.memory.keep_latest(pictures)
        self.pool, self.shift, self.rounds, self.error = [], None, 0, 0.0

    def unlike(self, measured: Sequence[Measured]) -> float:
        """See the function of that name. measured: one measurement, in parts."""
        ratios, errors, both = [], [], 1 + self.error * sum(len(each.logits_BK) for each in measured)
        for layer, (_, known_C) in enumerate(self.pool):
            first_BC, second_BC = (
                np.concatenate(parts) for parts in zip(*(each.layers[layer] for each in measured), strict=True)
            )
            _, var_C, error_C = moments_of(first_BC, second_BC)
            ratios.append(log_ratio(var_C, known_C))
            errors.append(error_C * np.float32(both))
        return unlike(ratios, errors)


def apart(looks_NS: Float32Array, known_NS: Float32Array) -> float:
    """How far the mean of some looks (``pixel_style``) is from that of known ones, in standard deviations of one
    picture, in whichever number it is farthest."""
    sd_S = np.sqrt(known_NS.var(axis=0, ddof=1) * (1 + 2 / len(known_NS)) + SCENE_SD**2)
    return float((np.abs(looks_NS.mean(axis=0) - known_NS.mean(axis=0)) / sd_S).max())


def unlike(log_ratios: Sequence[Float32Array], errors: Sequence[Float32Array]) -> float:
    """How far the variances of early layers are from known ones, beside what so few pictures can tell: about 1 in the
    same world. log_ratios: ln(variance / known) [C] of each layer; errors: expected square of each."""
    squares = [
        np.minimum(ratio_C**2 / (error_C + LEAST_ERROR), UNLIKE_MOST)
        for ratio_C, error_C in zip(log_ratios, errors, strict=True)
    ]
    return float(np.mean(np.concatenate(early(squares))))


class LeftWorlds:
    """Worlds that may come back, those that were left last. Besides the very last one (what comes now may be the one
    before it) at most ``most``, with pictures of at most ``size_max`` bytes."""

    def __init__(self, most: int, size_max: int) -> None:
        self.most, self.size_max = most, size_max
        self._worlds: list[World] = []

    def put(self, world: World) -> None:
        """The stream has left this one."""
        self._worlds = [each for each in self._worlds if each.domain != world.domain]
        while len(self._worlds) > self.most or sum(each.memory.size_bytes for each in self._worlds) > self.size_max:
            self._worlds.pop(0)
        self._worlds.append(world)

    def like(self, looks_NS: Float32Array, nearer: float) -> World | None:
        """The one that looks most like this, if it is nearer than that (see ``apart``)."""
        distances = [apart(looks_NS, world.memory.styles()) for world in self._worlds]
        if not distances or min(distances) >= nearer:
            return None
        return self._worlds[int(np.argmin(distances))]
