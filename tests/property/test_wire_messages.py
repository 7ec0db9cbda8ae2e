"""Messages: whatever is sent arrives, and no bytes whatsoever cause anything but our own errors."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cema.errors import CemaError, MessageError, SizeLimitError
from cema.wire.messages import (
    BundleManifest,
    ErrorBody,
    GroupStatus,
    LayerStatistics,
    Message,
    Rejection,
    Sample,
    SampleBatch,
    UpdateManifest,
    UploadReceipt,
    decode_json,
    decode_msgpack,
    encode_json,
    encode_msgpack,
)

LIMIT = 1 << 20
KINDS = (SampleBatch, UploadReceipt, GroupStatus, ErrorBody, BundleManifest, UpdateManifest)
integers = st.integers(-(1 << 63), (1 << 63) - 1)
reals = st.floats(allow_nan=False, allow_infinity=False)
texts, blobs = st.text(max_size=20), st.binary(max_size=40)

samples = st.builds(
    Sample, sample_id=blobs, seq=integers, codec=texts, image=blobs, label=integers, probability=reals, entropy=reals,
    update_version=integers, captured_at_ms=integers, stats_revision=integers,
)  # fmt: skip
statistics = st.builds(LayerStatistics, mean=blobs, variance=blobs, count=integers)
batches = st.builds(
    SampleBatch, device_id=texts, boot_id=blobs, fingerprint=texts, samples_seen=integers,
    samples=st.lists(samples, max_size=4), dropped=st.dictionaries(texts, integers, max_size=3),
    stats=st.none() | st.dictionaries(texts, statistics, max_size=2),
)  # fmt: skip
rejections = st.builds(Rejection, sample_id=texts, code=texts, message=texts)
receipts = st.builds(
    UploadReceipt, accepted=integers, duplicates=integers, rejected=st.lists(rejections, max_size=3),
    latest_version=integers, server_time_ms=integers,
)  # fmt: skip
statuses = st.builds(
    GroupStatus, group=texts, fingerprint=texts, latest_version=integers, adaptation=texts, server_time_ms=integers,
    samples_seen=integers, ticks_done=integers,
)  # fmt: skip
messages = st.one_of(batches, receipts, statuses, st.builds(ErrorBody, code=texts, message=texts, hint=texts))


@given(messages)
def test_every_message_survives_msgpack_and_json(message: Message) -> None:
    assert decode_msgpack(encode_msgpack(message), type(message), limit_bytes=LIMIT) == message
    assert decode_json(encode_json(message), type(message), limit_bytes=LIMIT) == message


@given(st.binary(max_size=400), st.sampled_from(KINDS))
def test_random_bytes_are_refused_by_name(data: bytes, kind: type[Message]) -> None:
    for decode in (decode_msgpack, decode_json):
        with pytest.raises(MessageError, match=kind.__name__):
            decode(data, kind, limit_bytes=LIMIT)


@given(batches, st.data())
def test_changed_and_truncated_batches_cause_only_our_errors(batch: SampleBatch, data: st.DataObject) -> None:
    packed = encode_msgpack(batch)
    at = data.draw(st.integers(0, len(packed) - 1))
    changed = packed[:at] + data.draw(st.binary(min_size=1, max_size=4)) + packed[at + 1 :]
    try:
        assert isinstance(decode_msgpack(changed, SampleBatch, limit_bytes=LIMIT), SampleBatch)
    except CemaError as error:
        assert isinstance(error, MessageError)  # noqa: PT017  # both outcomes are right
    with pytest.raises(MessageError):
        decode_msgpack(packed[:at], SampleBatch, limit_bytes=LIMIT)


@given(batches, texts.filter(lambda name: name not in SampleBatch.__struct_fields__), integers)
def test_a_field_of_a_later_version_is_ignored(batch: SampleBatch, name: str, value: int) -> None:
    later = msgspec.msgpack.encode(msgspec.msgpack.decode(encode_msgpack(batch)) | {name: value})
    assert decode_msgpack(later, SampleBatch, limit_bytes=LIMIT) == batch


def test_a_message_beyond_the_limit_is_refused_before_it_is_parsed() -> None:
    for decode in (decode_msgpack, decode_json):
        with pytest.raises(SizeLimitError) as caught:
            decode(b"\xc1" * 101, ErrorBody, limit_bytes=100)
        assert caught.value.values == {"limit_bytes": 100, "size_bytes": 101}


@pytest.mark.parametrize("data", [b"\x91" * 200_000, b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b""])
def test_deep_and_lying_msgpack_is_refused(data: bytes) -> None:
    with pytest.raises(MessageError):
        decode_msgpack(data, SampleBatch, limit_bytes=LIMIT)


@pytest.mark.parametrize("data", [b"[" * 200_000, b'{"code":' * 100_000, b'{"code": "\xff", "message": ""}'])
def test_deep_and_garbled_json_is_refused(data: bytes) -> None:
    with pytest.raises(MessageError):
        decode_json(data, ErrorBody, limit_bytes=LIMIT)
