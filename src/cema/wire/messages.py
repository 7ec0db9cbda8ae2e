"""The protocol: every message that crosses the network, as typed structs (docs/protocol.md explains them).

Uploads are msgpack maps, answers are JSON. Field names are the wire format: they are never renamed, new
fields get a default, and unknown fields are ignored, so that old devices and new clouds understand
each other. Golden files in ``tests/golden`` must decode for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from cema.errors import MessageError, SizeLimitError

PROTOCOL_VERSION = 1
MAX_VERSION = (1 << 31) - 1
"""Of an update: what devices and cloud can ask each other for."""
SAMPLE_ID_BYTES = 16
BOOT_ID_BYTES = 16

SIGNATURE_HEADER = "Cema-Signature"
"""Carries the base64 Ed25519 signature over the exact bytes of the body (updates and bundles)."""
STATEMENT_HEADER = "Cema-Bundle-Statement"
VERSION_HEADER = "Cema-Update-Version"
FINGERPRINT_HEADER = "Cema-Bundle-Fingerprint"
BASE_HEADER = "Cema-Update-Base"
PROBABILITIES_OUTPUT, ENTROPY_OUTPUT, LABEL_OUTPUT, CONFIDENCE_OUTPUT = (
    "probabilities",
    "entropy",
    "label",
    "confidence",
)
"""Outputs that a bundle's graph may have beside the logits: all of them or none."""
MSGPACK_TYPE = "application/msgpack"
UPDATE_TYPE = "application/vnd.cema.update"
BUNDLE_TYPE = "application/vnd.cema.bundle"


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all messages: immutable, map-encoded."""


class Sample(Message, frozen=True, kw_only=True):
    """One selected image and what the edge thought of it.

    sample_id: 16 random bytes, the idempotency key. seq: counts this boot's selected samples from 0.
    codec: jpeg | webp | png | raw. image: the encoded bytes. entropy: nats.
    captured_at_ms: Unix ms by the cloud's clock, as far as the device knows it.
    domain: a number that the device draws anew whenever the look of its stream changes; UNSET, and not written, if it
    does not watch.
    """

    sample_id: bytes
    seq: int
    codec: str
    image: bytes
    label: int
    probability: float
    entropy: float
    update_version: int
    captured_at_ms: int
    stats_revision: int = 0
    domain: int | msgspec.UnsetType = msgspec.UNSET

    @property
    def known_domain(self) -> int:
        """0 for a device that does not watch."""
        return 0 if isinstance(self.domain, msgspec.UnsetType) else self.domain


class LayerStatistics(Message, frozen=True, kw_only=True):
    """Mean and variance per channel of one norm layer's input, over ``count`` images (float32 little endian)."""

    mean: bytes
    variance: bytes
    count: int


class SampleBatch(Message, frozen=True, kw_only=True):
    """Body of ``POST /v1/groups/{group}/samples``.

    fingerprint: of the bundle whose model selected the samples. samples_seen: images predicted since boot,
    cumulative (drives the cloud's ticks). dropped: samples lost since boot, by reason.
    """

    device_id: str
    boot_id: bytes
    fingerprint: str
    samples_seen: int
    samples: list[Sample]
    protocol: int = PROTOCOL_VERSION
    dropped: dict[str, int] = {}
    stats: dict[str, LayerStatistics] | None = None


class Rejection(Message, frozen=True, kw_only=True):
    """One sample the cloud will not take, ever: the device deletes it and counts it."""

    sample_id: str
    code: str
    message: str


class UploadReceipt(Message, frozen=True, kw_only=True):
    """Answer to an upload: what is durable now. Everything not in ``rejected`` is acknowledged."""

    accepted: int
    duplicates: int
    rejected: list[Rejection]
    latest_version: int
    server_time_ms: int


class GroupStatus(Message, frozen=True, kw_only=True):
    """Answer of ``GET /v1/groups/{group}``: what a device needs to know before it starts.

    samples_seen: images predicted by the whole group. ticks_done: how far the cloud has come with them (64 a tick).
    rotate_key: the device shall take a new key; UNSET, and not written, for no. stats_owner: cloud | edge, whose norm
    statistics devices of this group use.
    """

    group: str
    fingerprint: str
    latest_version: int
    adaptation: str
    server_time_ms: int
    samples_seen: int = 0
    ticks_done: int = 0
    rotate_key: bool | msgspec.UnsetType = msgspec.UNSET
    stats_owner: str = "cloud"


class KeyProposal(Message, frozen=True, kw_only=True):
    """Body of ``POST /v1/groups/{group}/key``: the key that the device has made, as its sha256 (hexadecimal)."""

    device_id: str
    key_sha256: str


class KeyReceipt(Message, frozen=True, kw_only=True):
    """Answer to a ``KeyProposal``, the same hash: from now on the key is good, and the old one until it is used."""

    key_sha256: str


class ErrorBody(Message, frozen=True, kw_only=True):
    """The one shape of every error answer."""

    code: str
    message: str
    hint: str = ""


class Preprocess(Message, frozen=True, kw_only=True):
    """How a photograph becomes the model's input; part of the bundle, so edge and cloud cannot differ.

    size: (height, width) in px of the input. resize_short: scale the short side to this many px first (0 = resize
    straight to ``size``). mean, std: per channel, of pixel values in 0..1. interpolation: bilinear | bicubic | nearest.
    """

    size: tuple[int, int]
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    resize_short: int = 0
    interpolation: str = "bilinear"


class NormTensor(Message, frozen=True, kw_only=True):
    """One patchable tensor: its name in torch, the graph's initializer, and where it lies in ``norm.bin``.

    kind: batch_norm | layer_norm | group_norm. role: weight | bias | running_mean | running_var. eps: of its layer.
    offset: bytes into norm.bin, float32 little endian.
    """

    name: str
    initializer: str
    kind: str
    role: str
    shape: tuple[int, ...]
    eps: float
    offset: int


class SharedWeight(Message, frozen=True, kw_only=True):
    """A weight of ``statistics.onnx`` that lies in ``model.onnx``. offset: bytes, float32 little endian."""

    name: str
    shape: tuple[int, ...]
    offset: int


class BundleManifest(Message, frozen=True, kw_only=True):
    """``manifest.json`` of a bundle. fingerprint = sha256 over graphs, norm table, preprocessing and classes.

    input_type: ``uint8`` (pixels [B, H, W, 3], the graph normalises them) or ``float32`` (normalised, [B, 3, H, W]);
    UNSET, as in the first bundles, means float32 and is not written, so that they keep their bytes.
    precision: ``int8`` when the graph computes in integers (ADR 13); UNSET means float32. Norm tensors and updates are
    float32 either way.
    statistics: weights that ``statistics.onnx`` shares with ``model.onnx``; UNSET for a bundle without that
    graph, whose device cannot measure.
    """

    fingerprint: str
    model: str
    classes: list[str]
    preprocess: Preprocess
    input_name: str
    output_name: str
    norm: list[NormTensor]
    protocol: int = PROTOCOL_VERSION
    opset: int = 0
    input_type: str | msgspec.UnsetType = msgspec.UNSET
    precision: str | msgspec.UnsetType = msgspec.UNSET
    statistics: list[SharedWeight] | msgspec.UnsetType = msgspec.UNSET


class UpdateManifest(Message, frozen=True, kw_only=True):
    """Metadata of an update: which group and bundle it is for, and who made it.

    version rises by one per group, 0 is the source. rollback_of: the version that this one takes back, if any.
    stats_owner: cloud | edge, whose running statistics the edge shall use. created_at_ms: server clock, Unix ms.
    domain: of a group with one device, what its stream looked like (``Sample``): the weights are good for that alone;
    UNSET, and not written, where they are for all.
    """

    group: str
    version: int
    fingerprint: str
    method: str
    created_at_ms: int
    protocol: int = PROTOCOL_VERSION
    encoding: str = "float32"
    stats_owner: str = "cloud"
    rollback_of: int | None = None
    domain: int | msgspec.UnsetType = msgspec.UNSET


M = TypeVar("M", bound=Message)


def encode_msgpack(message: Message) -> bytes:
    return msgspec.msgpack.encode(message)


def encode_json(message: Message) -> bytes:
    return msgspec.json.encode(message)


def decode_msgpack(data: bytes, kind: type[M], *, limit_bytes: int) -> M:
    """Typed decoding of hostile bytes.

    Raises
    ------
    SizeLimitError: more than ``limit_bytes``. MessageError: not msgpack, or not a ``kind``.
    """
    _check_size(data, limit_bytes)
    try:
        return _MSGPACK[kind].decode(data) if kind in _MSGPACK else msgspec.msgpack.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise MessageError(
            f"expected a msgpack {kind.__name__}, got {len(data)} bytes that are not: {error}",
            hint="see docs/protocol.md for the schema; check that the body is complete",
        ) from error


def decode_json(data: bytes, kind: type[M], *, limit_bytes: int) -> M:
    """As ``decode_msgpack``, for JSON."""
    _check_size(data, limit_bytes)
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise MessageError(
            f"expected a JSON {kind.__name__}, got {len(data)} bytes that are not: {error}",
            hint="see docs/protocol.md for the schema",
        ) from error


def as_dict(message: Message) -> dict[str, Any]:
    """JSON-ready dictionary of a message."""
    built = msgspec.to_builtins(message)
    assert isinstance(built, Mapping)
    return dict(built)


def _check_size(data: bytes, limit_bytes: int) -> None:
    if len(data) > limit_bytes:
        raise SizeLimitError(
            f"expected at most {limit_bytes} bytes, got {len(data)}",
            hint="send fewer samples per batch",
            limit_bytes=limit_bytes,
            size_bytes=len(data),
        )


_MSGPACK: dict[type[Message], msgspec.msgpack.Decoder[Any]] = {SampleBatch: msgspec.msgpack.Decoder(SampleBatch)}
