"""A circuit breaker: after some failures in a row nothing is tried for a while, then one call is, on behalf of all."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Literal

State = Literal["closed", "open", "half-open"]


class Breaker:
    """Ask `begin` before each call and report its end with the number it gave; used from one event loop.

    A number belongs to one period between two changes of state, so a call that began before the breaker opened can
    neither lengthen the cool-down nor end it. A cancelled call says nothing about the server: it is `abandoned`, and if
    it was the probe the next caller probes instead.
    """

    def __init__(
        self,
        *,
        failures: int = 3,
        cool_down: float = 1.0,
        max_cool_down: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = lambda: random.uniform(0.8, 1.2),  # noqa: S311 - no secret
    ) -> None:
        """Opens after so many `failures` in a row. `cool_down` seconds double with each failed probe.

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
    def state(self) -> State:
        if not self._open:
            return "closed"
        return "half-open" if self._probing or self._clock() >= self._retry_at else "open"

    def begin(self) -> int | None:
        """A number to report the call's end with, or None: do not call."""
        if self._open:
            if self._probing or self._clock() < self._retry_at:
                return None
            self._probing = True
        return self._period

    def succeeded(self, period: int) -> bool:
        """True when this closed the breaker."""
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
        """True when this opened the breaker; a failed probe, which keeps it open, is no news."""
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
        """The call was cancelled."""
        if period == self._period:
            self._probing = False
