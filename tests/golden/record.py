"""Write the golden files of protocol 1, once: ``python tests/golden/record.py``. Existing files are never touched.

What is recorded here must be understood for ever; new files come only with a new protocol version or an ADR.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from cema.wire import signing
from cema.wire.bundle import Bundle, encode_bundle, fingerprint
from cema.wire.difference import encode_difference, source_base
from cema.wire.image import encode_image
from cema.wire.messages import (
    BundleManifest,
    LayerStatistics,
    NormTensor,
    Preprocess,
    Sample,
    SampleBatch,
    UpdateManifest,
    encode_msgpack,
)
from cema.wire.update import content_id, encode_update, read_manifest
from cema.wire.update_file import UpdateFile, encode_update_file

HERE = Path(__file__).parent
PRIVATE_KEY = "Z29sZGVuIGtleSBmb3IgdGVzdHMgb25seSwgMzIgYnk="
"""Not a secret: 32 bytes of text."""
ROLES = ("weight", "bias", "running_mean", "running_var")
UPDATED = ([1.125, 2.125], [0.625, -0.375], [0.125, 0.375], [1.125, 4.125])
"""Source values plus 1/8, by role: exact in float32."""


def sample_batch() -> SampleBatch:
    picture = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    samples = [
        Sample(
            sample_id=bytes(range(16)), seq=0, codec="png", image=encode_image(picture, "png"), label=3,
            probability=0.75, entropy=0.5, update_version=0, captured_at_ms=1_767_225_600_000,
        ),
        Sample(
            sample_id=bytes(range(16, 32)), seq=7, codec="raw", image=encode_image(picture, "raw"), label=0,
            probability=0.5, entropy=1.25, update_version=12, captured_at_ms=1_767_225_601_000, stats_revision=2,
        ),
    ]  # fmt: skip
    statistics = LayerStatistics(
        mean=np.array([0.5, -1], "<f4").tobytes(), variance=np.array([1, 2], "<f4").tobytes(), count=64
    )
    return SampleBatch(
        device_id="gate-3", boot_id=bytes(range(100, 116)), fingerprint="ab" * 32, samples_seen=4711,
        samples=samples, dropped={"outbox_full": 2}, stats={"bn1": statistics},
    )  # fmt: skip


def bundle() -> Bundle:
    model, norm = b"not a graph, but bytes", np.array([1, 2, 0.5, -0.5, 0, 0.25, 1, 4], "<f4").tobytes()
    table = [
        NormTensor(
            name=f"bn1.{role}", initializer=f"g.bn1.{role}", kind="batch_norm", role=role, shape=(2,), eps=1e-5,
            offset=8 * index,
        )
        for index, role in enumerate(ROLES)
    ]  # fmt: skip
    recipe, classes = Preprocess(size=(32, 32)), ["cat", "dog"]
    manifest = BundleManifest(
        fingerprint=fingerprint(model, norm, recipe, classes, table), model="golden", classes=classes,
        preprocess=recipe, input_name="images", output_name="logits", norm=table, opset=17,
    )  # fmt: skip
    return Bundle(manifest, model, norm)


def update() -> bytes:
    made = bundle()
    manifest = UpdateManifest(
        group="doors", version=12, fingerprint=made.manifest.fingerprint, method="cema-paper",
        created_at_ms=1_767_225_600_000, rollback_of=11,
    )  # fmt: skip
    moved = {name: value + np.float32(0.125) for name, value in made.source_parameters().items()}
    return encode_update(manifest, moved)


def half_update() -> bytes:
    """As ``update``, in float16 and one version later."""
    manifest = msgspec.structs.replace(read_manifest(update()), version=13, rollback_of=None, encoding="float16")
    return encode_update(
        manifest, {name: value + np.float32(0.1) for name, value in bundle().source_parameters().items()}
    )


def main() -> None:
    packed = encode_msgpack(sample_batch())
    later: dict[str, Any] = msgspec.msgpack.decode(packed) | {"battery_percent": 80}
    later["samples"][0]["exposure_ms"] = 4.0
    content = {
        "sample-batch-v1.msgpack": packed,
        "sample-batch-v1-of-a-later-device.msgpack": msgspec.msgpack.encode(later),
        "bundle-v1.cema": encode_bundle(bundle()),
        "update-v1.safetensors": update(),
        "update-v1-float16.safetensors": half_update(),
        "update-file-v1.msgpack": encode_update_file(
            UpdateFile(
                update=update(),
                signature=signing.sign(update(), PRIVATE_KEY),
                bundle=encode_bundle(bundle()),
                bundle_signature=signing.sign(encode_bundle(bundle()), PRIVATE_KEY),
            )
        ),
        "update-v1-float16.from-source": encode_difference(half_update(), source_base(bundle())) or b"",
    }
    record = {
        "public_key": signing.public_key(PRIVATE_KEY),
        "sample_batch": msgspec.to_builtins(sample_batch()),
        "bundle_manifest": msgspec.to_builtins(bundle().manifest),
        "update_content_id": content_id(content["update-v1.safetensors"]),
        "update_parameters": {f"bn1.{role}": values for role, values in zip(ROLES, UPDATED, strict=True)},
        "signatures": {name: signing.sign(content[name], PRIVATE_KEY) for name in content if "msgpack" not in name},
    }
    content["expected-v1.json"] = (json.dumps(record, indent=1) + "\n").encode()
    for name, data in content.items():
        path = HERE / name
        if path.exists():
            print(f"{name}: kept")
        else:
            path.write_bytes(data)
            print(f"{name}: written")


if __name__ == "__main__":
    main()
