"""The few values that both sides and the user's code pass around.

Imports nothing of ours. Tensor names carry their shape: ``images_BHWC``, ``logits_BK`` with B images of
height H, width W and C channels, and K classes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

IMAGE_CODING = (
    r"(?!webp.*-444|png-|raw-)(?P<codec>png|raw|webp|jpeg)(?:-(?P<quality>100|[1-9][0-9]?))?(?P<full>-444)?"
    r"(?:@(?P<side>[1-9][0-9]{0,4}))?"
)
"""Names of image codings, as a regular expression: see ``cema.wire.image.read_coding``."""
Float32Array = NDArray[np.float32]
Uint8Array = NDArray[np.uint8]
NormParameters = dict[str, Float32Array]
"""Norm tensors by torch name (``bn1.weight``, ``bn1.bias``, ``bn1.running_mean``, ``bn1.running_var``), float32 [C]."""


class Prediction(NamedTuple):
    """What the edge says about one image.

    label: index of the most probable class. probability: its softmax value, 0..1.
    entropy: of the softmax output, in nats, 0..ln(number of classes).
    version: of the norm parameters that made it; 0 = source.
    stats_revision: of the edge's own statistics; 0 = those of the update.
    selected: whether the image goes to the outbox.
    """

    label: int
    probability: float
    entropy: float
    version: int
    stats_revision: int
    selected: bool
