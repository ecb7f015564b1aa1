"""Looks up together what many requests ask for at once: a round trip costs the loop more than a compiled prediction."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cache.breaker import State
from cache.tier import RemoteTier

MAX_LOOKUPS = 4
"""Round trips under way at once. What arrives meanwhile is the next one: so they grow with the load."""

MAX_KEYS = 1024
"""Of one round trip; the keys of one request are never divided."""

PATIENCE = 0.05
"""Seconds to wait for a round trip to begin: when all of them take so long, a cache is no help."""


@dataclass(frozen=True, slots=True, eq=False)
class Wanted:
    """What one request asks for, since when, and the future that is to have it."""

    keys: Sequence[bytes]
    since: float
    found: asyncio.Future[list[bytes | None]]

    def answer(self, values: list[bytes | None]) -> None:
        if not self.found.done():
            self.found.set_result(values)


class GatheringTier:
    """A remote tier whose lookups of one turn of the event loop are one; nobody waits for others to come."""

    def __init__(self, remote: RemoteTier) -> None:
        self._remote = remote
        self._waiting: deque[Wanted] = deque()
        self._lookups: set[asyncio.Task[None]] = set()
        self._full_since = 0.0
        self._scheduled = False

    @property
    def state(self) -> State:
        return self._remote.state

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        if not keys:
            return []
        loop = asyncio.get_running_loop()
        full, now = len(self._lookups) >= MAX_LOOKUPS, loop.time()
        if full and now - self._full_since > PATIENCE:
            return [None] * len(keys)
        wanted = Wanted(keys, now, loop.create_future())
        self._waiting.append(wanted)
        if not full and not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._start)
        return await wanted.found

    async def put_many(self, items: Mapping[bytes, bytes]) -> None:
        await self._remote.put_many(items)

    async def close(self) -> None:
        await self._remote.close()

    def _start(self) -> None:
        self._scheduled = False
        loop = asyncio.get_running_loop()
        while self._waiting and len(self._lookups) < MAX_LOOKUPS:
            taken = self._take(loop.time() - PATIENCE)
            if taken:
                lookup = loop.create_task(self._look_up(taken))
                self._lookups.add(lookup)
                self._full_since = loop.time()
                lookup.add_done_callback(self._finish)

    def _take(self, too_long_ago: float) -> list[Wanted]:
        taken: list[Wanted] = []
        count = 0
        while self._waiting and (not taken or count + len(self._waiting[0].keys) <= MAX_KEYS):
            wanted = self._waiting.popleft()
            if wanted.since < too_long_ago:
                wanted.answer([None] * len(wanted.keys))
            else:
                taken.append(wanted)
                count += len(wanted.keys)
        return taken

    async def _look_up(self, taken: list[Wanted]) -> None:
        try:
            values = await self._remote.get_many([key for wanted in taken for key in wanted.keys])
        except Exception as error:  # noqa: BLE001 - theirs who asked, not this task's
            for wanted in taken:
                if not wanted.found.done():
                    wanted.found.set_exception(error)
            return
        start = 0
        for wanted in taken:
            wanted.answer(values[start : start + len(wanted.keys)])
            start += len(wanted.keys)

    def _finish(self, lookup: asyncio.Task[None]) -> None:
        self._lookups.discard(lookup)
        self._start()
