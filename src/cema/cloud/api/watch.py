"""One task looks for new versions on behalf of all waiting devices.

A waiting poll costs an entry in a set, no thread and no database query; hundreds of them are cheap. All methods belong
to the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from cema.errors import CemaError

log = logging.getLogger(__name__)


class VersionWatch:
    """Wakes long polls. ``latest_versions`` is asked every ``interval_s``, in a thread."""

    def __init__(self, latest_versions: Callable[[], dict[str, int]], interval_s: float) -> None:
        self._latest_versions = latest_versions
        self._interval_s = interval_s
        self._versions: dict[str, int] = {}
        self._changed: dict[str, asyncio.Event] = {}
        self._closing = asyncio.Event()
        self.waiting = 0

    async def run(self) -> None:
        """Look until ``close``; a store that fails is asked again."""
        while not self._closing.is_set():
            try:
                self._note(await asyncio.to_thread(self._latest_versions))
            except CemaError as error:
                log.warning("cannot look for new versions: %s", error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), self._interval_s)

    async def wait(self, group: str, after: int, timeout_s: float) -> bool:
        """True as soon as the group has a version above ``after``; False after ``timeout_s`` or at ``close``."""
        self.waiting += 1
        try:
            async with asyncio.timeout(timeout_s):
                while not self._closing.is_set():
                    if self._versions.get(group, 0) > after:
                        return True
                    await self._changed.setdefault(group, asyncio.Event()).wait()
        except TimeoutError:
            pass
        finally:
            self.waiting -= 1
        return False

    def close(self) -> None:
        """Answer all waiting polls at once, and every later one immediately."""
        self._closing.set()
        self._wake(list(self._changed))

    def _note(self, versions: dict[str, int]) -> None:
        changed = [group for group, version in versions.items() if self._versions.get(group) != version]
        self._versions = versions
        self._wake(changed)

    def _wake(self, groups: list[str]) -> None:
        for group in groups:
            event = self._changed.pop(group, None)
            if event is not None:
                event.set()
