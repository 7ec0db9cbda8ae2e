"""In which world each device of a group learns, and what the only device of a group has learned in those it has left.

Weights that were learned at night are no good at noon, but good again in the next night. The device says which world
it is in (edge/worlds.py recognises it); its group goes on in it where it stopped. In a group of many devices, which
share their weights, one that comes into another world pulls them back to the source by its share.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from cema.cloud.adapt.base import Adapter, State
from cema.cloud.store.base import Store
from cema.cloud.store.samples import Condition

WORLDS = 8
"""That were left and are remembered, as on the device: each is part of every checkpoint, 4 bytes for each norm weight
and bias."""
Learned = dict[int, State]
"""By domain, what differs from a group that has learned nothing; without momentum."""


class Members:
    """Devices that a group has now."""

    def __init__(self, store: Store, group: str) -> None:
        self._store, self._group = store, group
        self._as_of_ms, self._now = -1, frozenset[str]()

    def now(self) -> frozenset[str]:
        """Asked of the store when any device has changed. Empty where none is enrolled."""
        changed_ms = self._store.devices_changed_ms()
        if changed_ms != self._as_of_ms:
            rows = self._store.devices(self._group)
            self._now = frozenset(row.device_id for row in rows if row.revoked_ms is None)
            self._as_of_ms = changed_ms
        return self._now


class Worlds:
    """initial: state of an adapter that has learned nothing. now: domain of each device in which was learned last."""

    def __init__(self, initial: State, now: Mapping[str, int], learned: Learned) -> None:
        self._initial, self.now, self.learned = initial, dict(now), learned

    @property
    def of_one(self) -> Mapping[str, int]:
        """The world of the only device that sends; empty if there are several."""
        return self.now if len(self.now) == 1 else {}

    def good_in(self, members: Collection[str]) -> int:
        """The world that an update names: of a group's only device. 0: what was learned is good in all, since several
        use it, or the one watches no worlds. members: see ``enter``."""
        return next(iter(self.of_one.values()), 0) if len(members) <= 1 else 0

    def enter(self, condition: Condition, adapter: Adapter, members: Collection[str] = ()) -> bool:
        """Samples of this condition are about to be learned; True if the adapter has been changed for it. members:
        devices that belong to the group now, empty if that is not known; the others are no more. A device that took the
        place of another has learned nothing yet."""
        device, domain = condition
        left = [each for each in self.now if members and each not in members and each != device]
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
