"""The header of an array in an npz archive: what it promises is checked before memory is taken."""

from __future__ import annotations

import math
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy


def array_header(member: IO[bytes], size_bytes: int) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    """(shape, dtype, whether stored column by column); ValueError where they promise more than the member holds."""
    version = npy.read_magic(member)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"unknown format {version} of a numpy array")
    shape, by_column, dtype = read(member)
    promised = math.prod(shape) * dtype.itemsize
    if not dtype.hasobject and promised != size_bytes - member.tell():
        raise ValueError(f"an array of {promised} bytes promised, {size_bytes - member.tell()} there")
    return shape, dtype, by_column
