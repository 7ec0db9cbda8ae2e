"""Every message of the protocol in both forms, as either side reads it from the other."""

from __future__ import annotations

from cema.errors import MessageError, SizeLimitError
from cema.wire.messages import (
    BundleManifest,
    ErrorBody,
    GroupStatus,
    KeyProposal,
    KeyReceipt,
    Message,
    Preprocess,
    Rejection,
    SampleBatch,
    UpdateManifest,
    UploadReceipt,
    decode_json,
    decode_msgpack,
    encode_json,
    encode_msgpack,
)

ALLOWED = (MessageError, SizeLimitError)
LIMIT_BYTES = 1 << 16
_EXAMPLES: list[Message] = [
    ErrorBody(code="x", message="y"),
    GroupStatus(group="g", fingerprint="f", latest_version=3, adaptation="on", server_time_ms=5, rotate_key=True),
    KeyProposal(device_id="cam", key_sha256="0" * 64),
    KeyReceipt(key_sha256="0" * 64),
    UploadReceipt(
        accepted=1, duplicates=0, latest_version=1, server_time_ms=5,
        rejected=[Rejection(sample_id="00", code="image_invalid", message="no")],
    ),
    SampleBatch(device_id="cam", boot_id=bytes(16), fingerprint="f", samples_seen=1, samples=[]),
    UpdateManifest(group="g", version=1, fingerprint="f", method="m", created_at_ms=1, rollback_of=1),
    BundleManifest(
        fingerprint="f", model="m", classes=["a"], preprocess=Preprocess(size=(8, 8)), input_name="i", output_name="o",
        norm=[],
    ),
]  # fmt: skip
SEEDS = [
    bytes([2 * number + form]) + encode(example)
    for number, example in enumerate(_EXAMPLES)
    for form, encode in enumerate((encode_json, encode_msgpack))
]


def run(data: bytes) -> None:
    """The first byte chooses message and form. What was read can be written and read again."""
    number, form = divmod(data[0] % (2 * len(_EXAMPLES)) if data else 0, 2)
    kind = type(_EXAMPLES[number])
    decode, encode = (decode_json, encode_json) if form == 0 else (decode_msgpack, encode_msgpack)
    message = decode(data[1:], kind, limit_bytes=LIMIT_BYTES)
    assert encode(decode(encode(message), kind, limit_bytes=4 * LIMIT_BYTES)) == encode(message)
