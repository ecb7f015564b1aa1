"""A rate and what it says of one request, by the generic cell rate algorithm (GCRA).

Of a client one moment is kept, its theoretical arrival time (TAT): when it will have paid for all that it has sent,
each request costing one interval. Who would be more than a whole burst in debt is refused, and not charged. A moment
that has passed says nothing, so nobody has to be remembered for longer than a burst lasts. ATM Forum, Traffic
Management 4.1 (1999), 4.4.2, as virtual scheduling.
"""

from __future__ import annotations

import math
import re
from typing import Protocol

from serving.shared.rate_table import Rate, Verdict

RATE = re.compile(r"([1-9][0-9]{0,8})/(second|minute|hour|day)")
PERIODS = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86_400.0}

MOST_PER_SECOND = 1000.0
"""The table counts time in hundredths of a millisecond: up to here an interval is right to half a percent."""

LONGEST_DEBT = 365 * 86_400.0
"""In seconds; the table has room for five years."""

Headers = list[tuple[bytes, bytes]]


def parse_rate(text: str, burst: int) -> Rate:
    """`600/minute` as a Rate; a `burst` of 0 is as many as that. Raises ValueError."""
    found = RATE.fullmatch(text)
    if found is None:
        raise ValueError("must be a number of requests and a period, as in 600/minute")
    rate = Rate(int(found[1]), PERIODS[found[2]], burst or int(found[1]))
    if rate.requests / rate.period > MOST_PER_SECOND:
        raise ValueError(f"may allow at most {MOST_PER_SECOND:g} requests a second")
    if rate.interval * rate.burst > LONGEST_DEBT:
        raise ValueError("allows so many at once that they take more than a year to be paid for")
    return rate


class Limiter(Protocol):
    """Counts requests by client. Belongs to the processes that share it; connects to nothing before its first use."""

    rate: Rate

    async def take(self, client: bytes) -> Verdict:
        """Charge `client` for one request, unless it is refused."""
        ...

    async def close(self) -> None:
        """Disconnect."""
        ...


class RateHeaders:
    """What an answer tells its client of its rate: draft-ietf-httpapi-ratelimit-headers-10, in whole seconds."""

    def __init__(self, rate: Rate) -> None:
        self._burst = rate.burst
        self._interval = rate.interval
        window = math.ceil(rate.burst * rate.interval)
        self._policy = (b"ratelimit-policy", b'"default";q=%d;w=%d' % (rate.burst, window))

    def of(self, verdict: Verdict) -> Headers:
        """`r` requests are left now, and after `t` seconds all of them."""
        debt = verdict.debt
        left = self._burst - debt / self._interval + 1e-6 if verdict.allowed else 0.0
        # %d cuts off what is less than a whole one; of seconds that is one more
        return [self._policy, (b"ratelimit", b'"default";r=%d;t=%d' % (left, debt + 0.999999))]

    def retry_after(self, verdict: Verdict) -> float:
        """Seconds until the next request of a refused client is taken."""
        return max(0.0, verdict.debt - (self._burst - 1) * self._interval)
