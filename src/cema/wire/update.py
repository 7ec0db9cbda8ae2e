"""An update: the norm parameters of one version, a few kilobytes that travel from cloud to edge.

Bytes = a safetensors file whose metadata holds the manifest (JSON, key ``cema``). Immutable, absolute (what travels
may be shorter: difference.py), identified by its sha256, signed over its exact bytes. ``open_update`` is the only way
in: it verifies the signature before it parses, and checks everything before anybody may use a number of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from cema.errors import BaseMismatchError, SizeLimitError, UpdateContentError, UpdateError, shown
from cema.types import Float32Array, NormParameters
from cema.wire import signing
from cema.wire.messages import MAX_VERSION, PROTOCOL_VERSION, BundleManifest, NormTensor, UpdateManifest

MAX_UPDATE_BYTES = 64 * 1024 * 1024
MAX_HEADER_BYTES = 4 * 1024 * 1024
_MANIFEST_KEY = "cema"
_LENGTH_BYTES = 8
Encoding = Literal["float32", "float16"]
_DTYPES = {"float32": "F32", "float16": "F16"}
"""safetensors' word for each encoding of the manifest. float16: rounded to nearest, ties to even (ADR 10)."""


@dataclass(frozen=True)
class Update:
    """A verified update. parameters: float32 tensors by torch name. content_id: sha256 of ``data``, hex."""

    manifest: UpdateManifest
    parameters: NormParameters
    data: bytes

    @property
    def content_id(self) -> str:
        return content_id(self.data)


class _Header(msgspec.Struct):
    metadata: dict[str, str] = msgspec.field(name="__metadata__", default_factory=dict)


def content_id(data: bytes) -> str:
    """sha256, hex: the name of immutable content."""
    return hashlib.sha256(data).hexdigest()


def encode_update(manifest: UpdateManifest, parameters: Mapping[str, Float32Array]) -> bytes:
    """Bytes of an update, tensors by name in order; the same input gives the same bytes.

    Raises UpdateContentError for values that no device would accept, or that ``manifest.encoding`` cannot hold.
    """
    tensors = {name: _encoded(name, value, manifest.encoding) for name, value in sorted(parameters.items())}
    return save(tensors, metadata={_MANIFEST_KEY: msgspec.json.encode(manifest).decode()})


def fits_float16(parameters: Mapping[str, Float32Array]) -> bool:
    """Whether all finite values lie within float16's range (+-65504)."""
    limit = float(np.finfo(np.float16).max)
    return all(bool((np.abs(value[np.isfinite(value)]) <= limit).all()) for value in parameters.values())


def open_update(data: bytes, bundle: BundleManifest, *, signature: str | None = None, key: str | None = None) -> Update:
    """Verify and decode an update for ``bundle``; ``key`` None skips the signature (trusted, local use).

    Raises
    ------
    SignatureError: not signed by ``key``; nothing was parsed. SizeLimitError: too many bytes.
    BaseMismatchError: made for another bundle. UpdateContentError: names, shapes or values that do not fit.
    UpdateError: not an update at all.
    """
    if len(data) > MAX_UPDATE_BYTES:
        raise SizeLimitError(f"expected an update of at most {MAX_UPDATE_BYTES} bytes, got {len(data)}")
    if key is not None:
        signing.verify(data, signature or "", key)
    manifest = read_manifest(data)
    if manifest.fingerprint != bundle.fingerprint:
        raise BaseMismatchError(
            f"this update is for bundle {manifest.fingerprint[:12]}, the device runs {bundle.fingerprint[:12]}",
            hint="fetch the group's bundle",
            expected=bundle.fingerprint,
            got=manifest.fingerprint,
        )
    return Update(manifest, _decode_tensors(data, bundle.norm, _DTYPES[manifest.encoding]), data)


def read_manifest(data: bytes) -> UpdateManifest:
    """The manifest of an update, without looking at a tensor. Raises UpdateError."""
    size = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if len(data) < _LENGTH_BYTES or size > min(MAX_HEADER_BYTES, len(data) - _LENGTH_BYTES):
        raise UpdateError(f"expected a safetensors file, got {len(data)} bytes with a header of {size}")
    try:
        header = msgspec.json.decode(data[_LENGTH_BYTES : _LENGTH_BYTES + size], type=_Header)
        manifest = msgspec.json.decode(header.metadata.get(_MANIFEST_KEY, "").encode(), type=UpdateManifest)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise UpdateError(f"expected an update manifest in the safetensors metadata: {error}") from error
    if manifest.protocol != PROTOCOL_VERSION or manifest.encoding not in _DTYPES:
        raise UpdateError(
            f"expected protocol {PROTOCOL_VERSION} with encoding {' or '.join(_DTYPES)}, "
            f"got protocol {manifest.protocol} with encoding {shown(manifest.encoding)}",
            hint="upgrade cema on this device",
        )
    if not 1 <= manifest.version <= MAX_VERSION:
        raise UpdateError(f"expected a version in 1..{MAX_VERSION}, got {manifest.version}")
    return manifest


def _encoded(name: str, value: Float32Array, encoding: str) -> NDArray[np.floating[Any]]:
    value = np.ascontiguousarray(value, np.float32)
    _check_values(name, value)
    if encoding == "float32":
        return value
    if not fits_float16({name: value}):
        raise UpdateContentError(f"expected values that float16 can hold in {name}, got {float(np.abs(value).max())}")
    return value.astype(np.float16)


def _decode_tensors(data: bytes, norm: list[NormTensor], dtype: str) -> NormParameters:
    try:
        entries: dict[str, Mapping[str, Any]] = dict(deserialize(data))  # type: ignore[no-untyped-call]
    except (SafetensorError, ValueError) as error:
        raise UpdateError(f"expected a safetensors file: {error}") from error
    expected = {tensor.name: tensor for tensor in norm}
    if entries.keys() != expected.keys():
        missing, extra = _first(expected.keys() - entries.keys()), _first(entries.keys() - expected.keys())
        raise UpdateContentError(f"expected the bundle's norm tensors; missing [{missing}], not known [{extra}]")
    return {name: _decode_tensor(name, entry, expected[name], dtype) for name, entry in entries.items()}


def _first(names: Set[str]) -> str:
    return ", ".join(map(shown, sorted(names)[:3]))


def _decode_tensor(name: str, entry: Mapping[str, Any], expected: NormTensor, dtype: str) -> Float32Array:
    shape = tuple(entry["shape"])
    if entry["dtype"] != dtype or shape != tuple(expected.shape):
        raise UpdateContentError(f"expected {name} as {dtype} {expected.shape}, got {entry['dtype']} {shape}")
    stored = np.frombuffer(bytes(entry["data"]), "<f4" if dtype == "F32" else "<f2")
    value = stored.astype(np.float32, copy=False).reshape(shape)
    _check_values(name, value)
    return value


def _check_values(name: str, value: Float32Array) -> None:
    if not np.isfinite(value).all():
        raise UpdateContentError(f"expected finite values in {name}, got nan or inf", tensor=name)
    if name.endswith("running_var") and (value < 0).any():
        raise UpdateContentError(f"expected variances >= 0 in {name}, got {float(value.min())}", tensor=name)
