"""The breaker, with time in the test's hand."""

from __future__ import annotations

import pytest

from cache.breaker import Breaker
from tests.cache.conftest import Clock


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(failures=3, cool_down=1.0, max_cool_down=5.0, clock=clock, jitter=lambda: 1.0)


def begin(breaker: Breaker) -> int:
    attempt = breaker.begin()
    assert attempt is not None
    return attempt


def open_up(breaker: Breaker) -> None:
    assert [breaker.failed(begin(breaker)) for _ in range(3)] == [False, False, True]


def test_breaker_opens_after_so_many_failures(breaker: Breaker) -> None:
    open_up(breaker)
    assert breaker.state == "open"
    assert breaker.begin() is None


def test_success_in_between_starts_the_count_anew(breaker: Breaker) -> None:
    for _ in range(5):
        assert not breaker.failed(begin(breaker))
        assert not breaker.failed(begin(breaker))
        assert not breaker.succeeded(begin(breaker))
    assert breaker.state == "closed"


def test_one_of_a_hundred_waiting_callers_probes(breaker: Breaker, clock: Clock) -> None:
    open_up(breaker)
    clock.advance(1.0)
    assert breaker.state == "half-open"
    attempts = [breaker.begin() for _ in range(100)]
    assert sum(attempt is not None for attempt in attempts) == 1
    assert breaker.state == "half-open"


def test_successful_probe_closes_it_for_all(breaker: Breaker, clock: Clock) -> None:
    open_up(breaker)
    clock.advance(1.0)
    assert breaker.succeeded(begin(breaker))
    assert breaker.state == "closed"
    assert None not in [breaker.begin() for _ in range(100)]


def test_it_takes_as_many_failures_to_open_it_a_second_time(breaker: Breaker, clock: Clock) -> None:
    open_up(breaker)
    clock.advance(1.0)
    breaker.succeeded(begin(breaker))
    open_up(breaker)
    clock.advance(1.0)
    assert breaker.state == "half-open"


def test_cool_down_doubles_with_each_failed_probe_up_to_the_maximum(breaker: Breaker, clock: Clock) -> None:
    open_up(breaker)
    for cool_down in (1.0, 2.0, 4.0, 5.0, 5.0):
        clock.advance(cool_down - 0.01)
        assert breaker.begin() is None
        clock.advance(0.01)
        assert not breaker.failed(begin(breaker)), "a probe that fails is no news"


def test_each_cool_down_has_its_jitter(clock: Clock) -> None:
    factors = iter([0.8, 1.2])
    breaker = Breaker(failures=1, cool_down=1.0, clock=clock, jitter=lambda: next(factors))
    breaker.failed(begin(breaker))
    clock.advance(0.8)
    breaker.failed(begin(breaker))
    clock.advance(2.39)
    assert breaker.begin() is None
    clock.advance(0.01)
    assert breaker.begin() is not None


def test_jitter_of_its_own_differs_from_breaker_to_breaker(clock: Clock) -> None:
    breakers = [Breaker(failures=1, cool_down=1.0, clock=clock) for _ in range(200)]
    for breaker in breakers:
        breaker.failed(begin(breaker))
    clock.advance(0.79)
    assert {breaker.state for breaker in breakers} == {"open"}
    clock.advance(0.21)
    assert {breaker.state for breaker in breakers} == {"open", "half-open"}
    clock.advance(0.21)
    assert {breaker.state for breaker in breakers} == {"half-open"}


def test_late_failures_of_earlier_calls_do_not_lengthen_the_cool_down(breaker: Breaker, clock: Clock) -> None:
    earlier = [begin(breaker) for _ in range(100)]
    open_up(breaker)
    clock.advance(0.9)
    assert not any(breaker.failed(attempt) for attempt in earlier)
    clock.advance(0.1)
    probe = begin(breaker)
    breaker.failed(earlier[0])
    assert breaker.begin() is None, "the probe is still on its way"
    assert breaker.succeeded(probe)
    breaker.failed(earlier[1])
    breaker.failed(earlier[2])
    breaker.failed(earlier[3])
    assert breaker.state == "closed", "what failed long ago says nothing of now"


def test_late_success_of_an_earlier_call_does_not_close_it(breaker: Breaker) -> None:
    earlier = begin(breaker)
    open_up(breaker)
    assert not breaker.succeeded(earlier)
    assert breaker.begin() is None


def test_cancelled_probe_hands_over_to_the_next_caller(breaker: Breaker, clock: Clock) -> None:
    open_up(breaker)
    clock.advance(1.0)
    breaker.abandoned(begin(breaker))
    assert breaker.succeeded(begin(breaker))


def test_cancellation_is_no_verdict(breaker: Breaker) -> None:
    breaker.failed(begin(breaker))
    breaker.failed(begin(breaker))
    for _ in range(10):
        breaker.abandoned(begin(breaker))
    assert breaker.state == "closed"
    assert breaker.failed(begin(breaker)), "the two failures before still count"


def test_cancelled_call_of_earlier_does_not_release_the_probe(breaker: Breaker, clock: Clock) -> None:
    earlier = begin(breaker)
    open_up(breaker)
    clock.advance(1.0)
    begin(breaker)
    breaker.abandoned(earlier)
    assert breaker.begin() is None
