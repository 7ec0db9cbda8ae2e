"""One pair of models for all groups that adapt it alike: the frozen backbone is in memory once.

What differs between such groups is small (norm parameters, statistics, momentum) and lies in their checkpoints. They
take turns: whoever works has its own in the models.
"""

from __future__ import annotations

from collections.abc import Callable

from cema.cloud.adapt.base import Adapter, State


class SharedAdapter:
    """An adapter and whose turn it is. ``initial`` is the state of a group that has not learned anything yet."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self.schedule, self.stats_owner = adapter.schedule, adapter.stats_owner
        self.initial: State = adapter.state()
        self._holder: object = None

    def leave(self, holder: object) -> None:
        """Let go of a holder that is no more: what it has in memory may be freed."""
        if self._holder is holder:
            self._holder = None

    def held_by(self, holder: object, saved: Callable[[], State]) -> Adapter:
        """The adapter with the state of ``holder``; ``saved`` is asked for it if another one was there in between."""
        if self._holder is not holder:
            self._holder = None  # whatever goes wrong meanwhile, nobody's state is there
            self._adapter.load_state(saved())
            self._holder = holder
        return self._adapter
