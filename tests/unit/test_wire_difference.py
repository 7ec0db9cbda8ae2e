"""Differences between updates: the very bytes come out again, or a clear refusal."""

from __future__ import annotations

import zlib

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as np_st

from cema.errors import UpdateError
from cema.types import NormParameters
from cema.wire.bundle import Bundle
from cema.wire.difference import Base, apply_difference, count_values, encode_difference, source_base, update_base
from cema.wire.messages import BundleManifest, NormTensor, Preprocess, UpdateManifest
from cema.wire.update import encode_update, open_update

LAYERS = 12
NAMES = [f"layer{i}.{role}" for i in range(LAYERS) for role in ("weight", "bias", "running_mean", "running_var")]
SIZE = 32
CONTENT = BundleManifest(
    fingerprint="f" * 64, model="m", classes=["a", "b"],
    preprocess=Preprocess(size=(8, 8), mean=(0, 0, 0), std=(1, 1, 1)), input_name="x", output_name="y",
    norm=[
        NormTensor(name=name, initializer=name, kind="batch_norm", role=name.split(".")[1], shape=[SIZE], eps=1e-5,
                   offset=4 * SIZE * number) for number, name in enumerate(NAMES)
    ],
)  # fmt: skip
SOURCE = np.random.default_rng(0).uniform(0.1, 2, (len(NAMES), SIZE)).astype(np.float32)
BUNDLE = Bundle(CONTENT, b"", SOURCE.tobytes())


def update(version: int, values: np.ndarray, encoding: str = "float16") -> bytes:
    manifest = UpdateManifest(
        group="g", version=version, fingerprint="f" * 64, method="m", created_at_ms=version, encoding=encoding
    )
    return encode_update(manifest, dict(zip(NAMES, values, strict=False)))


def moved(step: float, seed: int = 1) -> np.ndarray:
    drift = np.random.default_rng(seed).normal(0, step, SOURCE.shape)
    return np.abs(SOURCE * (1 + drift)).astype(np.float32)


FINITE = np_st.arrays(np.uint16, (2, len(NAMES), SIZE)).map(
    lambda bits: np.nan_to_num(np.abs(bits.view(np.float16).astype(np.float32)), nan=1, posinf=65504)
)


@given(FINITE)
def test_any_two_updates_of_a_bundle_lead_to_each_other_to_the_byte(values: np.ndarray) -> None:
    earlier, later = update(1, values[0]), update(2, values[1])
    for base in (source_base(BUNDLE), update_base(earlier, CONTENT)):
        assert base is not None
        encoded = encode_difference(later, base)
        assert encoded is None or apply_difference(encoded, base) == later


def test_negative_values_zeros_of_both_signs_and_subnormals_survive() -> None:
    odd = SOURCE.copy()
    odd[1] = np.resize([0.0, -0.0, -1.5, 6e-8, -6e-8, 65504, -65504], SIZE)  # a bias
    base = source_base(BUNDLE)
    encoded = encode_difference(update(1, odd), base)
    assert encoded is not None
    back = open_update(apply_difference(encoded, base), CONTENT).parameters[NAMES[1]]
    expected = odd[1].astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(back.view(np.uint32), expected.view(np.uint32))


def test_a_small_step_costs_less_than_half_a_float16_file_and_missed_steps_travel_as_one() -> None:
    versions = [moved(0.002 * step) for step in range(1, 5)]
    plain = 2 * count_values(CONTENT)
    first, last = update_base(update(1, versions[0]), CONTENT), update(4, versions[-1])
    assert first is not None
    assert len(encode_difference(last, first) or b"") < 0.6 * plain


def test_float32_is_no_base_and_has_no_difference() -> None:
    assert update_base(update(1, SOURCE, "float32"), CONTENT) is None
    assert encode_difference(update(1, SOURCE, "float32"), source_base(BUNDLE)) is None
    for garbage in (b"", b"short", b"\xff" * 100):
        assert update_base(garbage, CONTENT) is None


def test_an_update_without_resemblance_is_not_sent_as_a_difference() -> None:
    one = msgspec.structs.replace(CONTENT, norm=[msgspec.structs.replace(CONTENT.norm[0], shape=[50_000])])
    rng = np.random.default_rng(0)
    magnitudes, signs = rng.integers(0, 0x7BFF, (2, 50_000)), rng.integers(0, 2, (2, 50_000))
    values = (magnitudes | signs << 15).astype(np.uint16).view(np.float16)
    source = Bundle(one, b"", values[0].astype(np.float32).tobytes())
    assert encode_difference(update(1, values[1:].astype(np.float32)), source_base(source)) is None


def outcome(encoded: bytes, base: Base) -> bytes | None:
    try:
        return apply_difference(encoded, base)
    except UpdateError:
        return None


def damaged() -> list[tuple[str, bytes]]:
    base = source_base(BUNDLE)
    good = encode_difference(update(1, moved(0.01)), base)
    assert good is not None
    plain = zlib.decompressobj(zdict=base.dictionary).decompress(good)

    def packed(content: bytes) -> bytes:
        deflate = zlib.compressobj(zdict=base.dictionary)
        return deflate.compress(content) + deflate.flush()

    return [
        ("empty", b""), ("garbage", b"\x00" * 50), ("truncated", good[:-5]), ("trailing bytes", good + b"x"),
        ("too few values", packed(plain[-100:])), ("a bomb", packed(bytes(50_000_000))),
        ("beyond float16", packed(plain[: -3 * count_values(CONTENT)] + b"\xff" * 3 * count_values(CONTENT))),
        ("no dictionary", zlib.compress(plain)[:-4]),
    ]  # fmt: skip


@pytest.mark.parametrize("encoded", [content for _, content in damaged()], ids=[name for name, _ in damaged()])
def test_what_is_no_difference_is_refused(encoded: bytes) -> None:
    with pytest.raises(UpdateError):
        apply_difference(encoded, source_base(BUNDLE))


@given(st.data())
def test_flipped_bits_give_a_refusal_or_other_bytes_but_never_another_error(data: st.DataObject) -> None:
    base, good = source_base(BUNDLE), update(1, moved(0.01))
    encoded = bytearray(encode_difference(good, base) or b"")
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))
    back = outcome(bytes(encoded), base)
    assert back is None or len(back) < len(good) + 100_000  # what it is worth, the signature says


def test_a_difference_to_another_base_gives_other_bytes_or_a_refusal() -> None:
    good, other = update(2, moved(0.02)), update_base(update(1, moved(0.05)), CONTENT)
    assert other is not None
    encoded = encode_difference(good, source_base(BUNDLE))
    assert encoded is not None
    assert outcome(encoded, other) != good


def test_a_source_beyond_float16_is_a_base_all_the_same() -> None:
    huge: NormParameters = {name: np.full(SIZE, 1e6, np.float32) for name in NAMES}
    bundle = msgspec.structs.replace(CONTENT), b"", np.stack(list(huge.values())).tobytes()
    base = source_base(Bundle(*bundle))
    encoded = encode_difference(update(1, SOURCE), base)
    assert encoded is not None
    assert apply_difference(encoded, base) == update(1, SOURCE)
