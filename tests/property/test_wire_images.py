"""Images: lossless codecs are exact, lossy ones keep size and look, hostile bytes cause only our errors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cema.errors import ImageError, SizeLimitError, WireError
from cema.types import Uint8Array
from cema.wire.image import CODECS, check_image, decode_image, encode_image

pictures = arrays(np.uint8, st.tuples(st.integers(1, 24), st.integers(1, 24), st.just(3)))
CARD = np.stack([np.add.outer(np.arange(24), np.arange(24)) * 5] * 3, -1).astype(np.uint8)


@given(pictures, st.sampled_from(["png", "raw"]))
def test_lossless_codecs_return_the_same_pixels(picture: Uint8Array, codec: str) -> None:
    np.testing.assert_array_equal(decode_image(encode_image(picture, codec), codec), picture)


@given(pictures, st.sampled_from(["jpeg", "webp"]))
def test_lossy_codecs_keep_the_size(picture: Uint8Array, codec: str) -> None:
    decoded = decode_image(encode_image(picture, codec), codec)
    assert (decoded.shape, decoded.dtype) == (picture.shape, np.dtype(np.uint8))


@given(pictures, st.sampled_from(["jpeg", "webp", "png"]))
def test_the_codec_can_be_left_to_the_header(picture: Uint8Array, codec: str) -> None:
    data = encode_image(picture, codec)
    np.testing.assert_array_equal(decode_image(data), decode_image(data, codec))


@given(pictures, st.sampled_from(CODECS), st.sampled_from(CODECS))
def test_a_picture_of_another_codec_is_refused(picture: Uint8Array, codec: str, other: str) -> None:
    if codec != other:
        with pytest.raises(WireError):
            decode_image(encode_image(picture, codec), other)


@given(st.binary(max_size=300), st.sampled_from([*CODECS, None]))
def test_random_bytes_are_no_picture(data: bytes, codec: str | None) -> None:
    with pytest.raises(WireError):
        decode_image(data, codec, max_pixels=1000)


@given(st.sampled_from(CODECS), st.data())
def test_changed_pictures_decode_or_cause_our_errors(codec: str, data: st.DataObject) -> None:
    encoded = bytearray(encode_image(CARD, codec))
    for _ in range(data.draw(st.integers(1, 4))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    try:
        check_image(bytes(encoded), codec, max_pixels=100_000)
        decoded = decode_image(bytes(encoded), codec, max_pixels=100_000)
    except WireError:
        return
    assert decoded.dtype == np.uint8
    assert decoded.ndim == 3
    assert decoded.shape[0] * decoded.shape[1] <= 100_000


@given(st.sampled_from(CODECS), st.data())
def test_truncated_pictures_are_refused_unless_all_pixels_are_there(codec: str, data: st.DataObject) -> None:
    encoded = encode_image(CARD, codec)
    cut = data.draw(st.integers(0, len(encoded) - 1))
    try:
        decoded = decode_image(encoded[:cut], codec)
    except ImageError:
        return
    assert cut > len(encoded) // 2
    np.testing.assert_array_equal(decoded, decode_image(encoded, codec))


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_a_raw_header_cannot_promise_more_than_there_is(height: int, width: int) -> None:
    header = np.array([height, width], "<u4").tobytes()
    with pytest.raises((ImageError, SizeLimitError)):
        decode_image(header + b"\0" * 11, "raw")
