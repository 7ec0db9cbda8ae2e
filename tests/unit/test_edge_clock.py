"""The server's time on a device whose own clock is wrong, and is set meanwhile."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cema.edge.clock import ServerClock

seconds = st.floats(-1e9, 1e9)


class Watch:
    """Both clocks of a device."""

    def __init__(self, wall_s: float) -> None:
        self.wall_s, self.tick_s = wall_s, 100.0
        self.clock = ServerClock(lambda: self.wall_s, lambda: self.tick_s)

    def pass_time(self, elapsed_s: float) -> None:
        self.wall_s += elapsed_s
        self.tick_s += elapsed_s


def test_before_the_first_answer_there_is_the_devices_clock() -> None:
    watch = Watch(5.0)
    assert not watch.clock.known
    watch.pass_time(2.0)
    assert watch.clock.now_ms() == 7000
    assert watch.clock.at_ms(100.5) == 5500


@given(seconds, seconds, st.integers(0, 2_000_000_000_000), st.integers(0, 10**6))
def test_once_heard_no_jump_of_the_devices_clock_changes_the_time(
    wall_s: float, jump_s: float, server_ms: int, elapsed_s: int
) -> None:
    watch = Watch(wall_s)
    watch.clock.hear(server_ms)
    assert watch.clock.known
    watch.wall_s += jump_s
    watch.pass_time(elapsed_s)
    assert watch.clock.now_ms() == server_ms + 1000 * elapsed_s
    assert watch.clock.at_ms(watch.tick_s - elapsed_s) == server_ms


def test_what_was_captured_before_the_first_answer_is_dated_by_it() -> None:
    watch = Watch(0.0)  # 1970
    captured_s = watch.tick_s
    watch.pass_time(3.0)
    watch.clock.hear(1_000_000_000)
    assert watch.clock.at_ms(captured_s) == 1_000_000_000 - 3000
