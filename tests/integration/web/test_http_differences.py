"""Differences over real HTTP: what a device gets that says which version it has."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from cema.cloud.api import differences
from cema.cloud.keys import signing_key
from cema.wire import signing
from cema.wire.bundle import Bundle, encode_bundle
from cema.wire.difference import apply_difference, source_base, update_base
from cema.wire.messages import UpdateManifest
from cema.wire.update import encode_update, open_update

LATEST = "/v1/groups/g/updates/latest?after=0"


@pytest.fixture
def fleet(service: Any, tiny_bundle: Bundle) -> Any:
    """The service with a group whose bundle is real."""
    service.store.put_group(
        "g", tiny_bundle.manifest.fingerprint, service.blobs.put(encode_bundle(tiny_bundle)), "on", 1
    )
    return service


def publish(fleet: Any, bundle: Bundle, step: float, encoding: str = "float16") -> bytes:
    manifest = UpdateManifest(
        group="g", version=fleet.store.group("g").latest_version + 1, fingerprint=bundle.manifest.fingerprint,
        method="m", created_at_ms=1, encoding=encoding,
    )  # fmt: skip
    data = encode_update(manifest, {n: v * np.float32(1 + step) for n, v in bundle.source_parameters().items()})
    fleet.publish(data)
    return data


def test_a_difference_to_the_version_at_hand_becomes_the_signed_update(fleet: Any, tiny_bundle: Bundle) -> None:
    first, second = publish(fleet, tiny_bundle, 0.01), publish(fleet, tiny_bundle, 0.02)
    answer = fleet.call(f"{LATEST}&from=1")
    assert answer.headers["content-type"] == "application/vnd.cema.update-difference"
    assert (answer.headers["cema-update-base"], answer.headers["cema-update-version"]) == ("1", "2")
    assert len(answer.data) < len(second) / 2
    base = update_base(first, tiny_bundle.manifest)
    assert base is not None
    rebuilt = apply_difference(answer.data, base)
    assert rebuilt == second
    key = signing.public_key(signing_key(fleet.config))
    open_update(rebuilt, tiny_bundle.manifest, signature=answer.headers["cema-signature"], key=key)


@pytest.mark.parametrize("have", [0, 7])
def test_a_device_without_a_version_we_know_gets_the_difference_to_the_source(
    have: int, fleet: Any, tiny_bundle: Bundle
) -> None:
    data = publish(fleet, tiny_bundle, 0.01)
    answer = fleet.call(f"{LATEST}&from={have}")
    assert answer.headers["cema-update-base"] == "0"
    assert apply_difference(answer.data, source_base(tiny_bundle)) == data


def test_a_device_whose_version_is_damaged_in_the_cloud_gets_the_difference_to_the_source(
    fleet: Any, tiny_bundle: Bundle
) -> None:
    publish(fleet, tiny_bundle, 0.01)
    second = publish(fleet, tiny_bundle, 0.02)
    blob = fleet.store.update("g", 1).blob
    fleet.blobs._path(blob).write_bytes(b"damaged")
    answer = fleet.call(f"{LATEST}&from=1")
    assert answer.headers["cema-update-base"] == "0"
    assert apply_difference(answer.data, source_base(tiny_bundle)) == second


def test_who_does_not_ask_for_a_difference_gets_the_whole(fleet: Any, tiny_bundle: Bundle) -> None:
    data = publish(fleet, tiny_bundle, 0.01)
    answer = fleet.call(LATEST)
    assert answer.data == data
    assert "cema-update-base" not in answer.headers


def test_an_update_in_float32_always_comes_whole(fleet: Any, tiny_bundle: Bundle) -> None:
    data = publish(fleet, tiny_bundle, 0.01, "float32")
    assert fleet.call(f"{LATEST}&from=0").data == data


def test_one_version_as_a_difference_is_cacheable_under_a_tag_of_its_own(fleet: Any, tiny_bundle: Bundle) -> None:
    first, second = publish(fleet, tiny_bundle, 0.01), publish(fleet, tiny_bundle, 0.02)
    whole, part = fleet.call("/v1/groups/g/updates/2"), fleet.call("/v1/groups/g/updates/2?from=1")
    assert whole.data == second
    base = update_base(first, tiny_bundle.manifest)
    assert base is not None
    assert apply_difference(part.data, base) == second
    assert part.headers["cache-control"] == whole.headers["cache-control"]
    assert part.headers["etag"] != whole.headers["etag"]
    assert fleet.call("/v1/groups/g/updates/2?from=1", If_None_Match=part.headers["etag"]).status == 304


def test_a_fleet_that_asks_at_once_shares_one_difference(
    fleet: Any, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(fleet, tiny_bundle, 0.01)
    publish(fleet, tiny_bundle, 0.02)
    made: list[object] = []
    real = differences.encode_difference
    monkeypatch.setattr(differences, "encode_difference", lambda data, base: made.append(base) or real(data, base))
    with ThreadPoolExecutor(20) as pool:
        answers = [pool.submit(fleet.call, f"{LATEST}&from=1") for _ in range(20)]
    assert len({answer.result().data for answer in answers}) == 1
    assert len(made) == 1


def test_the_memory_for_differences_is_bounded(fleet: Any, tiny_bundle: Bundle) -> None:
    publish(fleet, tiny_bundle, 0.01)
    for have in range(differences.MAX_KEPT + 10):
        assert fleet.call(f"{LATEST}&from={have}").status == 200
    assert len(fleet.server.config.app.state.context.differences._known) == differences.MAX_KEPT


@pytest.mark.parametrize("have", ["-1", "x", "99999999999"])
def test_a_version_that_is_none_is_refused(have: str, fleet: Any) -> None:
    assert fleet.error_of(fleet.call(f"{LATEST}&from={have}")) == (422, "message_invalid")


@pytest.mark.parametrize("path", ["latest?after=0&from=0", "1?from=0"])
def test_a_bundle_that_the_cloud_cannot_read_does_not_keep_the_update_from_a_device(service: Any, path: str) -> None:
    service.publish(b"whole")
    answer = service.call(f"/v1/groups/g/updates/{path}")
    assert (answer.status, answer.data) == (200, b"whole")
