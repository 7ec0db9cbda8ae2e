"""A bundle that is built again, now with a statistics graph: its fingerprint is the old one's, its bytes are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from cema.cloud.pool import ModelPool
from cema.cloud.registry import register_group
from cema.cloud.store.blobs import MemoryBlobs
from cema.cloud.store.memory import MemoryStore
from cema.config import GroupConfig, ServeConfig, StatisticsConfig
from cema.errors import ConfigError
from cema.wire.bundle import Bundle, decode_bundle, encode_bundle, fingerprint

WAIT_S = 2.0


def of_before(data: bytes) -> Bundle:
    """As built before there were statistics graphs."""
    bundle = decode_bundle(data)
    manifest = msgspec.structs.replace(bundle.manifest, statistics=msgspec.UNSET)
    bare = fingerprint(bundle.model, bundle.norm, manifest.preprocess, manifest.classes, manifest.norm)
    return Bundle(msgspec.structs.replace(manifest, fingerprint=bare), bundle.model, bundle.norm)


def test_a_group_whose_bundle_was_built_again_can_use_cema(tmp_path: Path, digits_bundle: bytes) -> None:
    file, store, blobs = tmp_path / "edge.bundle", MemoryStore(), MemoryBlobs()
    group = GroupConfig(bundle=str(file), edge_model="digits-edge", foundation_model="digits-foundation", method="cema")
    config = ServeConfig(groups={"g": group})
    file.write_bytes(encode_bundle(of_before(digits_bundle)))
    before = register_group(config, "g", store, blobs, 1)
    with pytest.raises(ConfigError) as caught:
        ModelPool(blobs).models(group, before.bundle_blob)
    assert "build the bundle again" in caught.value.hint
    file.write_bytes(digits_bundle)
    after = register_group(config, "g", store, blobs, 2)
    _, shared = ModelPool(blobs).models(group, after.bundle_blob)
    assert shared.stats_owner == "edge"


def test_a_device_fetches_the_bundle_that_was_built_again(device: Any, digits_bundle: bytes) -> None:
    device.bundle = of_before(digits_bundle)
    device.offer_bundle(device.bundle)
    agent = device.start(statistics=StatisticsConfig(follow="on"))
    assert not agent._updater.following
    agent.close()
    device.offer_bundle(decode_bundle(digits_bundle))
    again = device.start(statistics=StatisticsConfig(follow="on"))
    device.eventually(lambda: again._updater.following, WAIT_S)
