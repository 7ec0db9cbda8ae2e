"""What a worker must find again after a crash: the adapter's arrays, those of worlds that were left, and the state of
the random numbers.

One safetensors blob per step; no pickle. Loading the blob and going on gives the same bytes as never having stopped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from cema.cloud.adapt.base import State
from cema.cloud.worlds import Learned
from cema.errors import StorageError

_RNG_NAME = "rng"
_LEFT, _NOW, _METHOD = "left", "now", "method"
"""Tensors of a world that was left are named left.DOMAIN.NAME."""


class Checkpoint(NamedTuple):
    """state: of the adapter. now, learned: see ``cema.cloud.worlds.Worlds``; in the order in which worlds were left.
    method: whose state it is, empty in checkpoints of before."""

    state: State
    rng: np.random.Generator
    now: Mapping[str, int]
    learned: Learned
    method: str = ""


def encode_checkpoint(checkpoint: Checkpoint) -> bytes:
    """Bytes of a checkpoint; PCG64's state is 128-bit integers, kept as JSON text in a uint8 tensor."""
    said = {_NOW: dict(checkpoint.now), _LEFT: [*checkpoint.learned], _METHOD: checkpoint.method}
    text = json.dumps({**checkpoint.rng.bit_generator.state, **said}, sort_keys=True).encode()
    left = {
        f"{_LEFT}.{domain}.{name}": value
        for domain, state in checkpoint.learned.items()
        for name, value in state.items()
    }
    return save({**checkpoint.state, **left, _RNG_NAME: np.frombuffer(text, np.uint8)})


def decode_checkpoint(data: bytes) -> Checkpoint:
    """Raises StorageError if the bytes are not a checkpoint."""
    try:
        entries = dict(deserialize(data))  # type: ignore[no-untyped-call]
        said = json.loads(bytes(entries.pop(_RNG_NAME)["data"]))
        now = {str(device): int(domain) for device, domain in said.pop(_NOW, {}).items()}
        learned: Learned = {int(domain): {} for domain in said.pop(_LEFT, [])}
        method = str(said.pop(_METHOD, ""))
        rng = np.random.default_rng()
        rng.bit_generator.state = said
        state: State = {}
        for name, entry in entries.items():
            value = np.frombuffer(bytes(entry["data"]), np.float32).reshape(entry["shape"]).copy()
            first, *rest = name.split(".", 2)
            if first == _LEFT:
                learned[int(rest[0])][rest[1]] = value
            else:
                state[name] = value
    except (SafetensorError, KeyError, ValueError, IndexError, AttributeError) as error:
        raise StorageError(f"expected an adaptation checkpoint, got {len(data)} bytes: {error}") from error
    return Checkpoint(state, rng, now, learned, method)
