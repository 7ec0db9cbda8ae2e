"""An update without its signature: what a device would meet if its cloud's key were stolen, or if it has none."""

from __future__ import annotations

import numpy as np

from cema.errors import UpdateError
from cema.wire.messages import BundleManifest, NormTensor, Preprocess, UpdateManifest
from cema.wire.update import encode_update, open_update

ALLOWED = UpdateError
_ROLES = ("weight", "bias", "running_mean", "running_var")
_TABLE = [
    NormTensor(
        name=f"bn.{role}", initializer=role, kind="batch_norm", role=role, shape=(3,), eps=1e-5, offset=12 * number
    )
    for number, role in enumerate(_ROLES)
]
BUNDLE = BundleManifest(
    fingerprint="f", model="m", classes=["a"], preprocess=Preprocess(size=(8, 8)), input_name="i", output_name="o",
    norm=_TABLE,
)  # fmt: skip
_ONES = {tensor.name: np.ones(tensor.shape, np.float32) for tensor in _TABLE}


def _manifest(encoding: str) -> UpdateManifest:
    return UpdateManifest(group="g", version=1, fingerprint="f", method="m", created_at_ms=1, encoding=encoding)


SEEDS = [encode_update(_manifest(encoding), _ONES) for encoding in ("float32", "float16")]


def run(data: bytes) -> None:
    """What is opened has exactly the bundle's tensors, with values that a session can take."""
    update = open_update(data, BUNDLE)
    assert {name: value.shape for name, value in update.parameters.items()} == {t.name: (3,) for t in _TABLE}
    assert all(np.isfinite(value).all() for value in update.parameters.values())
    assert (update.parameters["bn.running_var"] >= 0).all()
