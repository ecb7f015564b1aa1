"""The Redis tier as requests use it: lookups that coincide share a round trip, and nobody waits for writes.

A round trip to Redis costs the event loop more than a compiled prediction.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import islice

from cache.memory import Stats
from cache.redis import RedisTier
from serving.storage.background import BackgroundTask

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

Lookup = tuple[Sequence[bytes], asyncio.Future[list[bytes | None]]]
"""The keys of one request, and the future of their values; it is done early when the request waits no more."""


class BackgroundTier:
    """The Redis tier behind a queue of lookups and a queue of writes. Belongs to one event loop."""

    def __init__(self, redis: RedisTier, stats: Stats) -> None:
        self._redis = redis
        self._stats = stats
        self._lookups: deque[Lookup] = deque()
        self._round_trips: set[asyncio.Task[None]] = set()
        self._full_since = 0.0
        self._scheduled = False
        self._unwritten: dict[bytes, bytes] = {}
        self._unwritten_bytes = 0
        self._writing = BackgroundTask(self._write, closing_seconds=CLOSING_SECONDS)

    async def find(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return one value per key, None where there is none or it does not arrive within PATIENCE_SECONDS."""
        loop = asyncio.get_running_loop()
        full = len(self._round_trips) >= MAX_LOOKUPS
        if full and loop.time() - self._full_since > PATIENCE_SECONDS:
            return [None] * len(keys)
        found: asyncio.Future[list[bytes | None]] = loop.create_future()
        self._lookups.append((keys, found))
        if not full and not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._start)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                return await found
        except TimeoutError:
            return [None] * len(keys)

    def keep(self, items: Mapping[bytes, bytes]) -> None:
        """Write the items soon; drop and count those for which there is no room."""
        for key, value in items.items():
            size = len(key) + len(value)
            if key in self._unwritten:
                continue
            if self._unwritten_bytes + size > MAX_UNWRITTEN_BYTES:
                self._stats.write_dropped += 1
            else:
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
        while len(self._round_trips) < MAX_LOOKUPS and (taken := self._take()):
            round_trip = loop.create_task(self._look_up(taken))
            self._round_trips.add(round_trip)
            self._full_since = loop.time()
            round_trip.add_done_callback(self._finish)

    def _take(self) -> list[Lookup]:
        taken: list[Lookup] = []
        count = 0
        while self._lookups and (not taken or count + len(self._lookups[0][0]) <= MAX_KEYS):
            keys, found = self._lookups.popleft()
            if not found.done():
                taken.append((keys, found))
                count += len(keys)
        return taken

    async def _look_up(self, taken: list[Lookup]) -> None:
        try:
            values = iter(await self._redis.get_many([key for keys, _ in taken for key in keys]))
        except Exception as error:  # noqa: BLE001 - it belongs to the requests, not to this task
            for _, found in taken:
                if not found.done():
                    found.set_exception(error)
            return
        for keys, found in taken:
            own = list(islice(values, len(keys)))
            if not found.done():
                found.set_result(own)

    def _finish(self, round_trip: asyncio.Task[None]) -> None:
        self._round_trips.discard(round_trip)
        self._start()
