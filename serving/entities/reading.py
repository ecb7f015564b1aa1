"""Reads records, and what is remembered of them serves when the source is away."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from cache.memory import MemoryTier
from serving.entities.record import Record
from serving.entities.store import Source
from serving.errors import StoreUnavailable

MAX_BYTES = 2 << 20
TTL_SECONDS = 3600.0

_decode = msgspec.json.Decoder(list[Record]).decode
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Reading:
    """Records of one entity, newest first; `stale` when they are what an earlier reading found."""

    records: list[Record]
    stale: bool = False


class RecordReader:
    """The newest records of entities. Belongs to one event loop."""

    def __init__(
        self, source: Source, most: int, *, max_bytes: int = MAX_BYTES, ttl_seconds: float = TTL_SECONDS
    ) -> None:
        """Of an entity at most `most` records are read. What was read is kept for `ttl_seconds`, `max_bytes` in all."""
        self._source = source
        self._remembered = MemoryTier(max_items=max_bytes, max_bytes=max_bytes, ttl_seconds=ttl_seconds)
        self.most = most

    async def newest(self, entity: str, limit: int) -> Reading:
        """At most `limit` records, and never more than `most`. Raises StoreUnavailable if none are remembered."""
        key = entity.encode()
        try:
            records = await self._source.newest(entity, self.most)
        except StoreUnavailable:
            remembered = self._remembered.get(key)
            if remembered is None:
                raise
            return Reading(_decode(remembered)[:limit], stale=True)
        self._remembered.put(key, _encode(records))
        return Reading(records[:limit])
