"""The link model in the stream's own time: size, latency, loss, windows without network."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cema.bench.link import LINKS, Channel, Link, read_link
from cema.errors import ConfigError


def channel(bps: float = 0.0, **changes: float) -> Channel:
    return Channel(Link(name="test", **changes), bps, np.random.default_rng(0))


def test_an_instant_link_delivers_at_once() -> None:
    assert Channel(LINKS["instant"], 0.0, np.random.default_rng(0)).send(10**9, now_s=3.0) == 3.0


def test_a_message_takes_its_bits_and_the_latency_and_waits_for_the_one_before() -> None:
    way = channel(8_000, latency_s=0.5)
    assert way.send(2_000, now_s=10.0) == 12.5
    assert way.send(1_000, now_s=10.0) == 13.5
    assert way.send(1_000, now_s=20.0) == 21.5


def test_offline_a_transfer_pauses_and_goes_on() -> None:
    way = channel(8_000, offline_every_s=60, offline_for_s=30)
    assert way.send(1_000, now_s=10.0) == 11.0
    assert way.send(10_000, now_s=25.0) == 65.0  # 5 s before the gap, 5 s after
    assert way.send(1_000, now_s=100.0) == 121.0
    assert channel(8_000, offline_every_s=60, offline_for_s=30).send(70_000, now_s=0.0) == 130.0  # 30 + 30 + 10


def test_a_transfer_that_ends_with_the_window_does_not_wait_for_the_next() -> None:
    for seconds, arrives in ((5, 30.0), (35, 90.0), (65, 150.0)):
        way = channel(8_000, offline_every_s=60, offline_for_s=30)
        assert way.send(1_000 * seconds, now_s=25.0) == arrives


def test_loss_costs_another_transfer_and_the_time_out() -> None:
    lossy = channel(8_000, loss=0.5)
    taken = np.array([lossy.send(1_000, now_s=1000.0 * i) - 1000.0 * i for i in range(400)])
    assert set(np.round(taken, 6)) <= {1.0 + 2.0 * lost for lost in range(20)}
    assert 0.8 < np.mean((taken - 1.0) / 2.0) < 1.2  # of a geometric distribution with p = 0.5


@given(
    st.lists(st.tuples(st.integers(0, 100_000), st.floats(0, 50)), min_size=1, max_size=20),
    st.sampled_from(sorted(LINKS)),
)
def test_messages_arrive_in_order_and_never_before_they_are_sent(sends: list[tuple[int, float]], name: str) -> None:
    way, now, last = Channel(LINKS[name], LINKS[name].up_bps, np.random.default_rng(1)), 0.0, 0.0
    for size, pause in sends:
        now += pause
        arrives = way.send(size, now)
        assert arrives >= max(now, last)
        last = arrives


def test_links_are_read_by_name_or_by_numbers() -> None:
    assert read_link("lte") is LINKS["lte"]
    assert read_link("up_bps=1e6, latency_s=0.2").up_bps == 1e6
    for text in (
        "5g",
        "up_bps=fast",
        "speed=3",
        "loss=1",
        "latency_s=-1",
        "latency_s=nan",
        "up_bps=inf",
        "offline_every_s=10,offline_for_s=10",
    ):
        with pytest.raises(ConfigError, match="expected"):
            read_link(text)
