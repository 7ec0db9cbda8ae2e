"""Bundles that a device must not run: containers with tricks, manifests that lie, graphs that are none or read files.

``build`` gives (bytes, signature).
"""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cema.wire import signing
from cema.wire.bundle import Bundle, encode_bundle, fingerprint
from cema.wire.image import MAX_PIXELS
from cema.wire.messages import BundleManifest, SharedWeight
from hostile.case import MIB, Case
from hostile.keys import OTHER_BUNDLE, PRIVATE, STRANGER, signed

CONTAINER, MANIFEST, GRAPH = "bundle container", "bundle manifest", "bundle graph"
BAD, FORGED = "bundle_invalid", "signature_invalid"
GOOD = encode_bundle(OTHER_BUNDLE)
FILES = {"manifest.json": msgspec.json.encode(OTHER_BUNDLE.manifest), "model.onnx": OTHER_BUNDLE.model,
         "norm.bin": OTHER_BUNDLE.norm}  # fmt: skip
TABLE = OTHER_BUNDLE.manifest.norm
SECRET = "secret.bin"
"""A file with the values of the last layer, in the folder that the tests run in."""
replaced = msgspec.structs.replace


def zipped(files: Sequence[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", method) as archive:
        warnings.simplefilter("ignore")  # the same name twice
        for name, content in files:
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return buffer.getvalue()


def with_files(**changes: bytes | None) -> bytes:
    """Files by their first name: model, norm, manifest; None = left out."""
    names = {name.partition(".")[0]: name for name in FILES}
    changed = {**FILES, **{names.get(name, name): content for name, content in changes.items()}}
    return zipped([(name, content) for name, content in changed.items() if content is not None])


def patched(at: bytes, offset: int, value: bytes, *, last: bool = False) -> bytes:
    """The good bundle with some bytes changed behind a signature of the zip format."""
    data = bytearray(GOOD)
    where = (data.rindex(at) if last else data.index(at)) + offset
    data[where : where + len(value)] = value
    return bytes(data)


def remade(
    model: bytes = OTHER_BUNDLE.model, norm: bytes = OTHER_BUNDLE.norm, statistics: bytes = b"", **changes: Any
) -> bytes:
    """A bundle whose fingerprint is right, with another graph or manifest (``norm_table`` and ``shared``: its ``norm``
    and ``statistics``)."""
    fields = {{"norm_table": "norm", "shared": "statistics"}.get(name, name): value for name, value in changes.items()}
    made: BundleManifest = replaced(OTHER_BUNDLE.manifest, **fields)
    right = fingerprint(model, norm, made.preprocess, made.classes, made.norm, statistics)
    return encode_bundle(Bundle(replaced(made, fingerprint=right), model, norm, statistics))


def table(index: int = 0, **changes: Any) -> bytes:
    """A norm table with one entry changed."""
    entries = list(TABLE)
    entries[index] = replaced(entries[index], **changes)
    return remade(norm_table=entries)


def recipe(**changes: Any) -> bytes:
    return remade(preprocess=replaced(OTHER_BUNDLE.manifest.preprocess, **changes))


def rewritten(**changes: Any) -> bytes:
    """A manifest of any types."""
    made = {**msgspec.to_builtins(OTHER_BUNDLE.manifest), **changes}
    return with_files(manifest=msgspec.json.encode(made))


def edited(change: Callable[[onnx.ModelProto], object]) -> bytes:
    model = onnx.load_from_string(OTHER_BUNDLE.model)
    change(model)
    return remade(model.SerializeToString())


def external(location: str) -> bytes:
    """A graph whose last layer is in a file."""

    def change(model: onnx.ModelProto) -> None:
        (weight,) = [each for each in model.graph.initializer if each.name == "fc"]
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", "48")):
            weight.external_data.add(key=key, value=value)

    return edited(change)


def with_answers(shape_of: str) -> bytes:
    """A graph that says it answers itself, but not in the shapes it should."""

    def change(model: onnx.ModelProto) -> None:
        for name in ("probabilities", "entropy", "label", "confidence"):
            model.graph.node.append(helper.make_node("Identity", [shape_of], [name]))
            model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))

    return edited(change)


def huge_constant() -> bytes:
    """A graph that asks for 4 TB."""

    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.array([1 << 20, 1 << 20], np.int64), "shape"))
        model.graph.node.insert(0, helper.make_node("ConstantOfShape", ["shape"], ["huge"]))
        model.graph.output.append(helper.make_tensor_value_info("huge", TensorProto.FLOAT, ["x", "y"]))

    return edited(change)


def set_node(**fields: str) -> bytes:
    return edited(lambda model: [setattr(model.graph.node[0], name, value) for name, value in fields.items()])


def wrong_input(name: str) -> bytes:
    return edited(lambda model: model.graph.node[0].input.__setitem__(0, name))


def _case(decoder: str, name: str, build: Callable[[], bytes], code: str = BAD) -> Case:
    return Case(name, decoder, name, code, lambda: signed(build()))


_zip = partial(_case, CONTAINER)
_LOCAL, _CENTRAL, _END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
CONTAINERS = [
    Case("signed by a stranger", CONTAINER, "signed by a stranger", FORGED,
    lambda: (GOOD, signing.sign(GOOD, STRANGER))),
    Case("unsigned", CONTAINER, "unsigned", FORGED, lambda: (GOOD, "")),
    Case("signature of other bytes", CONTAINER, "signature of other bytes", FORGED,
         lambda: (GOOD, signing.sign(GOOD[1:], PRIVATE))),
    _zip("empty", lambda: b""),
    _zip("garbage", lambda: b"garbage" * 100),
    _zip("cut", lambda: GOOD[:-30]),
    _zip("cut in the middle", lambda: GOOD[: len(GOOD) // 2]),
    _zip("only an end record", lambda: _END + bytes(18)),
    _zip("no files", lambda: zipped([])),
    _zip("deflated", lambda: zipped(list(FILES.items()), zipfile.ZIP_DEFLATED)),
    _zip("deflated bomb",
          lambda: zipped([*list(FILES.items())[:2], ("norm.bin", bytes(64 * MIB))], zipfile.ZIP_DEFLATED)),
    _zip("bzip2", lambda: zipped(list(FILES.items()), zipfile.ZIP_BZIP2)),
    _zip("unknown compression", lambda: patched(_CENTRAL, 10, b"\x63\0")),
    _zip("encrypted", lambda: patched(_CENTRAL, 8, b"\x01\0")),
    _zip("size of 4 GB", lambda: patched(_CENTRAL, 20, b"\xfe\xff\xff\xff" * 2)),
    _zip("sizes that differ", lambda: patched(_CENTRAL, 24, b"\xff\0\0\0")),
    _zip("wrong checksum", lambda: patched(_CENTRAL, 16, b"abcd")),
    _zip("another name inside", lambda: patched(_LOCAL, 30, b"manifest.JSON")),
    _zip("offset out of the file", lambda: patched(_CENTRAL, 42, b"\xff\xff\xff\x7f")),
    _zip("all files at one place", lambda: patched(_CENTRAL, 42, b"\0\0\0\0", last=True)),
    _zip("directory out of the file", lambda: patched(_END, 16, b"\xff\xff\xff\x7f")),
    _zip("60000 entries", lambda: _with_entries(60_000)),
    _zip("manifest missing", lambda: with_files(manifest=None)),
    _zip("model missing", lambda: with_files(model=None)),
    _zip("norm missing", lambda: with_files(norm=None)),
    _zip("another file", lambda: zipped([*FILES.items(), ("setup.py", b"raise SystemExit")])),
    _zip("a path upwards", lambda: zipped([*FILES.items(), ("../../evil", b"x")])),
    _zip("an absolute path", lambda: zipped([*FILES.items(), ("/etc/passwd", b"x")])),
    _zip("a path instead of the model",
          lambda: zipped([("manifest.json", FILES["manifest.json"]), ("../model.onnx", b"x"), ("norm.bin", b"")])),
    _zip("a folder", lambda: zipped([*FILES.items(), ("folder/", b"")])),
    _zip("a file twice", lambda: zipped([*FILES.items(), ("norm.bin", OTHER_BUNDLE.norm)])),
    _zip("another order", lambda: zipped(list(FILES.items())[::-1])),
    _zip("names in capitals", lambda: zipped([(name.upper(), content) for name, content in FILES.items()])),
    _zip("a long name", lambda: zipped([*FILES.items(), ("x" * 60_000, b"")])),
]  # fmt: skip
_manifest = partial(_case, MANIFEST)
MANIFESTS = [
    _manifest("another model than the fingerprint's", lambda: with_files(model=OTHER_BUNDLE.model + b"\0")),
    _manifest("other norms than the fingerprint's", lambda: with_files(norm=bytes(64))),
    _manifest("fingerprint empty", lambda: rewritten(fingerprint="")),
    _manifest("fingerprint of 100 KB", lambda: rewritten(fingerprint="f" * 100_000)),
    _manifest("manifest garbage", lambda: with_files(manifest=b"{")),
    _manifest("manifest empty", lambda: with_files(manifest=b"")),
    _manifest("manifest deep", lambda: with_files(manifest=b'{"x":' + b"[" * 100_000)),
    _manifest("manifest no UTF-8", lambda: with_files(manifest=b'{"model":"\xff"}')),
    *(
        _manifest(f"{field} of another type", partial(rewritten, **{field: value}))
        for field, value in [("model", 1), ("classes", "abc"), ("preprocess", []), ("norm", {}), ("input_name", None),
                             ("protocol", "1"), ("opset", "17"), ("statistics", 1), ("precision", 8)]
    ),
    _manifest("protocol 2", lambda: rewritten(protocol=2)),
    _manifest("input type unknown", lambda: remade(input_type="float64")),
    _manifest("input type of 100 KB", lambda: remade(input_type="x" * 100_000)),
    _manifest("precision unknown", lambda: remade(precision="int4")),
    _manifest("no norm tensors", lambda: remade(norm_table=[])),
    _manifest("a norm tensor twice", lambda: remade(norm_table=[*TABLE, TABLE[0]])),
    _manifest("one initializer for two", lambda: table(1, initializer=TABLE[0].initializer)),
    _manifest("offset below 0", lambda: table(offset=-4)),
    _manifest("offset out of the norms", lambda: table(offset=52)),
    _manifest("offset of 2^70", lambda: table(offset=1 << 70)),
    _manifest("shape of 2^124", lambda: table(shape=(1 << 62, 1 << 62))),
    _manifest("shape below 0", lambda: table(shape=(-2, -2))),
    _manifest("shape with a 0", lambda: table(shape=(0,))),
    _manifest("shape of 100 dimensions", lambda: table(shape=(1,) * 100)),
    _manifest("shape that the graph has not", lambda: table(shape=(2,))),
    _manifest("initializer that the graph has not", lambda: table(initializer="nowhere")),
    _manifest("initializer that is no norm", lambda: table(initializer="w")),
    _manifest("name of 100 KB", lambda: table(name="x" * 100_000, offset=-1)),
    _manifest("statistics without a graph", lambda: remade(shared=[SharedWeight(name="w", shape=(1,), offset=0)])),
    _manifest("statistics graph without words", lambda: remade(statistics=b"graph")),
    _manifest("shared weight out of the model", lambda: remade(
        statistics=b"graph", shared=[SharedWeight(name="w", shape=(1 << 40,), offset=0)])),
    _manifest("shared weight of 100 dimensions", lambda: remade(
        statistics=b"graph", shared=[SharedWeight(name="w", shape=(1,) * 100, offset=0)])),
    *(
        _manifest(f"recipe with {name}", partial(recipe, **changes))
        for name, changes in {
            "no height": {"size": (0, 8)}, "a width below 0": {"size": (8, -8)},
            "too many pixels": {"size": (MAX_PIXELS, 2)},
            "another size than the graph": {"size": (9, 9)}, "no means": {"mean": ()}, "four stds": {"std": (1.0,) * 4},
            "a std of 0": {"std": (0.0, 1.0, 1.0)}, "a std below 0": {"std": (-1.0, 1.0, 1.0)},
            "a tiny std": {"std": (1e-320, 1.0, 1.0)}, "a huge mean": {"mean": (1e300, 0.0, 0.0)},
            "a huge short side": {"resize_short": 1 << 60}, "a short side below 0": {"resize_short": -1},
            "an unknown interpolation": {"interpolation": "lanczos"},
            "a long interpolation": {"interpolation": "x" * 100_000},
        }.items()
    ),
    _manifest("no classes", lambda: remade(classes=[])),
    _manifest("fewer classes than the graph", lambda: remade(classes=["a", "b"])),
    _manifest("input that the graph has not", lambda: remade(input_name="nowhere")),
    _manifest("output that the graph has not", lambda: remade(output_name="nowhere")),
    _manifest("pixels for a graph of floats", lambda: remade(input_type="uint8")),
]  # fmt: skip
_graph = partial(_case, GRAPH)
GRAPHS = [
    _graph("graph empty", lambda: remade(b"")),
    _graph("graph garbage", lambda: remade(b"\xff" * 500)),
    _graph("graph cut", lambda: remade(OTHER_BUNDLE.model[:-40])),
    _graph("graph is a program", lambda: remade(b"\x7fELF" + bytes(200))),
    _graph("graph with an unknown operator", lambda: set_node(op_type="Evil")),
    _graph("graph of an unknown domain", lambda: set_node(domain="evil.domain")),
    _graph("graph that reads itself", lambda: wrong_input("logits")),
    _graph("graph that reads nothing", lambda: wrong_input("nowhere")),
    _graph("graph that asks for 4 TB", huge_constant),
    _graph("graph whose answers have other shapes", lambda: with_answers("p")),
    _graph("graph whose answers are all logits", lambda: with_answers("logits")),
    _graph("graph without norms", lambda: edited(lambda model: model.graph.ClearField("initializer"))),
    *(
        _graph(f"weights in {location}", partial(external, location))
        for location in ("/etc/passwd", "../../../../etc/passwd", SECRET, f"./{SECRET}", f"x/../{SECRET}", "norm.bin",
        "",
                         "*/_ORT_MEM_ADDR_/*", "http://127.0.0.1:1/x", "/dev/zero", "a\0b")
    ),
]  # fmt: skip
CASES = [*CONTAINERS, *MANIFESTS, *GRAPHS]


def _with_entries(count: int) -> bytes:
    """A directory of many empty files that share one header."""
    entry = _CENTRAL + struct.pack("<HHHHHHIIIHHHHHII", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"x"
    local = _LOCAL + struct.pack("<HHHHHIIIHH", 20, 0, 0, 0, 0, 0, 0, 0, 1, 0) + b"x"
    directory = entry * count
    return local + directory + _END + struct.pack("<HHHHIIH", 0, 0, count, count, len(directory), len(local), 0)
