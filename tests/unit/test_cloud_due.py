"""Which uploads a tick makes steps of, and in what order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cema.cloud.adapt.cema import Cema
from cema.cloud.due import due, steps
from cema.cloud.store.samples import Condition, Waiting

LEAST, FULL = Cema.schedule.least_uploads, Cema.schedule.step_uploads
A, B, C = (Condition("cam", domain) for domain in (7, 8, 9))
DOOR = Condition("door", 7)
conditions = st.builds(Condition, st.sampled_from("xyz"), st.integers(1, 4))


def asked(arrived: list[Condition], now: dict[str, int]) -> list[Condition]:
    """What is due of uploads that came in this order and have all been waiting since."""
    waiting: dict[Condition, Waiting] = {}
    for row_id, condition in enumerate(arrived, 1):
        waiting[condition] = Waiting(waiting.get(condition, Waiting(0, 0)).uploads + 1, row_id)
    return due(waiting, now, Cema.schedule)


@pytest.mark.parametrize(("uploads", "made"), [(0, 0), (LEAST - 1, 0), (LEAST, 1), (FULL, 1), (2 * FULL + 3, 2)])
def test_one_world_is_learned_in_steps_of_sixteen_or_once_from_eight(uploads: int, made: int) -> None:
    assert steps(uploads, Cema.schedule) == made
    assert asked([A] * uploads, {"cam": 7}) == [A] * made


def test_what_is_left_of_a_world_comes_before_the_next_one() -> None:
    assert asked([A] * 3 + [B] * LEAST, {"cam": 7}) == [A, B]


def test_a_device_that_went_and_came_back_ends_where_it_is() -> None:
    """Some of A wait, then B is visited, then it is A again: A has the oldest upload, and the newest."""
    assert asked([A] * 3 + [B] * LEAST + [A] * 5, {"cam": 7}) == [B, A]


@pytest.mark.parametrize("visited", [3, LEAST, 2 * FULL])
def test_a_visit_is_not_learned_while_there_is_too_little_of_the_present_world(visited: int) -> None:
    arrived = [B] * visited + [A] * 3
    assert asked(arrived, {"cam": 7}) == []
    assert asked([*arrived, *[A] * (LEAST - 3)], {"cam": 7})[-1] == A


def test_the_world_that_the_cloud_is_in_is_learned_to_its_end_at_once() -> None:
    assert asked([A] * 3 + [B] * 2, {"cam": 7}) == [A]
    assert asked([A] * 3 + [B] * LEAST + [C] * 2, {"cam": 7}) == [A]


def test_a_world_that_was_left_is_learned_to_its_last_upload() -> None:
    assert asked([A] * (FULL + 4) + [B] * LEAST, {"cam": 7}) == [A, A, B]


def test_the_device_with_the_oldest_upload_comes_first() -> None:
    assert asked([DOOR] * LEAST + [A] * LEAST + [DOOR], {}) == [DOOR, A]


@given(st.lists(conditions, max_size=80), st.dictionaries(st.sampled_from("xyz"), st.integers(1, 4)))
def test_of_each_device_the_present_world_is_last_and_nothing_is_learned_twice(
    arrived: list[Condition], now: dict[str, int]
) -> None:
    found = asked(arrived, now)
    for device in "xyz":
        own = [condition for condition in arrived if condition.device_id == device]
        made = [condition for condition in found if condition.device_id == device]
        enough = own.count(own[-1]) >= LEAST if own else False
        assert not enough or made[-1] == own[-1]
        assert enough or all(each.domain == now.get(device, each.domain) for each in made)
        assert all(made.count(each) <= -(-own.count(each) // FULL) for each in made)
        left = {each for each in made if each != own[-1]}
        assert all(made.count(each) * FULL >= own.count(each) for each in left), "nothing of it waits any longer"
