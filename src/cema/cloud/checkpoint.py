"""What a worker must find again after a crash: the adapter's arrays and the state of the random numbers.

One safetensors blob per step; no pickle. Loading the blob and going on gives the same bytes as never having stopped.
"""

from __future__ import annotations

import json

import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from cema.cloud.adapt.base import State
from cema.errors import StorageError

_RNG_NAME = "rng"


def encode_checkpoint(state: State, rng: np.random.Generator) -> bytes:
    """Bytes of a checkpoint; PCG64's state is 128-bit integers, kept as JSON text in a uint8 tensor."""
    text = json.dumps(rng.bit_generator.state, sort_keys=True).encode()
    return save({**state, _RNG_NAME: np.frombuffer(text, np.uint8)})


def decode_checkpoint(data: bytes) -> tuple[State, np.random.Generator]:
    """Raises StorageError if the bytes are not a checkpoint."""
    try:
        entries = dict(deserialize(data))  # type: ignore[no-untyped-call]
        rng = np.random.default_rng()
        rng.bit_generator.state = json.loads(bytes(entries.pop(_RNG_NAME)["data"]))
        state = {
            name: np.frombuffer(bytes(entry["data"]), np.float32).reshape(entry["shape"]).copy()
            for name, entry in entries.items()
        }
    except (SafetensorError, KeyError, ValueError) as error:
        raise StorageError(f"expected an adaptation checkpoint, got {len(data)} bytes: {error}") from error
    return state, rng
