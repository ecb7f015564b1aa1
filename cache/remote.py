"""The Redis tier as requests use it: lookups that coincide share a round trip, and nobody waits for writes.

A round trip to Redis costs the event loop more than a compiled prediction.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from cache.memory import Stats
from cache.redis import RedisTier
from serving.storage.background import BackgroundTask
from serving.storage.guard import BreakerState

MAX_LOOKUPS = 4
"""Round trips that run at once. Keys that arrive meanwhile share the next one, so round trips grow with the load."""

MAX_KEYS = 1024
"""Keys of one round trip; the keys of one request are never divided."""

PATIENCE_SECONDS = 0.04
"""Seconds that a request waits for a lookup; a cache that takes longer is no help. The round trip itself goes on: it
learns whether Redis is there, and a first connection may take longer."""

MAX_UNWRITTEN_BYTES = 4 << 20
WRITE_BATCH = 100
"""Items written at once: packing them keeps the event loop for about a millisecond."""

CLOSING_SECONDS = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class _Lookup:
    """The keys of one request, and the future of their values."""

    keys: Sequence[bytes]
    found: asyncio.Future[list[bytes | None]]

    def answer(self, values: list[bytes | None]) -> None:
        if not self.found.done():
            self.found.set_result(values)

    def give_up(self) -> None:
        self.answer([None] * len(self.keys))


class BackgroundTier:
    """The Redis tier behind a queue of lookups and a queue of writes. Belongs to one event loop."""

    def __init__(
        self,
        redis: RedisTier,
        *,
        stats: Stats | None = None,
        max_unwritten_bytes: int = MAX_UNWRITTEN_BYTES,
        closing_seconds: float = CLOSING_SECONDS,
    ) -> None:
        self._redis = redis
        self._stats = stats or Stats()
        self._lookups: deque[_Lookup] = deque()
        self._round_trips: set[asyncio.Task[None]] = set()
        self._full_since = 0.0
        self._scheduled = False
        self._unwritten: dict[bytes, bytes] = {}
        self._unwritten_bytes = 0
        self._max_unwritten_bytes = max_unwritten_bytes
        self._writing = BackgroundTask(self._write, closing_seconds=closing_seconds)

    @property
    def state(self) -> BreakerState:
        """State of the breaker in front of Redis."""
        return self._redis.state

    async def find(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return one value per key, None where there is none or it does not arrive within PATIENCE_SECONDS."""
        if not keys:
            return []
        loop = asyncio.get_running_loop()
        full = len(self._round_trips) >= MAX_LOOKUPS
        if full and loop.time() - self._full_since > PATIENCE_SECONDS:
            return [None] * len(keys)
        lookup = _Lookup(keys, loop.create_future())
        self._lookups.append(lookup)
        if not full and not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._start)
        patience = loop.call_later(PATIENCE_SECONDS, lookup.give_up)
        try:
            return await lookup.found
        finally:
            patience.cancel()

    def keep(self, items: Mapping[bytes, bytes]) -> None:
        """Write the items soon; drop and count those for which there is no room."""
        for key, value in items.items():
            size = len(key) + len(value)
            if key in self._unwritten:
                continue
            if self._unwritten_bytes + size > self._max_unwritten_bytes:
                self._stats.write_dropped += 1
                continue
            self._unwritten[key] = value
            self._unwritten_bytes += size
        if self._unwritten:
            self._writing.wake()

    async def close(self) -> None:
        """Write for CLOSING_SECONDS at most, drop the rest and disconnect."""
        await self._writing.close()
        self._stats.write_dropped += len(self._unwritten)
        self._unwritten.clear()
        self._unwritten_bytes = 0
        await self._redis.close()

    async def _write(self) -> None:
        while self._unwritten:
            batch = dict(islice(self._unwritten.items(), WRITE_BATCH))
            for key, value in batch.items():
                del self._unwritten[key]
                self._unwritten_bytes -= len(key) + len(value)
            try:
                await self._redis.put_many(batch)
            except BaseException:
                self._stats.write_dropped += len(batch)
                raise

    def _start(self) -> None:
        self._scheduled = False
        loop = asyncio.get_running_loop()
        while self._lookups and len(self._round_trips) < MAX_LOOKUPS:
            taken = self._take()
            if taken:
                round_trip = loop.create_task(self._look_up(taken))
                self._round_trips.add(round_trip)
                self._full_since = loop.time()
                round_trip.add_done_callback(self._finish)

    def _take(self) -> list[_Lookup]:
        taken: list[_Lookup] = []
        count = 0
        while self._lookups and (not taken or count + len(self._lookups[0].keys) <= MAX_KEYS):
            lookup = self._lookups.popleft()
            if not lookup.found.done():  # its request still waits
                taken.append(lookup)
                count += len(lookup.keys)
        return taken

    async def _look_up(self, taken: list[_Lookup]) -> None:
        try:
            values = await self._redis.get_many([key for lookup in taken for key in lookup.keys])
        except Exception as error:  # noqa: BLE001 - it belongs to the requests, not to this task
            for lookup in taken:
                if not lookup.found.done():
                    lookup.found.set_exception(error)
            return
        start = 0
        for lookup in taken:
            lookup.answer(values[start : start + len(lookup.keys)])
            start += len(lookup.keys)

    def _finish(self, round_trip: asyncio.Task[None]) -> None:
        self._round_trips.discard(round_trip)
        self._start()
