"""Guards calls to a server: a deadline, a circuit breaker, one word for "unavailable", nothing inherited across a fork.

Context: Redis, Supabase and webhooks are slow, hang, refuse and come back, and each client library has its own way of
waiting too long for them. Decision: every call to another server runs under a Guard, which knows three ends of a call:
the server is unwell (a failure or a missed deadline, counted by the breaker), the server is well but refuses, and the
call was cancelled, which says nothing about the server. Consequence: a server that hangs costs a few calls their
deadline, and all others nothing.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar

import structlog

BreakerState = Literal["closed", "open", "half-open"]

log = structlog.get_logger(__name__)

T = TypeVar("T")


class NotTried(Exception):
    """The call was not made: the server has failed several times and is left alone for a while."""


class ServerUnavailable(Exception):
    """The call failed because the server is unwell; the message is the reason."""


class Breaker:
    """A circuit breaker: after several failures in a row it refuses all calls for a while, then lets one call probe.

    Ask `begin` before each call and report the call's end with the number that `begin` returned; for one event loop.

    A number belongs to one period between two changes of state, so a call that began before the breaker opened can
    neither lengthen the cool-down nor end it. A cancelled call says nothing about the server: it is `abandoned`, and if
    it was the probe the next caller probes instead.
    """

    def __init__(
        self,
        *,
        failures: float = 3,
        cool_down: float = 1.0,
        max_cool_down: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = lambda: random.uniform(0.8, 1.2),  # noqa: S311 - no secret
    ) -> None:
        """The breaker opens after `failures` in a row. `cool_down` seconds double with each failed probe.

        `jitter` is a factor on each cool-down, so that the workers of a box do not probe at the same moment.
        """
        self._limit = failures
        self._cool_down = self._first_cool_down = cool_down
        self._max_cool_down = max_cool_down
        self._clock = clock
        self._jitter = jitter
        self._failed = 0
        self._period = 0
        self._open = False
        self._probing = False
        self._retry_at = 0.0

    @property
    def state(self) -> BreakerState:
        if not self._open:
            return "closed"
        return "half-open" if self._probing or self._clock() >= self._retry_at else "open"

    def begin(self) -> int | None:
        """Return a number to report the call's end with, or None: do not call."""
        if self._open:
            if self._probing or self._clock() < self._retry_at:
                return None
            self._probing = True
        return self._period

    def succeeded(self, period: int) -> bool:
        """Return whether this closed the breaker."""
        if period != self._period:
            return False
        self._failed = 0
        if not self._open:
            return False
        self._open = self._probing = False
        self._period += 1
        self._cool_down = self._first_cool_down
        return True

    def failed(self, period: int) -> bool:
        """Return whether this opened the breaker; a failed probe keeps it open, which is no news."""
        if period != self._period:
            return False
        self._failed += 1
        if self._failed < self._limit:
            return False
        news = not self._open
        self._open, self._probing = True, False
        self._period += 1
        self._retry_at = self._clock() + self._cool_down * self._jitter()
        self._cool_down = min(self._cool_down * 2, self._max_cool_down)
        return news

    def abandoned(self, period: int) -> None:
        if period == self._period:
            self._probing = False


class PerProcess(Generic[T]):
    """Holds one object per process, made when it is first used.

    An object made before a fork is kept in the child but never used or closed there: two processes on one socket would
    get each other's answers, SQLite's locks belong to the process that took them, and closing (or collecting) an
    inherited connection would remove it from the epoll set that both processes share.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._by_process: dict[int, T] = {}

    @property
    def own(self) -> T | None:
        """The object of this process; None before its first use."""
        return self._by_process.get(os.getpid())

    def get(self) -> T:
        """Return the object of this process; make it if there is none."""
        process = os.getpid()
        if process not in self._by_process:
            self._by_process[process] = self._make()
        return self._by_process[process]

    def release(self) -> T | None:
        """Return the object of this process for the caller to close; the next `get` makes a new one."""
        return self._by_process.pop(os.getpid(), None)


class Guard:
    """Runs calls to one server; belongs to one event loop. Building it starts nothing, so it may be forked."""

    def __init__(
        self,
        deadline: float,
        *,
        unwell: tuple[type[Exception], ...],
        refused: tuple[type[Exception], ...] = (),
        breaker: Breaker | None = None,
        reason: Callable[[Exception], str] = lambda error: f"{type(error).__name__}: {error}",
        events: tuple[str, str] | None = None,
        refusal: str | None = None,
        log_first_success: bool = False,
    ) -> None:
        """A call may take `deadline` seconds.

        Exceptions in `refused`, which is checked first, pass through and count as a sign of health. Those in `unwell`
        and a missed deadline count against the server and become ServerUnavailable with `reason` as the message. All
        others pass through and say nothing about the server. `events` are logged when the breaker opens and closes; the
        second one also after the first success if `log_first_success`. `refusal` is logged once for refusals in a row.
        """
        self._deadline = deadline
        self._unwell: tuple[type[Exception], ...] = (*unwell, TimeoutError)
        self._refused = refused
        self._breaker = breaker or Breaker()
        self._reason = reason
        self._events = events
        self._refusal = refusal
        self._is_refusing = False
        self._unlogged = log_first_success
        self._running: PerProcess[dict[asyncio.Task[Any], asyncio.Task[Any]]] = PerProcess(dict)

    @property
    def state(self) -> BreakerState:
        return self._breaker.state

    @property
    def running(self) -> int:
        """Calls of `run` that have not ended, including those that nobody waits for any more."""
        return len(self._running.get())

    def call(self) -> AbstractAsyncContextManager[None]:
        """Guard the body of an `async with`, which is cancelled at the deadline. Raises NotTried, ServerUnavailable."""
        return _GuardedCall(self._begin(), self._deadline, self._end)

    async def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return what `work` returns; for a client that loses a connection when a call is cancelled.

        The work has a task of its own, which nobody cancels: it goes on until its own timeouts end it. If the caller is
        cancelled the breaker still learns how the call ended. Raises NotTried, ServerUnavailable.
        """
        period = self._begin()
        loop, running = asyncio.get_running_loop(), self._running.get()
        working = loop.create_task(work())
        watching = loop.create_task(self._watch(period, working))
        running[working] = watching
        working.add_done_callback(running.pop)
        watching.add_done_callback(_look_at)
        await asyncio.wait({watching})
        return watching.result()

    async def settle(self, seconds: float) -> None:
        """Wait for the calls of `run` to end, but not longer than `seconds`."""
        if running := self._running.get():
            await asyncio.wait(set(running), timeout=seconds)

    def _begin(self) -> int:
        period = self._breaker.begin()
        if period is None:
            raise NotTried
        return period

    async def _watch(self, period: int, working: asyncio.Task[T]) -> T:
        working.add_done_callback(_look_at)
        async with _GuardedCall(period, self._deadline, self._end):
            await asyncio.wait({working})
            return working.result()

    def _end(self, period: int, error: BaseException | None) -> None:
        """Report the end of a call to the breaker. Raises ServerUnavailable."""
        if error is None or isinstance(error, self._refused):
            if error is not None and self._refusal and not self._is_refusing:
                log.warning(self._refusal, reason=self._reason(error))
            self._is_refusing = error is not None
            is_first = self._unlogged and error is None
            if (self._breaker.succeeded(period) or is_first) and self._events:
                self._unlogged = False
                log.info(self._events[1])
        elif isinstance(error, self._unwell):
            reason = "no answer in time" if isinstance(error, TimeoutError) else self._reason(error)
            if self._breaker.failed(period) and self._events:
                log.warning(self._events[0], reason=reason)
            raise ServerUnavailable(reason) from error
        else:
            self._breaker.abandoned(period)


class _GuardedCall:
    """One call as a context; a class, because a generator would cost 3 us more."""

    __slots__ = ("_before", "_deadline", "_end", "_period", "_task", "_timeout")

    def __init__(self, period: int, deadline: float, end: Callable[[int, BaseException | None], None]) -> None:
        self._period = period
        self._deadline = deadline
        self._end = end

    async def __aenter__(self) -> None:
        self._task = asyncio.current_task()
        self._before = self._cancellations()
        self._timeout = asyncio.timeout(self._deadline)
        await self._timeout.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError as late:
            error = late
        lost = self._cancellations() > self._before  # under Python 3.11 redis-py may swallow a cancellation
        self._end(self._period, asyncio.CancelledError() if lost else error)
        if lost:
            raise asyncio.CancelledError

    def _cancellations(self) -> int:
        return self._task.cancelling() if self._task is not None else 0


def _look_at(task: asyncio.Task[Any]) -> None:
    """Retrieve the exception of a task that perhaps nobody waits for any more: asyncio logs it otherwise."""
    if not task.cancelled():
        task.exception()
