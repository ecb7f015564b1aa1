"""The clients of a box, in a table of fixed size that all of its processes share.

Context: a table in each worker lets through as many times the rate as there are workers, and grows with the number of
addresses that somebody can think up. Decision: one word of 64 bits a client in anonymous memory made before the fork,
its time and a fingerprint of who it is, in buckets of eight. Consequence: no lock, since a word is read and written
whole; two workers that look at the same client in the same microsecond may count two requests as one. 8 MB for a
million clients, and never more.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from serving.shared.numbers import shared_integers

TICKS = 100_000
"""Of a second."""

FINGERPRINT_BITS = 20
FINGERPRINT = (1 << FINGERPRINT_BITS) - 1
"""The rest of a word is a time in ticks: 44 bits are five years."""

WAYS = 8
"""Clients in a bucket: 64 bytes, which a processor loads at once."""

BUCKETS = 1 << 17

RATE = re.compile(r"([1-9][0-9]{0,8})/(second|minute|hour|day)")
PERIODS = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86_400.0}

MAX_REQUESTS_PER_SECOND = 1000.0
"""The table counts time in hundredths of a millisecond: up to here an interval is right to half a percent."""

MAX_DEBT_SECONDS = 365 * 86_400.0
"""The table has room for five years."""


@dataclass(frozen=True, slots=True)
class Rate:
    """So many requests in `period` seconds, and `burst` of them at once."""

    requests: int
    period: float
    burst: int

    @property
    def interval(self) -> float:
        """Seconds that pay for one request."""
        return self.period / self.requests


def parse_rate(text: str, burst: int) -> Rate:
    """Parse `600/minute`; a `burst` of 0 means as many requests as that. Raises ValueError."""
    found = RATE.fullmatch(text)
    if found is None:
        raise ValueError("must be a number of requests and a period, as in 600/minute")
    rate = Rate(int(found[1]), PERIODS[found[2]], burst or int(found[1]))
    if rate.requests / rate.period > MAX_REQUESTS_PER_SECOND:
        raise ValueError(f"may allow at most {MAX_REQUESTS_PER_SECOND:g} requests a second")
    if rate.interval * rate.burst > MAX_DEBT_SECONDS:
        raise ValueError("allows so many at once that they take more than a year to be paid for")
    return rate


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """Whether a request is allowed. `debt` is the seconds that its client has still to pay, with this request."""

    allowed: bool
    debt: float


class SharedTable:
    """A Limiter in memory, to be made before the fork."""

    def __init__(self, rate: Rate, *, buckets: int = BUCKETS, clock: Callable[[], float] = time.monotonic) -> None:
        """`buckets` is a power of two. `clock` is the same for all processes, as CLOCK_MONOTONIC is."""
        self.rate = rate
        self._words = shared_integers(buckets * WAYS)
        self._mask = buckets - 1
        self._interval = max(1, round(rate.interval * TICKS))
        self._tolerance = self._interval * (rate.burst - 1)
        self._clock = clock
        self._started = clock()
        # Clients must not be able to choose their bucket; and the hash of bytes is the same in all forked processes
        self._salt = os.urandom(16)

    async def take(self, client: bytes) -> Verdict:
        """See Limiter."""
        return self.count(client)

    def count(self, client: bytes) -> Verdict:
        """The same, without waiting for anything.

        A client that is new to a full bucket takes the place of the one that owes least: of one that owes nothing, as
        a rule, which loses nothing by that.
        """
        number = hash(self._salt + client)
        mark = number & FINGERPRINT
        first = (number >> FINGERPRINT_BITS & self._mask) * WAYS
        now = int((self._clock() - self._started) * TICKS) + 1
        words = self._words[first : first + WAYS].tolist()
        for place, word in enumerate(words):  # noqa: B007 - it is used after the loop
            if word & FINGERPRINT == mark and word:
                debt = (word >> FINGERPRINT_BITS) - now
                break
        else:
            place, debt = words.index(min(words)), 0
        if debt > self._tolerance:
            return Verdict(False, debt / TICKS)  # noqa: FBT003 - twice as quick as by name
        debt = debt + self._interval if debt > 0 else self._interval
        self._words[first + place] = (now + debt) << FINGERPRINT_BITS | mark
        return Verdict(True, debt / TICKS)  # noqa: FBT003

    async def close(self) -> None:
        """Nothing is open."""
