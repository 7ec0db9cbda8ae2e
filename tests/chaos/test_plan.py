"""The plan: the same seed, the same faults; every kind often enough."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from chaos.injector import Injector
from chaos.plan import CLOUD, CLOUD_KINDS, EDGES, KINDS, QUIET_S, ROUND_S, schedule


@given(st.integers(0, 2**32), st.floats(ROUND_S, 1000))
def test_the_same_seed_gives_the_same_faults(seed: int, seconds: float) -> None:
    assert schedule(seed, seconds) == schedule(seed, seconds)


def test_another_seed_gives_other_faults() -> None:
    assert schedule(0, 90) != schedule(1, 90)


@given(st.integers(0, 2**32))
def test_ten_minutes_have_every_kind_at_least_twenty_times(seed: int) -> None:
    assert min(Counter(fault.kind for fault in schedule(seed, 600)).values()) >= 20


@given(st.integers(0, 2**32), st.floats(1, 300))
def test_all_faults_begin_in_order_and_before_the_last_quiet_seconds(seed: int, seconds: float) -> None:
    faults = schedule(seed, max(seconds, ROUND_S))
    assert all(earlier.at_s <= later.at_s for earlier, later in pairwise(faults))
    assert faults[0].at_s >= 0
    assert faults[-1].at_s <= max(seconds, ROUND_S) - QUIET_S + 0.001
    assert {fault.kind for fault in faults} == set(KINDS)


@given(st.integers(0, 2**32))
def test_the_clouds_faults_hit_the_cloud_and_the_others_the_edges(seed: int) -> None:
    for fault in schedule(seed, 90):
        assert (fault.target == CLOUD) == (fault.kind in CLOUD_KINDS)
        assert fault.target in (*EDGES, CLOUD)


def test_every_kind_can_be_injected() -> None:
    for kind in KINDS:
        assert callable(getattr(Injector, "_" + kind.replace(" ", "_")))
