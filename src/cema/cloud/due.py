"""Of which uploads a tick makes a step: of one device in one world each, the one with the oldest upload first.

In: what waits in the store. Out: conditions, one for each step. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping

from cema.cloud.adapt.base import Schedule
from cema.cloud.store.samples import Condition, Waiting


def steps(uploads: int, schedule: Schedule) -> int:
    """How many steps so many uploads are."""
    return uploads // schedule.step_uploads or int(uploads >= schedule.least_uploads)


def due(waiting: Mapping[Condition, Waiting], now: Mapping[str, int], schedule: Schedule) -> list[Condition]:
    """What is left of a world that its device has left is learned before the next one, however little it is.

    A device's steps end in the world in which it is: the weights that are published would be of no use to it else. A
    world that was left waits until there is enough of the present one, unless the cloud is in it still. waiting: the
    condition with the oldest upload first. now: world of each device in which the cloud learned last.
    """
    by_device: dict[str, list[Condition]] = {}
    for condition in waiting:
        by_device.setdefault(condition.device_id, []).append(condition)
    found: list[Condition] = []
    for device_id, conditions in by_device.items():
        *left, present = sorted(conditions, key=lambda condition: waiting[condition].newest)
        of_present = steps(waiting[present].uploads, schedule)
        for world in left:
            if of_present or now.get(device_id, world.domain) == world.domain:
                found += [world] * -(-waiting[world].uploads // schedule.step_uploads)  # its last ones, too
        found += [present] * of_present
    return found
