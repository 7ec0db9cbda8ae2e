"""What an update must be before anybody may use a number of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save

from cema.errors import BaseMismatchError, SignatureError, SizeLimitError, UpdateContentError, UpdateError
from cema.types import NormParameters
from cema.wire import signing
from cema.wire.bundle import Bundle
from cema.wire.messages import UpdateManifest
from cema.wire.update import MAX_HEADER_BYTES, MAX_UPDATE_BYTES, content_id, encode_update, open_update, read_manifest

PRIVATE, OTHER = signing.generate_key(), signing.generate_key()
PUBLIC = signing.public_key(PRIVATE)


def manifest_for(bundle: Bundle, **changes: object) -> UpdateManifest:
    made = UpdateManifest(
        group="g", version=1, fingerprint=bundle.manifest.fingerprint, method="cema-paper", created_at_ms=5
    )
    return msgspec.structs.replace(made, **changes)


def packed(bundle: Bundle, tensors: NormParameters, **changes: object) -> bytes:
    """An update as a foe would write it: no checks."""
    return save(tensors, {"cema": msgspec.json.encode(manifest_for(bundle, **changes)).decode()})


def test_a_good_update_is_opened(tiny_bundle: Bundle) -> None:
    data = packed(tiny_bundle, tiny_bundle.source_parameters())
    update = open_update(data, tiny_bundle.manifest, signature=signing.sign(data, PRIVATE), key=PUBLIC)
    assert update.data == data
    assert update.content_id == content_id(data)
    assert update.parameters.keys() == {tensor.name for tensor in tiny_bundle.manifest.norm}


@pytest.mark.parametrize("signature", [None, "", "not base64!", "AAAA", "ü" * 88, "A" * 86 + "=="])
def test_garbage_without_a_good_signature_is_never_parsed(signature: str | None, tiny_bundle: Bundle) -> None:
    for garbage in (b"garbage", b"", packed(tiny_bundle, {}, protocol=99)):  # each would raise UpdateError if parsed
        with pytest.raises(SignatureError):
            open_update(garbage, tiny_bundle.manifest, signature=signature, key=PUBLIC)
        with pytest.raises(UpdateError) as caught:
            open_update(garbage, tiny_bundle.manifest)
        assert not isinstance(caught.value, SignatureError)


def test_a_good_update_of_another_signer_is_refused(tiny_bundle: Bundle) -> None:
    data = packed(tiny_bundle, tiny_bundle.source_parameters())
    with pytest.raises(SignatureError, match="not from the key"):
        open_update(data, tiny_bundle.manifest, signature=signing.sign(data, OTHER), key=PUBLIC)


def test_a_signature_for_other_bytes_is_refused(tiny_bundle: Bundle) -> None:
    data = packed(tiny_bundle, tiny_bundle.source_parameters())
    old = signing.sign(packed(tiny_bundle, tiny_bundle.source_parameters(), version=9), PRIVATE)
    with pytest.raises(SignatureError):
        open_update(data, tiny_bundle.manifest, signature=old, key=PUBLIC)


def test_a_garbled_public_key_is_a_signature_error(tiny_bundle: Bundle) -> None:
    for key in ("", "?", "AAAA"):
        with pytest.raises(SignatureError):
            open_update(b"", tiny_bundle.manifest, signature=signing.sign(b"", PRIVATE), key=key)


def test_an_update_for_another_bundle_is_refused(
    tiny_bundle: Bundle, make_tiny_bundle: Callable[[int], Bundle]
) -> None:
    other = make_tiny_bundle(1)
    with pytest.raises(BaseMismatchError) as caught:
        open_update(packed(other, other.source_parameters()), tiny_bundle.manifest)
    assert caught.value.values == {
        "expected": tiny_bundle.manifest.fingerprint,
        "got": other.manifest.fingerprint,
    }


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"])
def test_values_that_are_not_finite_are_refused(name: str, value: float, tiny_bundle: Bundle) -> None:
    tensors = tiny_bundle.source_parameters()
    tensors[name] = np.array([1, 1, value, 1], np.float32)
    with pytest.raises(UpdateContentError, match=name):
        open_update(packed(tiny_bundle, tensors), tiny_bundle.manifest)
    with pytest.raises(UpdateContentError, match=name):
        encode_update(manifest_for(tiny_bundle), tensors)


def test_a_negative_variance_is_refused_and_a_negative_weight_is_not(tiny_bundle: Bundle) -> None:
    tensors = {name: np.abs(value) for name, value in tiny_bundle.source_parameters().items()}
    tensors["bn.weight"] = -tensors["bn.weight"]
    assert open_update(packed(tiny_bundle, tensors), tiny_bundle.manifest)
    tensors["bn.running_var"] = np.array([1, 1, -1e-6, 1], np.float32)
    with pytest.raises(UpdateContentError, match="running_var"):
        open_update(packed(tiny_bundle, tensors), tiny_bundle.manifest)
    with pytest.raises(UpdateContentError, match="running_var"):
        encode_update(manifest_for(tiny_bundle), tensors)


@pytest.mark.parametrize(
    "value", [np.ones(3, np.float32), np.ones((4, 1), np.float32), np.ones(4, np.float64), np.ones(4, np.int32)]
)
def test_a_wrong_shape_or_type_is_refused(value: NDArray[Any], tiny_bundle: Bundle) -> None:
    tensors = tiny_bundle.source_parameters() | {"bn.weight": value}
    with pytest.raises(UpdateContentError, match=r"bn\.weight"):
        open_update(packed(tiny_bundle, tensors), tiny_bundle.manifest)


def test_missing_and_additional_tensors_are_named(tiny_bundle: Bundle) -> None:
    tensors = tiny_bundle.source_parameters()
    tensors["conv.weight"] = tensors.pop("bn.bias")
    with pytest.raises(UpdateContentError, match=r"bn\.bias.*conv\.weight"):
        open_update(packed(tiny_bundle, tensors), tiny_bundle.manifest)


@pytest.mark.parametrize("changes", [{"protocol": 2}, {"encoding": "int8"}])
def test_another_protocol_or_encoding_is_refused(changes: dict[str, object], tiny_bundle: Bundle) -> None:
    with pytest.raises(UpdateError, match="protocol 1 with encoding float32"):
        read_manifest(packed(tiny_bundle, tiny_bundle.source_parameters(), **changes))


def test_safetensors_without_a_manifest_is_refused(tiny_bundle: Bundle) -> None:
    for metadata in (None, {}, {"cema": "{}"}, {"cema": "no json"}):
        with pytest.raises(UpdateError, match="manifest"):
            open_update(save(tiny_bundle.source_parameters(), metadata), tiny_bundle.manifest)


def test_an_oversized_update_is_refused_before_its_signature_is_computed(tiny_bundle: Bundle) -> None:
    with pytest.raises(SizeLimitError, match=str(MAX_UPDATE_BYTES)):
        open_update(bytes(MAX_UPDATE_BYTES + 1), tiny_bundle.manifest, signature="", key=PUBLIC)


def test_a_header_that_claims_too_much_is_refused() -> None:
    for size in (MAX_HEADER_BYTES + 1, 1 << 62, 100):
        with pytest.raises(UpdateError, match=str(size)):
            read_manifest(size.to_bytes(8, "little") + b"{}")
