"""What a worker's cache has done since the worker started."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(slots=True)
class Stats:
    """Plain counters, one per row unless said otherwise; shared by the parts of one cache, read by whoever reports."""

    hits_memory: int = 0
    hits_redis: int = 0
    misses: int = 0
    coalesced: int = 0
    """Rows that waited for an equal row in flight."""
    malformed: int = 0
    """Values found in Redis that this version did not write."""
    write_dropped: int = 0
    """Values that Redis refused, or that were never sent because it was away or slow."""
    errors: int = 0
    """Calls to Redis, not rows, that failed."""
    evictions: int = 0
    """Values pushed out of memory before their time."""
    items: int = 0
    """Values in memory now."""
    bytes: int = 0
    """What they take, overhead included."""

    def figures(self) -> tuple[int, ...]:
        """All of them, in this order."""
        return dataclasses.astuple(self)
