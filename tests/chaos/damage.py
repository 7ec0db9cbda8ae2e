"""Files that were fine yesterday: bytes flipped, a block gone to zero, half of it missing."""

from __future__ import annotations

import random
from pathlib import Path

FLIPS = 8
BLOCK_BYTES = 512


def damage(path: Path, draw: int) -> str | None:
    """Damage a file in place; says how, None if there is nothing to be damaged."""
    try:
        data = bytearray(path.read_bytes())
    except OSError:
        return None
    if not data:
        return None
    rng = random.Random(draw)
    how = rng.choice(("flipped", "zeroed", "cut off"))
    if how == "flipped":
        for place in rng.choices(range(len(data)), k=FLIPS):
            data[place] ^= 1 << rng.randrange(8)
    elif how == "zeroed":
        start = rng.randrange(0, len(data), BLOCK_BYTES)
        data[start : start + BLOCK_BYTES] = bytes(len(data[start : start + BLOCK_BYTES]))
    else:
        del data[len(data) // 2 :]
    try:
        with path.open("r+b") as file:  # the same file: somebody may have it open
            file.write(data)
            file.truncate()
    except OSError:  # its disk is full
        return None
    return how
