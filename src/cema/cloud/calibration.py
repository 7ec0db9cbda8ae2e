"""Pictures as the device will see them, and what the tensors inside a model look like on them.

Activations get their int8 ranges from here. The source model's will do for adapted ones, too: a norm that follows the
world keeps what comes out of it where it was.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from cema.cloud.export import open_session
from cema.cloud.npz import array_header
from cema.cloud.quantise import Observed, observable
from cema.errors import CemaError, ConfigError
from cema.types import Float32Array, Uint8Array
from cema.wire.bundle import Bundle
from cema.wire.image import MAX_IMAGE_BYTES, MAX_PIXELS
from cema.wire.messages import Preprocess
from cema.wire.preprocess import fit, fit_encoded, normalise

PICTURES = 256
"""Taken, evenly spread over what is there: one half for the ranges, the other to check. More change nothing that shows
(docs/adr/0013)."""
PICTURES_MIN = 32
"""Fewer say too little: one label among 16 is 6 % of the agreement."""
RANGE_MARGIN = 1.25
"""Ranges are wider than seen by this factor: an update may move them, and what is beyond saturates. Measured (ADR 13):
costs nothing that shows on the source, and halves the error under norms that are changed by a third."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_BATCH = 16
_HINT = (
    f"give a folder with at least {PICTURES_MIN} pictures ({', '.join(SUFFIXES)}), "
    "or an .npz with 'images' uint8 [N, H, W, 3]"
)


def load_pictures(path: Path, recipe: Preprocess) -> Uint8Array:
    """At most ``PICTURES`` of a folder (with its subfolders) or of an npz file, fitted: uint8 [N, H, W, 3].

    Raises ConfigError: nothing there, too few, or a picture that cannot be read.
    """
    if path.is_dir():
        pictures = _from_folder(path, recipe)
    elif path.is_file():
        pictures = _from_npz(path, recipe)
    else:
        raise ConfigError(f"expected calibration pictures at {path}, there is nothing", hint=_HINT)
    return np.stack(list(pictures))


def _from_folder(path: Path, recipe: Preprocess) -> Iterator[Uint8Array]:
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    for index in _spread(len(files), path):
        try:
            if files[index].stat().st_size > MAX_IMAGE_BYTES:
                raise ConfigError(f"expected at most {MAX_IMAGE_BYTES} bytes in {files[index]}")
            yield fit_encoded(files[index].read_bytes(), recipe)
        except (OSError, CemaError) as error:
            raise ConfigError(
                f"expected a readable picture at {files[index]}: {error}", hint="remove it from the calibration folder"
            ) from error


def _from_npz(path: Path, recipe: Preprocess) -> Iterator[Uint8Array]:
    """Reads one picture after the other, so that the size of the file does not matter."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("images.npy") as member:
            shape, dtype, by_column = array_header(member, archive.getinfo("images.npy").file_size)
            if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or not 0 < shape[1] * shape[2] <= MAX_PIXELS:
                raise ConfigError(
                    f"expected images as uint8 [N, H, W, 3] in {path}, got {dtype} {[*shape]}", hint=_HINT
                )
            if by_column:
                raise ConfigError(
                    f"expected images in row order in {path}", hint="save numpy.ascontiguousarray(images)"
                )
            wanted = set(_spread(shape[0], path))
            for index in range(max(wanted) + 1):
                data = member.read(shape[1] * shape[2] * 3)
                if index in wanted:
                    yield fit(np.frombuffer(data, np.uint8).reshape(shape[1:]), recipe)
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ConfigError(f"expected an npz file with 'images' at {path}: {error}", hint=_HINT) from error


def _spread(count: int, path: Path) -> list[int]:
    """Which pictures are taken."""
    if count < PICTURES_MIN:
        raise ConfigError(f"expected at least {PICTURES_MIN} calibration pictures in {path}, got {count}", hint=_HINT)
    return [index * count // PICTURES for index in range(PICTURES)] if count > PICTURES else list(range(count))


def given(bundle: Bundle, images_BHWC: Uint8Array) -> Uint8Array | Float32Array:
    """What the bundle's graph takes of fitted pictures."""
    manifest = bundle.manifest
    return images_BHWC if manifest.input_type == "uint8" else normalise(images_BHWC, manifest.preprocess)


def observe(bundle: Bundle, images_NHWC: Uint8Array) -> dict[str, Observed]:
    """Range and channel means of every tensor that may be quantised, over all pictures, with the source parameters."""
    model = onnx.load_from_string(bundle.model)
    tensors = observable(model)
    wanted = _reductions(model, tensors)
    session = open_session(Bundle(bundle.manifest, model.SerializeToString(), bundle.norm), bundle.source_parameters())
    seen: dict[str, list[Float32Array]] = {name: [] for name in wanted}
    batches = [images_NHWC[start : start + _BATCH] for start in range(0, len(images_NHWC), _BATCH)]
    for batch in (given(bundle, images) for images in batches):
        for name, value in zip(wanted, session.run(wanted, {bundle.manifest.input_name: batch}), strict=True):
            seen[name].append(value)
    return {
        name: Observed(
            RANGE_MARGIN * float(min(seen[f"{name}.low"])),
            RANGE_MARGIN * float(max(seen[f"{name}.high"])),
            np.average(seen[f"{name}.mean"], axis=0, weights=[*map(len, batches)]) if layer else None,
        )
        for name, layer in tensors.items()
    }


def _reductions(model: onnx.ModelProto, tensors: dict[str, str]) -> list[str]:
    """Adds minimum, maximum and, for what enters a layer, channel means as outputs: whole tensors would fill memory."""
    graph, before = model.graph, len(model.graph.output)
    graph.initializer.append(numpy_helper.from_array(np.asarray([0, 2, 3], np.int64), "observe.Conv"))
    graph.initializer.append(numpy_helper.from_array(np.asarray([0], np.int64), "observe.Gemm"))
    for name, layer in tensors.items():
        steps = [("ReduceMin", [name], "low"), ("ReduceMax", [name], "high")]
        steps += [("ReduceMean", [name, f"observe.{layer}"], "mean")] if layer else []
        for operation, inputs, suffix in steps:
            graph.node.append(helper.make_node(operation, inputs, [f"{name}.{suffix}"], keepdims=0))
            graph.output.append(helper.make_tensor_value_info(f"{name}.{suffix}", onnx.TensorProto.FLOAT, None))
    return [output.name for output in graph.output[before:]]
