"""Single flight: a value that several callers want at once is made once, by the first of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Literal, TypeAlias

Source = Literal["hit-memory", "hit-redis", "miss", "coalesced"]
Answer: TypeAlias = tuple[bytes, Source]

Landing: TypeAlias = "asyncio.Future[Mapping[bytes, Answer] | Exception | None]"
"""The end of a flight: answers, the error that all its followers get, or None if its leader is gone.

The error is a result here, not the future's exception: without followers, it would never be retrieved.
"""

Flights: TypeAlias = dict[bytes, Landing]
"""The keys whose values are being made in this process, each by one caller, its leader."""


class Flight:
    """One caller's keys: it leads those that have no leader, and makes their values within this context.

    The keys that one caller leads land together, when it leaves the context: with what it has put into `answers`, or
    with its error. Followers of a cancelled leader are told to board again. Make first, then follow: else two callers
    could wait for each other.
    """

    __slots__ = ("_flying", "_landing", "answers", "followed", "led")

    def __init__(self, flying: Flights, keys: Iterable[bytes]) -> None:
        self._flying = flying
        self.followed: dict[bytes, Landing] = {}
        self.led: list[bytes] = []
        self.answers: Mapping[bytes, Answer] = {}
        for key in keys:
            if key in flying:
                self.followed[key] = flying[key]
            else:
                self.led.append(key)

    def __enter__(self) -> Flight:
        if self.led:
            self._landing: Landing = asyncio.get_running_loop().create_future()
            self._flying.update(dict.fromkeys(self.led, self._landing))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.led:
            for key in self.led:
                del self._flying[key]
            failure = error if isinstance(error, Exception) else None
            self._landing.set_result(self.answers if error is None else failure)

    async def follow(self, answers: dict[bytes, Answer]) -> list[bytes]:
        """Wait for the keys that others lead and add their answers; return the keys whose leader was cancelled.

        Raises a leader's error.
        """
        # wait() and not `await`: cancelling this caller must not cancel the flight of another
        await asyncio.wait(set(self.followed.values()))
        abandoned: list[bytes] = []
        for key, landing in self.followed.items():
            landed = landing.result()
            if isinstance(landed, Exception):
                raise landed
            if landed is None:
                abandoned.append(key)
            else:
                answers[key] = (landed[key][0], "coalesced")
        return abandoned
