"""Upload bodies: what is packed comes out, no bytes cause anything but our errors, nothing grows beyond the limit."""

from __future__ import annotations

import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cema.errors import MessageError, SizeLimitError
from cema.wire.body import DEFLATE, inflate, pack_batch
from cema.wire.messages import Sample, SampleBatch, decode_msgpack, encode_msgpack

LIMIT = 1 << 16
blobs = st.binary(max_size=2000)


def batch_of(pictures: list[bytes]) -> SampleBatch:
    samples = [
        Sample(
            sample_id=bytes(16), seq=seq, codec="jpeg", image=picture, label=0, probability=0.5, entropy=1.0,
            update_version=0, captured_at_ms=0,
        )
        for seq, picture in enumerate(pictures)
    ]  # fmt: skip
    return SampleBatch(device_id="d", boot_id=bytes(16), fingerprint="f", samples_seen=1, samples=samples)


@given(st.lists(blobs, max_size=4), st.booleans())
def test_a_packed_batch_comes_out_as_it_was_and_never_longer(pictures: list[bytes], deflate: bool) -> None:
    batch = batch_of(pictures)
    body = pack_batch(batch, deflate=deflate)
    plain = inflate(body.data, LIMIT) if body.encoding else body.data
    assert decode_msgpack(plain, SampleBatch, limit_bytes=LIMIT) == batch
    assert body.encoding in ((DEFLATE, None) if deflate else (None,))
    assert len(body.data) <= len(encode_msgpack(batch))


def test_what_pictures_have_in_common_travels_once() -> None:
    tables = zlib.compress(bytes(range(256)) * 2)[:500].ljust(500, b"t")
    one, many = (len(pack_batch(batch_of([tables] * count), deflate=True).data) for count in (1, 16))
    assert many < 2 * one


@given(st.binary(max_size=400))
def test_random_bytes_are_no_body(data: bytes) -> None:
    with pytest.raises(MessageError):
        inflate(data, LIMIT)


@given(st.lists(blobs, max_size=3), st.data())
def test_changed_truncated_and_prolonged_bodies_cause_only_our_errors(
    pictures: list[bytes], data: st.DataObject
) -> None:
    packed = zlib.compress(encode_msgpack(batch_of(pictures)))
    at = data.draw(st.integers(0, len(packed) - 1))
    with pytest.raises(MessageError):
        inflate(packed[:at], LIMIT)
    with pytest.raises(MessageError, match="more behind it"):
        inflate(packed + data.draw(st.binary(min_size=1, max_size=9)), LIMIT)
    changed = packed[:at] + bytes([packed[at] ^ data.draw(st.integers(1, 255))]) + packed[at + 1 :]
    with pytest.raises((MessageError, SizeLimitError)):  # the stream ends with a checksum
        inflate(changed, LIMIT)


@pytest.mark.parametrize(("size", "fits"), [(LIMIT - 1, True), (LIMIT, True), (LIMIT + 1, False)])
def test_the_limit_is_exact(size: int, fits: bool) -> None:
    packed = zlib.compress(bytes(size))
    if fits:
        assert len(inflate(packed, LIMIT)) == size
    else:
        with pytest.raises(SizeLimitError, match=f"at most {LIMIT} bytes once inflated"):
            inflate(packed, LIMIT)


def test_a_bomb_is_refused_without_making_what_is_in_it() -> None:
    stream = zlib.compressobj(9)
    bomb = b"".join([*(stream.compress(bytes(1 << 20)) for _ in range(256)), stream.flush()])
    assert len(bomb) < 1 << 19
    tracemalloc.start()
    try:
        with pytest.raises(SizeLimitError):
            inflate(bomb, 1 << 20)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


def test_a_raw_deflate_stream_and_one_with_a_dictionary_are_refused() -> None:
    raw = zlib.compressobj(wbits=-15)
    foreign = zlib.compressobj(zdict=b"agreed elsewhere")
    for stream in (raw, foreign):
        data = stream.compress(b"agreed elsewhere" * 9) + stream.flush()
        with pytest.raises(MessageError, match="RFC 1950"):
            inflate(data, LIMIT)
