"""A bundle: the zip as it came, and a manifest that has the right sums around whatever is in it."""

from __future__ import annotations

import io
import zipfile

import msgspec
import numpy as np

from cema.errors import BundleError, CemaError, SizeLimitError
from cema.wire.bundle import Bundle, decode_bundle, encode_bundle, fingerprint, measured_layers, shared_weights
from cema.wire.messages import BundleManifest, NormTensor, Preprocess, SharedWeight

ALLOWED: tuple[type[CemaError], ...] = (BundleError, SizeLimitError)
_MODEL, _NORM = bytes(range(64)), np.ones(12, "<f4").tobytes()
_STATISTICS = b"statistics"
_TABLE = [
    NormTensor(
        name=f"bn.{role}", initializer=role, kind="batch_norm", role=role, shape=(3,), eps=1e-5, offset=12 * number
    )
    for number, role in enumerate(("weight", "bias", "running_mean", "running_var"))
]


def _bundle(statistics: bytes) -> Bundle:
    recipe, classes = Preprocess(size=(8, 8)), ["a", "b"]
    shared = [SharedWeight(name="w", shape=(2, 2), offset=8)] if statistics else msgspec.UNSET
    manifest = BundleManifest(
        fingerprint=fingerprint(_MODEL, _NORM, recipe, classes, _TABLE, statistics), model="m", classes=classes,
        preprocess=recipe, input_name="x", output_name="y", norm=_TABLE, statistics=shared,
    )  # fmt: skip
    return Bundle(manifest, _MODEL, _NORM, statistics)


_BUNDLES = [_bundle(b""), _bundle(_STATISTICS)]
SEEDS = [b"\0" + encode_bundle(bundle) for bundle in _BUNDLES] + [
    bytes([1 + number]) + msgspec.json.encode(bundle.manifest) for number, bundle in enumerate(_BUNDLES)
]


def run(data: bytes) -> None:
    """First byte 0: the whole file; 1, 2: a manifest, with sums that are right, without and with a statistics graph."""
    mode, body = (data[0] % 3 if data else 0), data[1:]
    statistics = _STATISTICS if mode == 2 else b""
    bundle = decode_bundle(_zipped(body, statistics) if mode else body)
    parameters = bundle.source_parameters()
    assert parameters.keys() == {tensor.name for tensor in bundle.manifest.norm}
    assert all(value.nbytes <= len(bundle.norm) for value in parameters.values())
    assert len(measured_layers(bundle.manifest.norm)) <= len(parameters)
    shared_weights(bundle)


def _zipped(manifest: bytes, statistics: bytes) -> bytes:
    try:
        read = msgspec.json.decode(manifest, type=BundleManifest)
        whole = fingerprint(_MODEL, _NORM, read.preprocess, read.classes, read.norm, statistics)
        manifest = msgspec.json.encode(msgspec.structs.replace(read, fingerprint=whole))
    except (msgspec.MsgspecError, UnicodeError, RecursionError, OverflowError):
        pass  # goes into the file as it is
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        entries = {"manifest.json": manifest, "model.onnx": _MODEL, "norm.bin": _NORM, "statistics.onnx": statistics}
        for name, content in entries.items():
            if content or name != "statistics.onnx":
                archive.writestr(name, content)
    return buffer.getvalue()
