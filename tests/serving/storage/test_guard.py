"""The guard and its breaker, with time in the test's hand."""

from __future__ import annotations

import asyncio
import math
import os
from contextlib import suppress

import pytest
import structlog

from serving.storage.guard import Breaker, Guard, NotTried, PerProcess, ServerUnavailable
from tests.cache.conftest import Clock, turns

FAILURES = 3


@pytest.fixture
def clock() -> Clock:
    return Clock()


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


class ServerDown(Exception):
    """A failure of the server."""


class ServerSaysNo(ServerDown):
    """A refusal of a server that is well."""


@pytest.fixture
def guard(breaker: Breaker) -> Guard:
    return Guard(
        0.01, unwell=(ServerDown,), refused=(ServerSaysNo,), breaker=breaker, reason=str, events=("down", "up again")
    )


async def fail(guard: Guard, error: BaseException) -> None:
    async with guard.call():
        raise error


async def open_guard(guard: Guard) -> None:
    for _ in range(FAILURES):
        with pytest.raises(ServerUnavailable, match=r"^broken$"):
            await fail(guard, ServerDown("broken"))
    assert guard.state == "open"


@pytest.mark.anyio
async def test_failures_open_the_breaker_and_then_nothing_is_tried(guard: Guard) -> None:
    await open_guard(guard)
    ran = False
    with pytest.raises(NotTried):
        async with guard.call():
            ran = True
    with pytest.raises(NotTried):
        await guard.run(asyncio.Event().wait)
    assert (ran, guard.running) == (False, 0)


@pytest.mark.anyio
async def test_missed_deadline_counts_as_a_failure(guard: Guard) -> None:
    for _ in range(FAILURES):
        with pytest.raises(ServerUnavailable, match=r"^no answer in time$"):
            async with guard.call():
                await asyncio.Event().wait()
    assert guard.state == "open"


@pytest.mark.anyio
async def test_refusal_passes_through_and_shows_that_the_server_is_well(guard: Guard) -> None:
    for error in (ServerDown, ServerDown, ServerSaysNo, ServerDown, ServerDown):
        with pytest.raises((ServerUnavailable, ServerSaysNo)):
            await fail(guard, error())
    assert guard.state == "closed"


@pytest.mark.anyio
@pytest.mark.parametrize("error", [LookupError(), asyncio.CancelledError()])
async def test_what_says_nothing_about_the_server_passes_through_and_is_not_counted(
    guard: Guard, clock: Clock, error: BaseException
) -> None:
    for _ in range(2 * FAILURES):
        with pytest.raises(type(error)):
            await fail(guard, error)
    assert guard.state == "closed"
    await open_guard(guard)
    clock.advance(1.0)
    with pytest.raises(type(error)):
        await fail(guard, error)
    async with guard.call():
        """The next caller probes."""
    assert guard.state == "closed"


@pytest.mark.anyio
async def test_outage_is_logged_once_and_so_is_its_end(guard: Guard, clock: Clock) -> None:
    with structlog.testing.capture_logs() as logs:
        async with guard.call():
            """A first success is no news."""
        await open_guard(guard)
        clock.advance(1.0)
        with pytest.raises(ServerUnavailable):
            await fail(guard, ServerDown())
        clock.advance(2.0)
        for _ in range(2):
            async with guard.call():
                pass
    assert [(line["event"], line.get("reason")) for line in logs] == [("down", "broken"), ("up again", None)]


@pytest.mark.anyio
async def test_first_success_is_logged_if_asked_for_and_once() -> None:
    guard = Guard(1.0, unwell=(ServerDown,), events=("down", "established"), log_first_success=True)
    with structlog.testing.capture_logs() as logs:
        for _ in range(2):
            async with guard.call():
                pass
    assert [line["event"] for line in logs] == ["established"]


@pytest.mark.anyio
async def test_swallowed_cancellation_is_raised_again() -> None:
    guard = Guard(60.0, unwell=(ServerDown,))

    async def swallow() -> None:
        async with guard.call():
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    task = asyncio.create_task(swallow())
    await turns()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


class Work:
    """Waits for its gate and remembers whether it was cancelled."""

    def __init__(self, error: Exception | None = None) -> None:
        self.gate = asyncio.Event()
        self.cancelled = False
        self._error = error

    async def __call__(self) -> str:
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self._error is not None:
            raise self._error
        return "done"


@pytest.mark.anyio
async def test_run_returns_what_the_work_returns(guard: Guard) -> None:
    work = Work()
    work.gate.set()
    assert await guard.run(work) == "done"
    assert guard.running == 0


@pytest.mark.anyio
async def test_work_goes_on_past_the_deadline_which_counts_once(guard: Guard, breaker: Breaker) -> None:
    works = [Work(ServerDown()) for _ in range(FAILURES - 1)]
    for work in works:
        with pytest.raises(ServerUnavailable, match=r"^no answer in time$"):
            await guard.run(work)
    assert guard.running == len(works)
    for work in works:
        work.gate.set()
    await guard.settle(5.0)
    await turns()
    assert (guard.running, guard.state) == (0, "closed"), "the late failures are not counted again"
    assert not any(work.cancelled for work in works)


@pytest.mark.anyio
async def test_breaker_learns_how_a_call_ended_whose_caller_was_cancelled(breaker: Breaker) -> None:
    guard = Guard(60.0, unwell=(ServerDown,), breaker=breaker)
    works = [Work(ServerDown()) for _ in range(FAILURES)]
    callers = [asyncio.create_task(guard.run(work)) for work in works]
    await turns()
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    assert (guard.running, guard.state) == (FAILURES, "closed")
    for work in works:
        work.gate.set()
    await guard.settle(5.0)
    await turns()
    assert (guard.running, guard.state) == (0, "open")
    assert not any(work.cancelled for work in works)


def test_guard_without_limit_tries_every_call() -> None:
    breaker = Breaker(failures=math.inf)
    for _ in range(1000):
        breaker.failed(begin(breaker))
    assert breaker.state == "closed"


def test_child_has_an_object_of_its_own_and_never_touches_the_parents() -> None:
    made: list[int] = []
    collected: list[int] = []

    class Connection:
        def __init__(self) -> None:
            self.process = os.getpid()
            made.append(self.process)

        def __del__(self) -> None:
            collected.append(self.process)

    held = PerProcess(Connection)
    assert held.own is None
    parents = id(held.get())
    child = os.fork()
    if child == 0:
        fine = held.own is None and held.release() is None
        fine = fine and held.get().process == os.getpid() and id(held.get()) != parents
        released = held.release()
        fine = fine and released is not None and held.own is None
        del released
        os._exit(0 if fine and collected == [os.getpid()] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert id(held.get()) == parents
    assert (made, collected) == ([os.getpid()], [])
