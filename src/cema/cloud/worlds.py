"""In which world each device of a group learns, and what the only device of a group has learned in those it has left.

Weights that were learned at night are no good at noon, but good again in the next night. The device says which world
it is in (edge/worlds.py recognises it); its group goes on in it where it stopped. In a group of many devices, which
share their weights, one that comes into another world pulls them back to the source by its share.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from cema.cloud.adapt.base import Adapter, State
from cema.cloud.store.samples import Condition

WORLDS = 8
"""That were left and are remembered, as on the device: each is part of every checkpoint, 4 bytes for each norm weight
and bias."""
Learned = dict[int, State]
"""By domain, what differs from a group that has learned nothing; without momentum."""


class Worlds:
    """initial: state of an adapter that has learned nothing. now: domain of each device in which was learned last."""

    def __init__(self, initial: State, now: Mapping[str, int], learned: Learned) -> None:
        self._initial, self.now, self.learned = initial, dict(now), learned

    @property
    def of_one(self) -> Mapping[str, int]:
        """The world of a group's only device; empty if there are several: what they have learned is good in all."""
        return self.now if len(self.now) == 1 else {}

    def enter(self, condition: Condition, adapter: Adapter, revoked: Collection[str] = ()) -> bool:
        """Samples of this condition are about to be learned; True if the adapter has been changed for it. revoked:
        devices that are no more. A device that took the place of another has learned nothing yet."""
        device, domain = condition
        left = [each for each in self.now if each in revoked and each != device]
        for each in left:
            del self.now[each]
        before = self.now.get(device, domain)
        self.now[device] = domain
        if left and len(self.now) == 1:
            self.learned.clear()
            adapter.load_state(self._initial)
            return True
        if before == domain:
            return False
        if len(self.now) > 1:
            self.learned.clear()
            adapter.forget(1 / len(self.now))
            return True
        self._leave(before, adapter.state())
        adapter.load_state({**self._initial, **self.learned.pop(domain, {})})
        return True

    def _leave(self, domain: int, state: State) -> None:
        initial = self._initial
        learned = {
            name: value for name, value in state.items() if name in initial and not np.array_equal(value, initial[name])
        }
        if not learned:  # a glimpse, which must not take the place of a world
            return
        self.learned[domain] = learned
        for oldest in [*self.learned][:-WORLDS]:
            del self.learned[oldest]
