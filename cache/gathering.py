"""Looks up together what many requests ask for at once: a round trip costs the loop more than a compiled prediction."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cache.tier import RemoteTier
from serving.storage.guard import BreakerState

MAX_LOOKUPS = 4
"""Round trips under way at once. What arrives meanwhile is the next one: so they grow with the load."""

MAX_KEYS = 1024
"""Of one round trip; the keys of one request are never divided."""

PATIENCE = 0.04
"""Seconds that a request waits for its answer; a cache that takes longer is no help. The round trip itself may go on:
it learns whether Redis is there, and a first connection may take longer."""


@dataclass(frozen=True, slots=True, eq=False)
class Wanted:
    """What one request asks for, and the future that is to have it."""

    keys: Sequence[bytes]
    found: asyncio.Future[list[bytes | None]]

    def answer(self, values: list[bytes | None]) -> None:
        if not self.found.done():
            self.found.set_result(values)

    def give_up(self) -> None:
        self.answer([None] * len(self.keys))


class GatheringTier:
    """A remote tier whose lookups of one turn of the event loop are one; nobody waits for others to come."""

    def __init__(self, remote: RemoteTier) -> None:
        self._remote = remote
        self._waiting: deque[Wanted] = deque()
        self._lookups: set[asyncio.Task[None]] = set()
        self._full_since = 0.0
        self._scheduled = False

    @property
    def state(self) -> BreakerState:
        return self._remote.state

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        if not keys:
            return []
        loop = asyncio.get_running_loop()
        full = len(self._lookups) >= MAX_LOOKUPS
        if full and loop.time() - self._full_since > PATIENCE:
            return [None] * len(keys)
        wanted = Wanted(keys, loop.create_future())
        self._waiting.append(wanted)
        if not full and not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._start)
        patience = loop.call_later(PATIENCE, wanted.give_up)
        try:
            return await wanted.found
        finally:
            patience.cancel()

    async def put_many(self, items: Mapping[bytes, bytes]) -> None:
        await self._remote.put_many(items)

    async def close(self) -> None:
        await self._remote.close()

    def _start(self) -> None:
        self._scheduled = False
        loop = asyncio.get_running_loop()
        while self._waiting and len(self._lookups) < MAX_LOOKUPS:
            taken = self._take()
            if taken:
                lookup = loop.create_task(self._look_up(taken))
                self._lookups.add(lookup)
                self._full_since = loop.time()
                lookup.add_done_callback(self._finish)

    def _take(self) -> list[Wanted]:
        taken: list[Wanted] = []
        count = 0
        while self._waiting and (not taken or count + len(self._waiting[0].keys) <= MAX_KEYS):
            wanted = self._waiting.popleft()
            if not wanted.found.done():  # it was in time
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
