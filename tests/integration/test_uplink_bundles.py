"""Which bundles a device takes from whoever answers for its cloud."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cema.edge.slots import POINTER_FILE, StateFolder
from cema.errors import BundleError, SignatureError
from cema.wire import signing
from cema.wire.bundle import Bundle
from cema.wire.statement import BundleStatement, encode_statement

Make = Callable[[int], Bundle]


def offer(device: Any, bundle: Bundle, place: int, *, group: str = "g", key: str | None = None) -> None:
    """place 0: without a statement."""
    device.offer_bundle(bundle)
    stated = BundleStatement(group=group, sha256=hashlib.sha256(device.cloud.bundle[0]).hexdigest(), sequence=place)
    device.cloud.statement = encode_statement(stated, key or device.key) if place else ""


def runs(agent: Any, bundle: Bundle) -> bool:
    return bool(agent.status()["fingerprint"] == bundle.manifest.fingerprint)


def replaced(device: Any, agent: Any, bundle: Bundle, place: int) -> None:
    offer(device, bundle, place)
    device.eventually(lambda: runs(agent, bundle))


def refused(device: Any, agent: Any, bundle: Bundle, words: str) -> None:
    """The agent has asked for it and says why not; it predicts with what it has."""
    before = agent.status()["fingerprint"]
    device.eventually(lambda: words in (agent.status()["last_error"] or ""))
    assert agent.status()["fingerprint"] == before != bundle.manifest.fingerprint
    assert agent.predict(device.images[:1])


def test_an_old_bundle_is_refused_also_after_a_restart(device: Any, make_tiny_bundle: Make) -> None:
    old, new = make_tiny_bundle(8), make_tiny_bundle(9)
    offer(device, old, 1)
    agent = device.start()
    assert runs(agent, old)
    replaced(device, agent, new, 2)
    offer(device, old, 1)
    refused(device, agent, old, "expected bundle 2 of group g or a later one, got 1")
    agent.close()
    again = device.start()
    refused(device, again, old, "expected bundle 2 of group g or a later one, got 1")
    replaced(device, again, old, 3)
    again.close()
    offer(device, new, 1)
    (Path(device.config.state_dir) / POINTER_FILE).unlink()  # what the refusal's hint says
    begun_anew = device.start()
    device.eventually(lambda: runs(begun_anew, new))


def test_without_a_statement_nothing_is_taken_any_more_once_there_was_one(device: Any, make_tiny_bundle: Make) -> None:
    first, second = make_tiny_bundle(8), make_tiny_bundle(9)
    offer(device, first, 0)
    agent = device.start()
    assert runs(agent, first), "a cloud of before makes none"
    replaced(device, agent, second, 5)
    offer(device, first, 0)
    refused(device, agent, first, "expected a statement with the bundle")


def test_another_groups_bundle_is_refused_from_the_first_contact(device: Any, make_tiny_bundle: Make) -> None:
    offer(device, make_tiny_bundle(8), 1, group="h")
    with pytest.raises(BundleError, match="expected this bundle of group g"):
        device.start()


def test_a_statement_about_other_bytes_or_of_another_key_is_refused(device: Any, make_tiny_bundle: Make) -> None:
    offer(device, make_tiny_bundle(8), 1)
    said = device.cloud.statement
    offer(device, make_tiny_bundle(9), 2)
    device.cloud.statement = said
    with pytest.raises(BundleError, match="the statement is of another"):
        device.start()
    offer(device, make_tiny_bundle(9), 2, key=signing.generate_key())
    with pytest.raises(SignatureError):
        device.start()


def test_a_damaged_bundle_is_fetched_again_at_its_own_place_and_at_no_earlier_one(
    device: Any, make_tiny_bundle: Make
) -> None:
    bundle, older = make_tiny_bundle(8), make_tiny_bundle(9)
    offer(device, bundle, 4)
    device.start().close()
    for file in Path(device.config.state_dir).glob("bundle-*"):
        file.write_bytes(b"damaged")
    offer(device, older, 3)
    with pytest.raises(BundleError, match="expected bundle 4 of group g"):
        device.start()
    offer(device, bundle, 4)
    assert runs(device.start(), bundle)


def test_in_another_group_the_order_begins_anew(device: Any, make_tiny_bundle: Make) -> None:
    offer(device, make_tiny_bundle(8), 7)
    device.start().close()
    device.start(group="h", url="http://127.0.0.1:1").close()
    folder = StateFolder(device.config.state_dir)
    assert (folder.group, folder.bundle_place) == ("h", 0)
    folder.close()
