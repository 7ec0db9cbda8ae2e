"""One look at the store wakes all waiting polls; a failing store does not end the watch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cema.cloud.api.watch import VersionWatch
from cema.errors import StorageError


class Versions:
    """A store's latest versions that a test moves on; every look is counted."""

    def __init__(self) -> None:
        self.value = {"g": 1, "h": 1}
        self.looks = 0
        self.fail = False

    def __call__(self) -> dict[str, int]:
        self.looks += 1
        if self.fail:
            raise StorageError("the disk is gone")
        return dict(self.value)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0)


def test_only_the_groups_own_waiters_wake() -> None:
    async def story() -> None:
        versions = Versions()
        watch = VersionWatch(versions, 0.001)
        running = asyncio.create_task(watch.run())
        polls = [asyncio.create_task(watch.wait("g", 1, 30)) for _ in range(500)]
        other = asyncio.create_task(watch.wait("h", 1, 30))
        await until(lambda: watch.waiting == 501)
        versions.value["g"] = 2
        assert all(await asyncio.gather(*polls))
        assert not other.done()
        assert watch.waiting == 1
        watch.close()
        assert await other is False
        await running

    asyncio.run(story())


def test_a_version_that_is_already_known_is_not_waited_for() -> None:
    async def story() -> None:
        versions = Versions()
        watch = VersionWatch(versions, 0.001)
        running = asyncio.create_task(watch.run())
        await until(lambda: versions.looks > 1)
        assert await watch.wait("g", 0, 30)
        assert not await watch.wait("g", 1, 0)
        watch.close()
        await running
        assert not await watch.wait("unknown", 0, 30), "after close nobody waits"

    asyncio.run(story())


def test_a_store_that_fails_is_asked_again() -> None:
    async def story() -> None:
        versions = Versions()
        versions.fail = True
        watch = VersionWatch(versions, 0.001)
        running = asyncio.create_task(watch.run())
        poll = asyncio.create_task(watch.wait("g", 1, 30))
        await until(lambda: versions.looks > 2)
        versions.fail = False
        versions.value["g"] = 2
        assert await poll
        watch.close()
        await running

    asyncio.run(story())
