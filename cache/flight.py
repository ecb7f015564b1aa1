"""Single flight: what several callers want at once is made once, by the first of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Literal, TypeAlias

Source = Literal["hit-memory", "hit-redis", "miss", "coalesced"]
Answer: TypeAlias = tuple[bytes, Source]
Lead: TypeAlias = Callable[[list[bytes]], Awaitable[Mapping[bytes, Answer]]]

Landing: TypeAlias = "asyncio.Future[Mapping[bytes, Answer] | Exception | None]"
"""How a flight ended: with answers, with the error that all its passengers get, or without its leader (None).

The error is a result here, not the future's exception: if nobody follows, nobody would retrieve it.
"""


class Flights:
    """The keys on their way in this process.

    The keys that one caller leads are one flight and land together: a follower of one of them waits for all.
    """

    def __init__(self) -> None:
        self._flying: dict[bytes, Landing] = {}

    async def share(self, keys: Iterable[bytes], lead: Lead) -> Mapping[bytes, Answer]:
        """An answer for each key: from `lead`, called with those that nobody is after yet, else "coalesced".

        When the leader fails, its followers get the same error. When it is cancelled, they do not: the first of them
        to wake leads instead.
        """
        wanted = list(dict.fromkeys(keys))
        if self._flying.keys().isdisjoint(wanted):
            return await self._lead(wanted, lead)
        answers: dict[bytes, Answer] = {}
        while wanted:
            followed = {key: self._flying[key] for key in wanted if key in self._flying}
            own = [key for key in wanted if key not in followed]
            if own:
                # before anything is waited for, or two callers could wait for each other
                answers.update(await self._lead(own, lead))
            if followed:
                # wait() and not `await`: cancelling this caller must not cancel the flight of another
                await asyncio.wait(set(followed.values()))
            wanted = [key for key, landing in followed.items() if not _collect(key, landing, answers)]
        return answers

    async def _lead(self, keys: list[bytes], lead: Lead) -> Mapping[bytes, Answer]:
        landing: Landing = asyncio.get_running_loop().create_future()
        self._flying.update(dict.fromkeys(keys, landing))
        outcome: Mapping[bytes, Answer] | Exception | None = None
        try:
            outcome = answers = await lead(keys)
        except Exception as error:
            outcome = error
            raise
        finally:
            for key in keys:
                del self._flying[key]
            landing.set_result(outcome)
        return answers


def _collect(key: bytes, landing: Landing, answers: dict[bytes, Answer]) -> bool:
    """Take a key's answer from a flight that has ended; False when its leader was cancelled."""
    outcome = landing.result()
    if outcome is None:
        return False
    if isinstance(outcome, Exception):
        raise outcome
    answers[key] = (outcome[key][0], "coalesced")
    return True
