"""Updates and bundles: written and read alike, and no change of their bytes goes unnoticed."""

from __future__ import annotations

import io
import tempfile
import zipfile

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cema.errors import BundleError, CemaError, SignatureError, UpdateError, WireError
from cema.types import Float32Array
from cema.wire import signing
from cema.wire.bundle import Bundle, decode_bundle, encode_bundle, fingerprint
from cema.wire.messages import MAX_VERSION, BundleManifest, NormTensor, Preprocess, UpdateManifest
from cema.wire.update import encode_update, open_update, read_manifest
from cema.wire.update_file import UpdateFile, encode_update_file, read_update_file

ROLES = ("weight", "bias", "running_mean", "running_var")
PRIVATE = signing.generate_key()
PUBLIC = signing.public_key(PRIVATE)
names = st.text(min_size=1, max_size=12)
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, Float32Array]:
    drawn: dict[str, Float32Array] = {}
    for layer in draw(st.lists(names, min_size=1, max_size=3, unique=True)):
        channels = draw(st.integers(1, 5))
        for role in ROLES:
            value = draw(arrays(np.float32, channels, elements=finite))
            drawn[f"{layer}.{role}"] = np.abs(value) if role == "running_var" else value
    return drawn


def bundle_of(parameters: dict[str, Float32Array], model: bytes = b"graph") -> Bundle:
    table, norm = [], b""
    for name, value in parameters.items():
        role = name.rpartition(".")[2]
        table.append(
            NormTensor(
                name=name, initializer=name, kind="batch_norm", role=role, shape=value.shape, eps=1e-5, offset=len(norm)
            )
        )
        norm += value.tobytes()
    recipe, classes = Preprocess(size=(8, 8)), ["a", "b"]
    manifest = BundleManifest(
        fingerprint=fingerprint(model, norm, recipe, classes, table), model="m", classes=classes, preprocess=recipe,
        input_name="x", output_name="y", norm=table,
    )  # fmt: skip
    return Bundle(manifest, model, norm)


def manifest_for(bundle: Bundle, **other: object) -> UpdateManifest:
    made = UpdateManifest(
        group="g", version=3, fingerprint=bundle.manifest.fingerprint, method="m", created_at_ms=1_000
    )
    return msgspec.structs.replace(made, **other)


@given(tensors(), st.integers(1, MAX_VERSION), st.none() | st.integers(0, 1 << 40), names)
def test_an_update_survives_and_is_the_same_bytes_each_time(
    parameters: dict[str, Float32Array], version: int, rollback_of: int | None, group: str
) -> None:
    bundle = bundle_of(parameters)
    manifest = manifest_for(bundle, version=version, rollback_of=rollback_of, group=group)
    data = encode_update(manifest, parameters)
    assert data == encode_update(manifest, dict(reversed(parameters.items())))
    update = open_update(data, bundle.manifest, signature=signing.sign(data, PRIVATE), key=PUBLIC)
    assert update.manifest == read_manifest(data) == manifest
    assert update.parameters.keys() == parameters.keys()
    for name, value in parameters.items():
        np.testing.assert_array_equal(update.parameters[name], value)


@given(tensors(), st.binary(max_size=50))
def test_a_bundle_survives_and_is_the_same_bytes_each_time(parameters: dict[str, Float32Array], model: bytes) -> None:
    bundle = bundle_of(parameters, model)
    data = encode_bundle(bundle)
    assert data == encode_bundle(bundle)
    again = decode_bundle(data)
    assert again == bundle
    for name, value in again.source_parameters().items():
        np.testing.assert_array_equal(value, parameters[name])


ONE = bundle_of({f"bn.{role}": np.ones(3, np.float32) for role in ROLES})
UPDATE = encode_update(manifest_for(ONE), ONE.source_parameters())
BUNDLE = encode_bundle(ONE)
SIGNATURE = signing.sign(UPDATE, PRIVATE)


@st.composite
def damaged(draw: st.DrawFn, original: bytes) -> bytes:
    start = draw(st.integers(0, len(original)))
    end = draw(st.integers(start, min(len(original), start + 8)))
    return original[:start] + draw(st.binary(max_size=8)) + original[end:] if draw(st.booleans()) else original[:start]


@given(damaged(UPDATE))
def test_a_damaged_update_is_refused_by_its_signature(data: bytes) -> None:
    if data != UPDATE:
        with pytest.raises(SignatureError):
            open_update(data, ONE.manifest, signature=SIGNATURE, key=PUBLIC)


@given(damaged(UPDATE) | st.binary(max_size=200))
def test_a_damaged_unsigned_update_is_refused_or_still_fits(data: bytes) -> None:
    try:
        update = open_update(data, ONE.manifest)
    except UpdateError:
        return
    assert {name: value.shape for name, value in update.parameters.items()} == {f"bn.{role}": (3,) for role in ROLES}
    assert all(np.isfinite(value).all() for value in update.parameters.values())
    assert (update.parameters["bn.running_var"] >= 0).all()


@given(st.binary(max_size=200))
def test_random_bytes_are_no_update(data: bytes) -> None:
    with pytest.raises(UpdateError):
        read_manifest(data)


@given(damaged(BUNDLE) | st.binary(max_size=200))
def test_a_damaged_bundle_is_refused_or_has_the_same_content(data: bytes) -> None:
    try:
        bundle = decode_bundle(data)
    except CemaError as error:
        assert isinstance(error, BundleError)  # noqa: PT017  # both outcomes are right
        return
    assert (bundle.model, bundle.norm, bundle.manifest.fingerprint) == (ONE.model, ONE.norm, ONE.manifest.fingerprint)


@given(st.lists(st.integers(-(1 << 70), 1 << 70), max_size=4), st.integers(-(1 << 70), 1 << 70))
def test_a_norm_table_that_points_anywhere_is_refused(shape: list[int], offset: int) -> None:
    table = [msgspec.structs.replace(ONE.manifest.norm[0], shape=tuple(shape), offset=offset)]
    recipe, classes = ONE.manifest.preprocess, ONE.manifest.classes
    try:
        matching = fingerprint(ONE.model, ONE.norm, recipe, classes, table)
        forged = msgspec.structs.replace(ONE.manifest, norm=table, fingerprint=matching)
        data = encode_bundle(Bundle(forged, ONE.model, ONE.norm))
    except OverflowError:
        return  # cannot even be written
    try:
        (value,) = decode_bundle(data).source_parameters().values()
    except BundleError:
        return
    assert 0 <= offset <= len(ONE.norm) - value.nbytes
    assert value.shape == tuple(shape)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compressed_bundle_is_refused_without_decompressing(method: int) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name in ("manifest.json", "model.onnx", "norm.bin"):
            archive.writestr(name, b"\0" * 1_000_000)
    with pytest.raises(BundleError, match="stored"):
        decode_bundle(buffer.getvalue())


FILE = encode_update_file(UpdateFile(update=UPDATE, signature=SIGNATURE, bundle=BUNDLE, bundle_signature="s"))


@given(damaged(FILE) | st.binary(max_size=200))
def test_a_damaged_file_is_refused_or_its_update_is(data: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        try:
            content = read_update_file(file.name)
            open_update(content.update, ONE.manifest, signature=content.signature, key=PUBLIC)
        except WireError:
            return
    assert (content.update, content.signature) == (UPDATE, SIGNATURE)
