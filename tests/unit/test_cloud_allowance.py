"""What a device may ask for: bursts pass, what is too much waits as long as it must, devices do not share."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cema.cloud.api.allowance import BURST_S, Allowance
from cema.errors import OverloadedError


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def refused(allowance: Allowance, device_id: str = "cam") -> float:
    """Seconds to wait; 0 = not refused."""
    try:
        allowance.check(device_id)
    except OverloadedError as error:
        pause_s = error.values["retry_after_s"]
        assert isinstance(pause_s, float)
        return pause_s
    return 0.0


def test_a_burst_passes_then_the_rate_counts() -> None:
    clock = Clock()
    allowance = Allowance(2.0, "key", clock)
    for _ in range(int(2 * BURST_S)):
        assert not refused(allowance)
        allowance.spend("cam", 1)
    with pytest.raises(OverloadedError, match=r"'cam' asks for more than 2/s \(key\)"):
        allowance.check("cam")
    clock.now_s += 0.5
    assert not refused(allowance)


def test_who_owes_waits_until_it_is_paid_back() -> None:
    clock = Clock()
    allowance = Allowance(100.0, "key", clock)
    allowance.spend("cam", 100 * BURST_S + 300)
    assert refused(allowance) == pytest.approx(3.0)
    clock.now_s += 2.9
    assert refused(allowance) == pytest.approx(0.1)
    clock.now_s += 0.2
    assert not refused(allowance)


def test_devices_do_not_share() -> None:
    allowance = Allowance(1.0, "key", Clock())
    allowance.spend("cam", 1000)
    assert refused(allowance)
    assert not refused(allowance, "cam2")


def test_zero_is_unlimited() -> None:
    allowance = Allowance(0.0, "key", Clock())
    allowance.spend("cam", 1e12)
    assert not refused(allowance)


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 50)), max_size=50), st.floats(0.1, 100))
def test_never_more_than_burst_rate_and_one_last_request(steps: list[tuple[float, float]], rate_per_s: float) -> None:
    clock = Clock()
    allowance, spent, largest = Allowance(rate_per_s, "key", clock), 0.0, 0.0
    for pause_s, amount in steps:
        clock.now_s += pause_s
        if not refused(allowance):
            allowance.spend("cam", amount)
            spent, largest = spent + amount, max(largest, amount)
    allowed = rate_per_s * (BURST_S + clock.now_s - 1000.0)
    assert spent <= allowed + largest + 1e-6 * allowed
