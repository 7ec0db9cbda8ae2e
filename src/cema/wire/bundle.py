"""A bundle: everything a device needs to run a model, in one uncompressed zip.

``model.onnx`` holds the graph and all weights but those of the norm layers; they lie in ``norm.bin`` as external
data, so that a session can be built with other values (ADR 0002). ``manifest.json`` holds preprocessing, classes
and the norm table. The fingerprint binds all of it: an update names the fingerprint it was made for.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from cema.errors import BundleError, SizeLimitError, shown
from cema.types import Float32Array, NormParameters
from cema.wire.image import MAX_PIXELS
from cema.wire.messages import PROTOCOL_VERSION, BundleManifest, NormTensor, Preprocess
from cema.wire.preprocess import INTERPOLATIONS

MAX_BUNDLE_BYTES = 1024 * 1024 * 1024
MODEL_FILE, NORM_FILE, MANIFEST_FILE = "model.onnx", "norm.bin", "manifest.json"
STATISTICS_FILE = "statistics.onnx"
_FILES = (MANIFEST_FILE, MODEL_FILE, NORM_FILE)
SHARE_INPUT = "statistics.share"
"""Of ``statistics.onnx``, float32 [L]: how far a layer goes from the statistics it is given to those of the batch."""
_ROLES = ("weight", "bias", "running_mean", "running_var")
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)
_ITEM_BYTES = 4
MAX_DIMENSIONS = 32
"""Of a tensor: what every NumPy can hold."""
_SMALLEST_STD, _LARGEST_MEAN = 1e-6, 1e6
"""Of pixel values in 0..1; beyond, normalised pixels are no longer float32."""
INPUT_TYPES = ("uint8", "float32")
PRECISIONS = ("float32", "int8")


class MeasuredLayer(NamedTuple):
    """A batch norm by the torch names of its tensors."""

    weight: str
    bias: str
    mean: str
    var: str


@dataclass(frozen=True)
class Bundle:
    """A checked bundle in memory. statistics: ``statistics.onnx``, empty if there is none."""

    manifest: BundleManifest
    model: bytes
    norm: bytes
    statistics: bytes = b""

    def source_parameters(self) -> NormParameters:
        """The norm tensors as trained, float32 by torch name: version 0."""
        return {tensor.name: _tensor(self.norm, tensor) for tensor in self.manifest.norm}

    @property
    def measures(self) -> bool:
        """Whether a device can measure the norm statistics of this model."""
        return bool(self.statistics)

    @property
    def follows(self) -> bool:
        """Whether the model has running statistics at all."""
        return any(tensor.role == "running_mean" for tensor in self.manifest.norm)


def fingerprint(
    model: bytes, norm: bytes, preprocess: Preprocess, classes: Sequence[str], table: Sequence[NormTensor],
    statistics: bytes = b"",
) -> str:  # fmt: skip
    """sha256 (hex) over graph, norm weights, preprocessing, classes, norm table and, if any, the statistics graph."""
    digest = hashlib.sha256()
    recipe = msgspec.json.encode([preprocess, list(classes), list(table)])
    for part in (model, norm, recipe, *([statistics] if statistics else [])):
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def measured_layers(norm: Sequence[NormTensor]) -> list[MeasuredLayer]:
    """The layers that a statistics graph measures: batch norms with all four tensors, in the model's order."""
    roles: dict[str, dict[str, str]] = {}
    for tensor in norm:
        if tensor.kind == "batch_norm":
            roles.setdefault(tensor.name.rpartition(".")[0], {})[tensor.role] = tensor.name
    whole = [found for found in roles.values() if found.keys() >= set(_ROLES)]
    return [MeasuredLayer(*(found[role] for role in _ROLES)) for found in whole]


def shared_weights(bundle: Bundle) -> dict[str, Float32Array]:
    """What ``statistics.onnx`` takes from ``model.onnx``, by initializer: for ONNX Runtime's external initializers."""
    described = bundle.manifest.statistics
    return {
        weight.name: np.frombuffer(bundle.model, "<f4", math.prod(weight.shape), weight.offset).reshape(weight.shape)
        for weight in ([] if isinstance(described, msgspec.UnsetType) else described)
    }


def encode_bundle(bundle: Bundle) -> bytes:
    """The zip file: fixed order and dates, stored; the same bundle gives the same bytes."""
    content = {
        MANIFEST_FILE: msgspec.json.format(msgspec.json.encode(bundle.manifest), indent=1),
        MODEL_FILE: bundle.model,
        NORM_FILE: bundle.norm,
        **({STATISTICS_FILE: bundle.statistics} if bundle.statistics else {}),
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in content.items():
            archive.writestr(zipfile.ZipInfo(name, _ZIP_DATE), data)
    return buffer.getvalue()


def decode_bundle(data: bytes) -> Bundle:
    """Read and check a bundle. Raises BundleError, SizeLimitError."""
    if len(data) > MAX_BUNDLE_BYTES:
        raise SizeLimitError(f"expected a bundle of at most {MAX_BUNDLE_BYTES} bytes, got {len(data)}")
    content = _read_zip(data)
    try:
        manifest = msgspec.json.decode(content[MANIFEST_FILE], type=BundleManifest)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise BundleError(f"expected a bundle manifest in {MANIFEST_FILE}: {error}") from error
    bundle = Bundle(manifest, content[MODEL_FILE], content[NORM_FILE], content.get(STATISTICS_FILE, b""))
    _check(bundle)
    return bundle


def load_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Read a bundle file. Raises BundleError (also when it cannot be read)."""
    try:
        return decode_bundle(Path(path).read_bytes())
    except OSError as error:
        raise BundleError(f"expected a readable bundle file at {path}: {error.strerror}") from error


def _read_zip(data: bytes) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
            if tuple(info.filename for info in infos) not in (_FILES, (*_FILES, STATISTICS_FILE)):
                got = ", ".join(shown(info.filename) for info in infos[:5])
                raise BundleError(f"expected the files {', '.join(_FILES)}, got {got or 'none'}")
            if any(info.compress_type != zipfile.ZIP_STORED or info.file_size > len(data) for info in infos):
                raise BundleError("expected stored (uncompressed) files inside the bundle")
            return {info.filename: archive.read(info) for info in infos}
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise BundleError(
            f"expected a complete bundle, got {len(data)} bytes: {error}", hint="fetch or build it again"
        ) from error


def _check(bundle: Bundle) -> None:
    manifest = bundle.manifest
    if manifest.protocol != PROTOCOL_VERSION:
        raise BundleError(f"expected bundle protocol {PROTOCOL_VERSION}, got {manifest.protocol}", hint="upgrade cema")
    actual = fingerprint(
        bundle.model, bundle.norm, manifest.preprocess, manifest.classes, manifest.norm, bundle.statistics
    )
    if actual != manifest.fingerprint:
        raise BundleError(f"expected content with fingerprint {manifest.fingerprint[:12]}, got {actual[:12]}")
    if manifest.input_type not in (*INPUT_TYPES, msgspec.UNSET):
        raise BundleError(
            f"expected an input of {' or '.join(INPUT_TYPES)}, got {shown(manifest.input_type)}",
            hint="upgrade cema",
        )
    if manifest.precision not in (*PRECISIONS, msgspec.UNSET):
        raise BundleError(
            f"expected a precision of {' or '.join(PRECISIONS)}, got {shown(manifest.precision)}",
            hint="upgrade cema",
        )
    names, initializers = {each.name for each in manifest.norm}, {each.initializer for each in manifest.norm}
    if not manifest.norm or len(names) != len(manifest.norm) or len(initializers) != len(manifest.norm):
        raise BundleError("expected at least one patchable norm tensor, each with a name and an initializer of its own")
    for tensor in manifest.norm:
        _tensor(bundle.norm, tensor)
    _check_statistics(bundle)
    _check_recipe(manifest.preprocess)


def _check_statistics(bundle: Bundle) -> None:
    described = bundle.manifest.statistics
    if (described is msgspec.UNSET) != (not bundle.statistics):
        raise BundleError(f"expected {STATISTICS_FILE} and its description, or neither", hint="build the bundle again")
    for weight in [] if isinstance(described, msgspec.UnsetType) else described:
        if not _lies_within(len(bundle.model), weight.shape, weight.offset):
            raise BundleError(f"expected weight {shown(weight.name)} inside {MODEL_FILE} ({len(bundle.model)} bytes)")


def _check_recipe(recipe: Preprocess) -> None:
    if len(recipe.mean) != 3 or len(recipe.std) != 3 or min(recipe.std) < _SMALLEST_STD:
        raise BundleError("expected three means and three positive stds in the preprocessing")
    if max(map(abs, (*recipe.mean, *recipe.std))) > _LARGEST_MEAN:
        raise BundleError(f"expected means and stds up to {_LARGEST_MEAN:g}, of pixel values in 0..1")
    if min(recipe.size) < 1 or math.prod(recipe.size) > MAX_PIXELS or not 0 <= recipe.resize_short <= MAX_PIXELS:
        raise BundleError(
            f"expected an input of 1 to {MAX_PIXELS} pixels, got {recipe.size}, resize_short {recipe.resize_short}"
        )
    if recipe.interpolation not in INTERPOLATIONS:
        raise BundleError(f"expected interpolation {' or '.join(INTERPOLATIONS)}, got {shown(recipe.interpolation)}")


def _tensor(norm: bytes, tensor: NormTensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    if not _lies_within(len(norm), tensor.shape, tensor.offset):
        raise BundleError(
            f"expected {shown(tensor.name)} inside {NORM_FILE} ({len(norm)} bytes), got offset {tensor.offset}"
        )
    return np.frombuffer(norm, "<f4", math.prod(tensor.shape), tensor.offset).reshape(tensor.shape)


def _lies_within(size_bytes: int, shape: Sequence[int], offset: int) -> bool:
    """Whether a float32 tensor at ``offset`` is inside of so many bytes, and an array can have its shape."""
    possible = offset >= 0 and len(shape) <= MAX_DIMENSIONS and min(shape, default=1) >= 1
    return possible and offset + math.prod(shape) * _ITEM_BYTES <= size_bytes
