"""The memory tier: the least recently used entry goes first, and no entry lives longer than its time.

Context: the tier must be limited by items and by bytes, and must never remove many entries at once on the event loop.
cachetools' TTLCache removes all that has expired at each change: 100,000 entries after a quiet time in one go. Its
LRUCache with `getsizeof` keeps each key in three dictionaries, 580 to 620 bytes an entry.
Decision: LRUCache keeps the order, we keep size and time: 0.3 us a hit, 1.7 us a put, 250 to 470 bytes an entry.
Consequence: an expired entry goes when it is looked up or when its place is needed; the limits hold at any time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cachetools import LRUCache

ENTRY_BYTES = 480
"""Bytes that an entry takes beside its key and value.

The heads of two bytes objects take 66, a tuple 64, a float 24, and the places in two dictionaries 100 to 300:
tracemalloc shows 250 to 466, most when the dictionaries have just grown.
"""

MAX_SHARE = 8
"""An entry of more than an eighth of the limit is not kept: it would push out too much."""


@dataclass(slots=True)
class Stats:
    """Counters of one worker's cache, shared by its tiers; they count rows unless said otherwise."""

    hits_memory: int = 0
    hits_redis: int = 0
    misses: int = 0
    coalesced: int = 0
    """Rows that waited for an equal row in flight."""
    malformed: int = 0
    """Values found in Redis that this version did not write."""
    write_dropped: int = 0
    """Values that Redis refused, or that were never sent because Redis was unavailable or slow."""
    errors: int = 0
    """Calls to Redis, not rows, that failed."""
    evictions: int = 0
    """Values pushed out of memory before they expired."""
    items: int = 0
    """Values in memory now."""
    bytes: int = 0
    """Bytes of the values in memory, overhead included."""


class MemoryTier:
    """Bytes under keys, limited by items and by bytes, overhead included. Belongs to one event loop: takes no lock."""

    def __init__(
        self,
        *,
        max_items: int,
        max_bytes: int,
        ttl_seconds: float,
        stats: Stats | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._entries: LRUCache[bytes, tuple[bytes, float]] = LRUCache(max_items)
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._max_entry_bytes = max_bytes // MAX_SHARE if max_items else 0
        self._ttl = ttl_seconds
        self._clock = clock
        self._stats = stats or Stats()

    def find(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return one value per key, which becomes the most recently used; None if there is none or it has expired."""
        entries, now = self._entries, self._clock()
        found: list[bytes | None] = []
        for key in keys:
            value: bytes | None = None
            if key in entries:
                value, expires = entries[key]
                if expires <= now:
                    self._remove(key)
                    value = None
            found.append(value)
        return found

    def put(self, key: bytes, value: bytes) -> None:
        """Keep the value, unless it is too large."""
        entries, stats = self._entries, self._stats
        if key in entries:
            self._remove(key)
        size = len(key) + len(value) + ENTRY_BYTES
        if size > self._max_entry_bytes:
            return
        while stats.bytes + size > self._max_bytes or stats.items >= self._max_items:
            self._evict()
        entries[key] = (value, self._clock() + self._ttl)
        stats.items += 1
        stats.bytes += size

    def clear(self) -> None:
        self._entries.clear()
        self._stats.items = self._stats.bytes = 0

    def _remove(self, key: bytes) -> None:
        value, _ = self._entries.pop(key)
        self._forget(key, value)

    def _evict(self) -> None:
        key, (value, expires) = self._entries.popitem()
        self._forget(key, value)
        self._stats.evictions += expires > self._clock()

    def _forget(self, key: bytes, value: bytes) -> None:
        self._stats.items -= 1
        self._stats.bytes -= len(key) + len(value) + ENTRY_BYTES
