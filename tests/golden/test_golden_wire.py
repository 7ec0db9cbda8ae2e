"""What was recorded with protocol 1 is understood for ever (``record.py`` wrote the files)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from cema.wire import signing
from cema.wire.bundle import decode_bundle, encode_bundle
from cema.wire.difference import apply_difference, source_base
from cema.wire.image import decode_image
from cema.wire.messages import SampleBatch, decode_msgpack
from cema.wire.update import encode_update, open_update, read_manifest
from cema.wire.update_file import encode_update_file, read_update_file

HERE = Path(__file__).parent
EXPECTED: dict[str, Any] = json.loads((HERE / "expected-v1.json").read_text())


def recorded(name: str) -> bytes:
    return (HERE / name).read_bytes()


@pytest.mark.parametrize("name", ["sample-batch-v1.msgpack", "sample-batch-v1-of-a-later-device.msgpack"])
def test_a_recorded_batch_decodes_to_the_recorded_values(name: str) -> None:
    batch = decode_msgpack(recorded(name), SampleBatch, limit_bytes=1 << 20)
    assert json.loads(msgspec.json.encode(batch)) == EXPECTED["sample_batch"]
    picture = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    for sample in batch.samples:
        np.testing.assert_array_equal(decode_image(sample.image, sample.codec), picture)


def test_a_recorded_bundle_is_read_and_written_byte_for_byte() -> None:
    data = recorded("bundle-v1.cema")
    bundle = decode_bundle(data)
    assert json.loads(msgspec.json.encode(bundle.manifest)) == EXPECTED["bundle_manifest"]
    assert bundle.source_parameters()["bn1.running_var"].tolist() == [1.0, 4.0]
    assert encode_bundle(bundle) == data


def test_a_recorded_update_is_read_and_written_byte_for_byte() -> None:
    data, bundle = recorded("update-v1.safetensors"), decode_bundle(recorded("bundle-v1.cema"))
    signature = EXPECTED["signatures"]["update-v1.safetensors"]
    update = open_update(data, bundle.manifest, signature=signature, key=EXPECTED["public_key"])
    assert {name: value.tolist() for name, value in update.parameters.items()} == EXPECTED["update_parameters"]
    assert (update.manifest.group, update.manifest.version, update.manifest.rollback_of) == ("doors", 12, 11)
    assert update.manifest.method == "cema-paper"
    assert update.content_id == EXPECTED["update_content_id"] == hashlib.sha256(data).hexdigest()
    assert encode_update(read_manifest(data), update.parameters) == data


def test_a_recorded_difference_leads_to_the_recorded_update() -> None:
    bundle = decode_bundle(recorded("bundle-v1.cema"))
    data = apply_difference(recorded("update-v1-float16.from-source"), source_base(bundle))
    assert data == recorded("update-v1-float16.safetensors")
    update = open_update(data, bundle.manifest)
    expected = np.array([1.1, 2.1], np.float16).astype(np.float32).tolist()
    assert update.parameters["bn1.weight"].tolist() == expected
    assert (update.manifest.version, update.manifest.encoding) == (13, "float16")
    assert encode_update(update.manifest, update.parameters) == data


def test_a_recorded_file_holds_the_recorded_update_and_bundle_with_their_signatures() -> None:
    content = read_update_file(HERE / "update-file-v1.msgpack")
    assert (content.update, content.bundle) == (recorded("update-v1.safetensors"), recorded("bundle-v1.cema"))
    assert content.signature == EXPECTED["signatures"]["update-v1.safetensors"]
    assert content.bundle_signature == EXPECTED["signatures"]["bundle-v1.cema"]
    assert encode_update_file(content) == recorded("update-file-v1.msgpack")


@pytest.mark.parametrize("name", ["update-v1.safetensors", "bundle-v1.cema"])
def test_recorded_signatures_hold_and_are_made_again(name: str) -> None:
    private = "Z29sZGVuIGtleSBmb3IgdGVzdHMgb25seSwgMzIgYnk="
    signing.verify(recorded(name), EXPECTED["signatures"][name], EXPECTED["public_key"])
    assert signing.sign(recorded(name), private) == EXPECTED["signatures"][name]
    assert signing.public_key(private) == EXPECTED["public_key"]
