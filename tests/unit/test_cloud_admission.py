"""What all uploads together may hold: who is refused, when to come back, and that nothing is held for ever."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from cema.cloud.api.admission import DEVICE_UPLOADS, FIRST_TURN_S, MAX_PAUSE_S, MIN_PAUSE_S, Admission
from cema.config import ServerConfig
from cema.errors import OverloadedError

SERVER = ServerConfig(max_body_bytes=50, max_queued_bytes=100, max_queued_uploads=3)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def reasons() -> list[str]:
    return []


@pytest.fixture
def admission(clock: Clock, reasons: list[str]) -> Admission:
    return Admission(SERVER, clock, reasons.append)


def fill(admission: Admission, stack: ExitStack) -> None:
    """Take every place before the store."""
    for _ in range(SERVER.max_queued_uploads):
        stack.enter_context(admission.turn())


def pause_s(admission: Admission, device_id: str = "cam") -> float:
    with pytest.raises(OverloadedError) as caught, admission.upload(device_id):
        raise AssertionError("admitted")
    asked = caught.value.values["retry_after_s"]
    assert isinstance(asked, float)
    return asked


def test_an_upload_holds_its_bytes_until_it_ends(admission: Admission) -> None:
    with admission.upload("cam") as upload:
        upload.grow(30)
        upload.grow(20)
        assert (admission.held_bytes, admission.in_flight) == (50, 1)
    assert (admission.held_bytes, admission.in_flight) == (0, 0)


def test_bytes_beyond_the_bound_are_refused_as_they_come(admission: Admission, reasons: list[str]) -> None:
    with admission.upload("a") as first, admission.upload("b") as second:
        first.grow(60)
        second.grow(40)
        with pytest.raises(OverloadedError, match=r"uploads hold 100 bytes of memory \(server.max_queued_bytes\)"):
            second.grow(1)
        assert admission.held_bytes == 100
        assert pause_s(admission, "c") >= MIN_PAUSE_S, "nor does anybody begin"
    assert reasons == ["bytes", "bytes"]
    with admission.upload("c") as third:
        third.grow(100)


def test_who_comes_when_all_places_are_taken_is_refused_before_its_body_comes(
    admission: Admission, reasons: list[str]
) -> None:
    with ExitStack() as stack:
        fill(admission, stack)
        with pytest.raises(OverloadedError, match=r"3 uploads wait already \(server.max_queued_uploads\)"):
            stack.enter_context(admission.upload("cam"))
    assert reasons == ["places"]
    with admission.upload("cam"), admission.turn():
        assert admission.queued == 1


def test_a_body_that_is_complete_when_all_places_are_taken_is_refused_too(admission: Admission) -> None:
    with admission.upload("cam") as upload, ExitStack() as stack:
        upload.grow(10)
        fill(admission, stack)
        with pytest.raises(OverloadedError):
            stack.enter_context(admission.turn())
        assert admission.queued == SERVER.max_queued_uploads


def test_one_device_cannot_take_all_places(admission: Admission, reasons: list[str]) -> None:
    with ExitStack() as stack:
        for _ in range(DEVICE_UPLOADS):
            stack.enter_context(admission.upload("cam"))
        assert pause_s(admission) == MIN_PAUSE_S
        stack.enter_context(admission.upload("other"))
    assert reasons == ["device"]
    with admission.upload("cam"):
        pass


def test_appointments_follow_one_another_at_the_speed_of_the_store(admission: Admission, clock: Clock) -> None:
    with ExitStack() as stack:
        fill(admission, stack)
        pauses = [pause_s(admission) for _ in range(200)]
        assert pauses[0] == MIN_PAUSE_S
        assert pauses[-1] == pytest.approx(200 * FIRST_TURN_S)
        clock.now_s += 100
        assert pause_s(admission) == MIN_PAUSE_S, "what was booked is over"


def test_a_full_book_begins_anew_instead_of_calling_all_at_its_end(admission: Admission) -> None:
    with ExitStack() as stack:
        fill(admission, stack)
        pauses = [pause_s(admission) for _ in range(2 * round(MAX_PAUSE_S / FIRST_TURN_S))]
    assert max(pauses) <= MAX_PAUSE_S
    per_second = [sum(second <= pause < second + 1 for pause in pauses) for second in range(2, int(MAX_PAUSE_S))]
    assert max(per_second) - min(per_second) <= 2


def test_the_time_of_one_upload_is_that_between_two_ends_while_others_wait(admission: Admission, clock: Clock) -> None:
    for _ in range(100):  # two are always there, one ends each half second
        with admission.turn():
            with admission.turn():
                clock.now_s += 0.5
            clock.now_s += 0.5
        clock.now_s += 60  # nobody waits: this time is not the store's
    with ExitStack() as stack:
        fill(admission, stack)
        pauses = [pause_s(admission) for _ in range(10)]
    assert pauses[9] - pauses[8] == pytest.approx(0.5, rel=0.01)


def test_a_store_that_takes_minutes_is_asked_again_within_one(admission: Admission, clock: Clock) -> None:
    for _ in range(100):
        with admission.turn(), admission.turn():
            pass
        with admission.turn():
            with admission.turn():
                pass
            clock.now_s += 600
    with ExitStack() as stack:
        fill(admission, stack)
        assert MIN_PAUSE_S <= pause_s(admission) <= MAX_PAUSE_S
