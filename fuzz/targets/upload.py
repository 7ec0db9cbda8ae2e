"""The body of an upload, plain and deflated, as far as the store."""

from __future__ import annotations

import tempfile
import zlib

import numpy as np

from cema.cloud.api.context import Context
from cema.cloud.api.samples import take
from cema.cloud.app import create_app
from cema.cloud.store.blobs import MemoryBlobs
from cema.cloud.store.memory import MemoryStore
from cema.config import ServeConfig, ServerConfig
from cema.errors import CemaError, ForbiddenError, WireError
from cema.wire.image import encode_image
from cema.wire.messages import LayerStatistics, Sample, SampleBatch, encode_msgpack

ALLOWED: tuple[type[CemaError], ...] = (WireError, ForbiddenError)
MAX_BODY_BYTES = 1 << 16
MAX_PENDING = 200
"""With more samples the store starts anew: memory must not grow with the time."""


def _batch(*codecs: str) -> SampleBatch:
    samples = [
        Sample(
            sample_id=bytes([index] * 16), seq=index, codec=codec, label=1, probability=0.5, entropy=0.5, domain=index,
            image=encode_image(np.full((4, 5, 3), 7, np.uint8), codec), update_version=0, captured_at_ms=0,
        )
        for index, codec in enumerate(codecs)
    ]  # fmt: skip
    layer = LayerStatistics(mean=bytes(8), variance=bytes(8), count=3)
    return SampleBatch(
        device_id="cam", boot_id=bytes(16), fingerprint="f", samples_seen=64, samples=samples,
        dropped={"overflow": 2}, stats={"bn": layer},
    )  # fmt: skip


_BODIES = [encode_msgpack(_batch()), encode_msgpack(_batch("png", "raw")), encode_msgpack(_batch("jpeg", "webp"))]
SEEDS = [bytes([mode]) + body for mode in (0, 1) for body in _BODIES] + [b"\2" + zlib.compress(_BODIES[1])]


def _store() -> MemoryStore:
    store = MemoryStore()
    store.put_group("g", "f", "bundle", "on", 0)
    store.enrol("cam", "g", "hash", 0)
    return store


with tempfile.TemporaryDirectory() as _folder:  # for the signing key, which nothing here needs
    _config = ServeConfig(server=ServerConfig(data_dir=_folder, max_body_bytes=MAX_BODY_BYTES))
    CONTEXT: Context = create_app(_config, _store(), MemoryBlobs()).state.context


def run(data: bytes) -> None:
    """First byte 0: a plain body, 1: deflated here so that what is inside is reached, 2: as it came, said to be
    deflated."""
    mode, body = (data[0] % 3 if data else 0), data[1:]
    if len(CONTEXT.store.pending("g", MAX_PENDING)) == MAX_PENDING:
        CONTEXT.store = _store()
    (device,) = CONTEXT.store.devices("g")
    receipt = take(CONTEXT, device, zlib.compress(body) if mode == 1 else body, deflated=mode > 0)
    assert receipt.accepted >= 0
    assert receipt.duplicates >= 0
