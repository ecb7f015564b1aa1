"""The request rates of all clients of a box, in a table of fixed size that its processes share.

Context: with a table in each worker, n workers allow n times the rate, and attackers can make it grow by inventing
addresses. Decision: one word of 64 bits a client, its time and a fingerprint of its name, in buckets of eight, in
anonymous memory made before the fork. Consequence: no lock, since a word is read and written whole; two workers that
count the same client in the same microsecond may count two requests as one. 8 MB for a million clients, never more.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from serving.shared.numbers import shared_integers

TICKS_PER_SECOND = 100_000

FINGERPRINT_BITS = 20
FINGERPRINT = (1 << FINGERPRINT_BITS) - 1
"""The other 44 bits of a word are a time in ticks, enough for five years."""

BUCKET_CLIENTS = 8
"""A bucket is 64 bytes, one cache line."""

BUCKETS = 1 << 17

RATE = re.compile(r"([1-9][0-9]{0,8})/(second|minute|hour|day)")
PERIODS = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86_400.0}

MAX_REQUESTS_PER_SECOND = 1000.0
"""The table counts time in hundredths of a millisecond: up to here an interval is right to half a percent."""

MAX_DEBT_SECONDS = 365 * 86_400.0
"""The table has room for five years."""


@dataclass(frozen=True, slots=True)
class Rate:
    """`requests` in `period` seconds on average, `burst` at once."""

    requests: int
    period: float
    burst: int

    @property
    def interval(self) -> float:
        """Seconds that pay off the debt of one request."""
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
        raise ValueError("allows a burst that takes more than a year to pay off")
    return rate


class RateVerdict(msgspec.Struct, frozen=True, gc=False):
    """The verdict on a request. `debt` is in seconds: after so long without requests its client owes nothing."""

    allowed: bool
    debt: float


class RateTable:
    """Counts the requests of clients; to be made before the fork."""

    def __init__(self, rate: Rate, *, buckets: int = BUCKETS, clock: Callable[[], float] = time.monotonic) -> None:
        """`buckets` is a power of two. `clock` is the same for all processes, as CLOCK_MONOTONIC is."""
        self.rate = rate
        self._words = shared_integers(buckets * BUCKET_CLIENTS)
        self._mask = buckets - 1
        self._interval, self._tolerance = _ticks(rate)
        self._clock = clock
        self._started = clock()
        # clients must not be able to choose their bucket; the hash of bytes is the same in all forked processes
        self._salt = os.urandom(16)

    def count(self, client: bytes, rate: Rate | None = None) -> RateVerdict:
        """Charge a client for one request, unless it is refused; a client with a `rate` of its own always by that.

        A client that is new to a full bucket replaces the one that owes least, usually one that owes nothing.
        """
        interval, tolerance = (self._interval, self._tolerance) if rate is None else _ticks(rate)
        number = hash(self._salt + client)
        mark = number & FINGERPRINT
        first = (number >> FINGERPRINT_BITS & self._mask) * BUCKET_CLIENTS
        now = int((self._clock() - self._started) * TICKS_PER_SECOND) + 1
        words = self._words[first : first + BUCKET_CLIENTS].tolist()
        for place, word in enumerate(words):  # noqa: B007 - it is used after the loop
            if word & FINGERPRINT == mark and word:
                debt = (word >> FINGERPRINT_BITS) - now
                break
        else:
            place, debt = words.index(min(words)), 0
        if debt > tolerance:
            return RateVerdict(False, debt / TICKS_PER_SECOND)  # noqa: FBT003 - twice as quick as by name
        debt = debt + interval if debt > 0 else interval
        self._words[first + place] = (now + debt) << FINGERPRINT_BITS | mark
        return RateVerdict(True, debt / TICKS_PER_SECOND)  # noqa: FBT003


def _ticks(rate: Rate) -> tuple[int, int]:
    """The interval of a rate, and the largest debt with which a request is still allowed."""
    interval = max(1, round(rate.interval * TICKS_PER_SECOND))
    return interval, interval * (rate.burst - 1)
