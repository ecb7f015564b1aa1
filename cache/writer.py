"""Writes behind the answer's back: what a slow tier should keep is sent while nobody waits."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from itertools import islice

from cache.stats import Stats
from cache.tier import Tier

MAX_BYTES = 4 << 20
BATCH = 100
"""Items sent at once: packing them keeps the event loop for about a millisecond."""


class Writer:
    """Collects items of many requests and sends them together; drops and counts what does not fit in `max_bytes`."""

    def __init__(
        self, tier: Tier, *, max_bytes: int = MAX_BYTES, closing_seconds: float = 1.0, stats: Stats | None = None
    ) -> None:
        self._tier = tier
        self._closing_seconds = closing_seconds
        self._max_bytes = max_bytes
        self._stats = stats or Stats()
        self._waiting: dict[bytes, bytes] = {}
        self._bytes = 0
        self._sending: asyncio.Task[None] | None = None

    def add(self, items: Mapping[bytes, bytes]) -> None:
        """Take the items to be sent soon; never waits."""
        for key, value in items.items():
            size = len(key) + len(value)
            if key in self._waiting:
                continue
            if self._bytes + size > self._max_bytes:
                self._stats.write_dropped += 1
                continue
            self._waiting[key] = value
            self._bytes += size
        if self._waiting and (self._sending is None or self._sending.done()):
            # a task for each burst: an idle worker has none, and none exists before the fork
            self._sending = asyncio.get_running_loop().create_task(self._send())

    async def close(self) -> None:
        """Send what is left, for `closing_seconds` at most; drop the rest."""
        if self._sending is not None:
            await asyncio.wait({self._sending}, timeout=self._closing_seconds)
            self._sending.cancel()
            await asyncio.gather(self._sending, return_exceptions=True)
            self._sending = None
        self._stats.write_dropped += len(self._waiting)
        self._waiting.clear()
        self._bytes = 0

    async def _send(self) -> None:
        while self._waiting:
            batch = dict(islice(self._waiting.items(), BATCH))
            for key, value in batch.items():
                del self._waiting[key]
                self._bytes -= len(key) + len(value)
            try:
                await self._tier.put_many(batch)
            except BaseException:
                self._stats.write_dropped += len(batch)
                raise
