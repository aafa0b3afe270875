"""How much one key may ask for."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boxwood.server import rate
from boxwood.server.errors import RateLimited
from boxwood.server.rate import Bodies, Rates


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def asked(rates: Rates, times: int, key: str = "k") -> int:
    """How many of so many requests get in; each is answered at once."""
    done = 0
    for _ in range(times):
        try:
            rates.enter(key)
        except RateLimited:
            continue
        rates.leave(key)
        done += 1
    return done


def test_a_burst_and_then_so_many_a_second(clock):
    rates = Rates(10, 20, 0, clock)
    assert asked(rates, 100) == 20
    clock.now += 0.5
    assert asked(rates, 100) == 5
    clock.now += 3600
    assert asked(rates, 100) == 20


def test_what_was_refused_costs_nothing(clock):
    rates = Rates(1, 1, 0, clock)
    assert asked(rates, 1000) == 1
    clock.now += 1
    assert asked(rates, 1) == 1


def test_it_says_when_to_come_back(clock):
    rates = Rates(0.25, 1, 0, clock)
    rates.enter("k")
    with pytest.raises(RateLimited) as refused:
        rates.enter("k")
    assert (refused.value.code, refused.value.retry_after) == ("rate_limited", 4)
    assert refused.value.recovery == {"work": "not_started"}
    clock.now += 4
    rates.enter("k")


def test_each_key_has_its_own(clock):
    rates = Rates(1, 3, 0, clock)
    assert [asked(rates, 10, key) for key in "abc"] == [3, 3, 3]


def test_so_many_at_once(clock):
    rates = Rates(0, 1, 2, clock)
    rates.enter("k")
    rates.enter("k")
    with pytest.raises(RateLimited, match="at once"):
        rates.enter("k")
    rates.enter("other")
    rates.leave("k")
    rates.enter("k")
    for key in ("k", "k", "other"):
        rates.leave(key)
    assert rates._open == {}, "nothing is kept of who is not there"


def test_no_bounds(clock):
    assert asked(Rates(0, 1, 0, clock), 10_000) == 10_000


def test_keys_that_went_are_forgotten(clock):
    rates = Rates(1000, 10, 0, clock)
    for number in range(20 * rate.KEPT):
        clock.now += 0.01
        asked(rates, 1, f"key {number}")
    assert len(rates._full_at) <= rate.KEPT + 1


@settings(derandomize=True, deadline=None, max_examples=100)
@given(
    per_second=st.floats(0.1, 1e6), burst=st.integers(1, 1000),
    pauses=st.lists(st.floats(0, 10) | st.just(0.0), min_size=1, max_size=300),
)  # fmt: skip
def test_never_more_than_the_bucket_holds(per_second, burst, pauses):
    """In any stretch of time: what the bucket held, and what has flowed in since."""
    clock = Clock()
    rates = Rates(per_second, burst, 0, clock)
    moments = []
    for pause in pauses:
        clock.now += pause
        if asked(rates, 1):
            moments.append(clock.now)
    for first, begun in enumerate(moments):
        for last in range(first, len(moments)):
            flowed = (moments[last] - begun) * per_second
            assert last - first + 1 <= burst + math.ceil(flowed) + 1e-6 * per_second + 1


def test_so_many_bytes_at_once():
    bodies = Bodies(100)
    bodies.take("a", 60)
    bodies.take("a", 40)
    bodies.take("b", 100)
    with pytest.raises(RateLimited):
        bodies.take("a", 1)
    bodies.give_back("a", 60)
    bodies.take("a", 60)
    bodies.give_back("a", 100)
    bodies.give_back("b", 100)
    assert bodies._held == {}
