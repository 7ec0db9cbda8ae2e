"""A worker's checkpoint as bytes: what is read is what was written, and anything else is refused."""

from __future__ import annotations

import numpy as np
import pytest

from cema.cloud.checkpoint import Checkpoint, decode_checkpoint, encode_checkpoint
from cema.errors import StorageError


def test_checkpoint_round_trip_continues_the_random_numbers_and_keeps_worlds_in_order() -> None:
    rng = np.random.default_rng(3)
    rng.random(7)
    left = {(1 << 53) - 1: {"edge.bn.weight": np.zeros(3, np.float32)}, 8: {}, 7: {"left.7": np.full(1, 5, np.float32)}}
    again = decode_checkpoint(encode_checkpoint(Checkpoint({"a": np.ones(2, np.float32)}, rng, {"d": 9}, left)))
    np.testing.assert_array_equal(again.state["a"], [1, 1])
    np.testing.assert_array_equal(again.rng.random(5), rng.random(5))
    assert again.state.keys() == {"a"}
    assert again.now == {"d": 9}
    assert [*again.learned] == [*left]
    for domain, state in left.items():
        assert again.learned[domain].keys() == state.keys()
        for name, value in state.items():
            np.testing.assert_array_equal(again.learned[domain][name], value)


def test_what_is_no_checkpoint_is_refused() -> None:
    with pytest.raises(StorageError, match="checkpoint"):
        decode_checkpoint(b"garbage")
    rng = np.random.default_rng(3)
    for name in ("left", "left.5", "left.x.bn.weight", "left.6.bn.weight"):
        with pytest.raises(StorageError, match="checkpoint"):
            decode_checkpoint(encode_checkpoint(Checkpoint({name: np.ones(2, np.float32)}, rng, {}, {5: {}})))
