"""The bundle, the key and the good updates that hostile ones are made from."""

from __future__ import annotations

import msgspec
import numpy as np
from safetensors.numpy import save

from cema.types import NormParameters
from cema.wire import signing
from cema.wire.messages import UpdateManifest
from conftest import build_tiny_bundle

PRIVATE, STRANGER = signing.generate_key(), signing.generate_key()
BUNDLE, OTHER_BUNDLE = build_tiny_bundle(), build_tiny_bundle(1)
NEXT_VERSION = 6


def parameters(**changes: object) -> NormParameters:
    """The bundle's norm tensors, some replaced (``running_var`` for ``bn.running_var``)."""
    return {**BUNDLE.source_parameters(), **{f"bn.{name}": value for name, value in changes.items()}}  # type: ignore[dict-item]


def manifest(**changes: object) -> UpdateManifest:
    made = UpdateManifest(
        group="g", version=NEXT_VERSION, fingerprint=BUNDLE.manifest.fingerprint, method="cema", created_at_ms=5
    )
    return msgspec.structs.replace(made, **changes)


def packed(tensors: NormParameters | None = None, **changes: object) -> bytes:
    """An update as a foe would write it: no checks."""
    made = manifest(**changes)
    dtype = np.float16 if made.encoding == "float16" else np.float32
    content = {name: value.astype(dtype) for name, value in (tensors or parameters()).items()}
    return save(content, {"cema": msgspec.json.encode(made).decode()})


def signed(data: bytes) -> tuple[bytes, str]:
    return data, signing.sign(data, PRIVATE)


def signed_update(tensors: NormParameters | None = None, **changes: object) -> tuple[bytes, str]:
    return signed(packed(tensors, **changes))
