"""What a bundle must be before a session is built from it."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import msgspec
import pytest

from cema.errors import BundleError, SizeLimitError
from cema.wire import bundle as bundle_module
from cema.wire.bundle import Bundle, decode_bundle, encode_bundle, fingerprint, load_bundle, measured_layers
from cema.wire.messages import BundleManifest, NormTensor, Preprocess


def forged(bundle: Bundle, **changes: object) -> bytes:
    """A bundle with another manifest whose fingerprint is right again."""
    manifest = msgspec.structs.replace(bundle.manifest, **changes)
    actual = fingerprint(bundle.model, bundle.norm, manifest.preprocess, manifest.classes, manifest.norm)
    return encode_bundle(Bundle(msgspec.structs.replace(manifest, fingerprint=actual), bundle.model, bundle.norm))


def zipped(*files: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files:
            archive.writestr(name, content)
    return buffer.getvalue()


def test_a_bundle_file_is_read(tiny_bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "tiny.cema"
    path.write_bytes(encode_bundle(tiny_bundle))
    assert load_bundle(path) == tiny_bundle


def test_a_missing_file_is_a_bundle_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"absent\.cema"):
        load_bundle(tmp_path / "absent.cema")


def test_the_fingerprint_binds_graph_weights_preprocessing_classes_and_table(tiny_bundle: Bundle) -> None:
    manifest = tiny_bundle.manifest
    table = [msgspec.structs.replace(manifest.norm[0], eps=0.1), *manifest.norm[1:]]
    changed = [
        Bundle(manifest, tiny_bundle.model + b"\0", tiny_bundle.norm),
        Bundle(manifest, tiny_bundle.model, b"\1" + tiny_bundle.norm[1:]),
        *(
            Bundle(msgspec.structs.replace(manifest, **change), tiny_bundle.model, tiny_bundle.norm)
            for change in (
                {"preprocess": msgspec.structs.replace(manifest.preprocess, resize_short=9)},
                {"classes": [*manifest.classes[:-1], "owl"]},
                {"norm": table},
            )
        ),
    ]
    for bundle in changed:
        with pytest.raises(BundleError, match="fingerprint"):
            decode_bundle(encode_bundle(bundle))


@pytest.mark.parametrize(
    "change",
    [
        {"mean": (0.5,)},
        {"std": (1.0, 1.0)},
        {"std": (1.0, 0.0, 1.0)},
        {"size": (0, 8)},
        {"size": (100_000, 100_000)},
        {"resize_short": -1},
        {"resize_short": 1 << 40},
        {"interpolation": "lanczos"},
    ],
)
def test_preprocessing_that_cannot_work_is_refused(change: dict[str, object], tiny_bundle: Bundle) -> None:
    recipe: Preprocess = msgspec.structs.replace(tiny_bundle.manifest.preprocess, **change)
    with pytest.raises(BundleError, match=r"preprocessing|input|interpolation"):
        decode_bundle(forged(tiny_bundle, preprocess=recipe))


@pytest.mark.parametrize("change", [{"offset": -4}, {"offset": 1 << 20}, {"shape": (1 << 20,)}, {"shape": (-4,)}])
def test_a_tensor_outside_the_weights_is_refused(change: dict[str, object], tiny_bundle: Bundle) -> None:
    first: NormTensor = msgspec.structs.replace(tiny_bundle.manifest.norm[0], **change)
    with pytest.raises(BundleError, match=r"norm\.bin"):
        decode_bundle(forged(tiny_bundle, norm=[first]))


def test_a_table_without_tensors_or_with_one_twice_is_refused(tiny_bundle: Bundle) -> None:
    for table in ([], [tiny_bundle.manifest.norm[0]] * 2):
        with pytest.raises(BundleError, match="each with a name"):
            decode_bundle(forged(tiny_bundle, norm=table))


def test_a_layer_with_a_role_that_nobody_knows_is_not_measured(tiny_bundle: Bundle) -> None:
    """Four tensors are not enough: they have to be the four of a batch norm."""
    assert len(measured_layers(tiny_bundle.manifest.norm)) == 1
    later = [
        msgspec.structs.replace(tensor, role=tensor.role.replace("var", "scale"))
        for tensor in tiny_bundle.manifest.norm
    ]
    assert measured_layers(later) == []


def test_another_protocol_is_refused(tiny_bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="protocol 1, got 2"):
        decode_bundle(forged(tiny_bundle, protocol=2))


def test_a_precision_of_a_later_version_is_refused(tiny_bundle: Bundle) -> None:
    for precision in ("float32", "int8"):
        assert decode_bundle(forged(tiny_bundle, precision=precision)).manifest.precision == precision
    with pytest.raises(BundleError, match="precision of float32 or int8, got 'int4'"):
        decode_bundle(forged(tiny_bundle, precision="int4"))


def test_other_files_in_the_zip_are_refused(tiny_bundle: Bundle) -> None:
    manifest: BundleManifest = tiny_bundle.manifest
    files = [
        ("manifest.json", msgspec.json.encode(manifest)),
        ("model.onnx", tiny_bundle.model),
        ("norm.bin", tiny_bundle.norm),
    ]
    assert decode_bundle(zipped(*files)) == tiny_bundle
    for wrong in (files[:2], files[::-1], [*files, ("../evil", b"")], [("/manifest.json", b""), *files[1:]]):
        with pytest.raises(BundleError, match="expected the files"):
            decode_bundle(zipped(*wrong))
    with pytest.raises(BundleError, match="manifest"):
        decode_bundle(zipped(("manifest.json", b"{" * 10_000), *files[1:]))


def test_an_oversized_bundle_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_module, "MAX_BUNDLE_BYTES", 100)  # the real limit is a gigabyte
    with pytest.raises(SizeLimitError, match="101"):
        decode_bundle(bytes(101))
