"""Updates that arrive as differences: followed, given up, never trusted unsigned."""

from __future__ import annotations

from typing import Any

import pytest

from cema.errors import SignatureError
from cema.wire.difference import encode_difference, source_base, update_base


def test_differences_are_followed_from_the_source_on_and_across_a_restart(device: Any) -> None:
    asked: list[int] = []
    known = {0: source_base(device.bundle)}

    def difference(have: int) -> tuple[bytes, int]:
        asked.append(have)
        encoded = encode_difference(device.cloud.update[1], known[have])
        assert encoded is not None
        return encoded, have

    device.cloud.difference = difference
    agent = device.start()
    for version in (1, 2, 5):
        device.publish(version, encoding="float16")
        device.eventually(lambda version=version: device.version_of(agent) == version)
        known[version] = update_base(device.cloud.update[1], device.bundle.manifest)
    agent.close()
    again = device.start()
    device.publish(6, encoding="float16")
    device.eventually(lambda: device.version_of(again) == 6)
    assert list(dict.fromkeys(asked)) == [0, 1, 2, 5]  # the poll that closing cut off is answered, too
    assert again.status()["updates_refused"] == 0


@pytest.mark.parametrize("answer", [(b"garbage", 0), (b"", 3)], ids=["not a difference", "to a version it lacks"])
def test_after_a_difference_that_leads_nowhere_the_whole_update_is_fetched(
    answer: tuple[bytes, int], device: Any
) -> None:
    device.cloud.difference = lambda have: answer
    agent = device.start()
    device.publish(1, encoding="float16")
    device.eventually(lambda: device.version_of(agent) == 1)
    assert agent.status()["updates_refused"] == 1
    assert "update_invalid" in str(agent.status()["last_error"])


def test_a_difference_cannot_smuggle_in_what_is_not_signed(device: Any) -> None:
    agent = device.start()
    device.publish(1, encoding="float16")
    device.eventually(lambda: device.version_of(agent) == 1)
    good = device.cloud.update[1]
    foreign = good.replace(b'\\"version\\":1', b'\\"version\\":9')
    assert foreign != good
    base = update_base(good, device.bundle.manifest)
    assert base is not None
    encoded = encode_difference(foreign, base)
    assert encoded is not None
    with pytest.raises(SignatureError):
        agent._updater.apply(encoded, device.cloud.update[2], 1)
    assert device.version_of(agent) == 1
