"""The cache that requests see: memory first, then Redis, then one computation for all who ask at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Literal, TypeAlias

from cache.flight import Answer, Flights, Lead
from cache.memory import MemoryTier
from cache.stats import Stats
from cache.tier import RemoteTier
from cache.writer import Writer
from serving.storage.guard import BreakerState

Compute: TypeAlias = Callable[[list[int]], Awaitable[Sequence[bytes]]]
"""From positions in the keys that were asked for to one value each, in that order."""


class TieredCache:
    """Memory alone, or memory in front of a remote tier. A value from the remote starts a new life in memory."""

    def __init__(self, memory: MemoryTier, remote: RemoteTier | None = None, *, stats: Stats | None = None) -> None:
        self.stats = stats or Stats()
        self._memory = memory
        self._remote = remote
        self._writer = None if remote is None else Writer(remote, stats=self.stats)
        self._flights = Flights()

    @property
    def is_local(self) -> bool:
        """True when nothing is asked over a network."""
        return self._remote is None

    @property
    def redis_state(self) -> BreakerState | Literal["disabled"]:
        """For the health check."""
        return "disabled" if self._remote is None else self._remote.state

    async def get_or_compute(self, keys: Sequence[bytes], compute: Compute) -> list[Answer]:
        """A value for each key and where it is from.

        `compute` is asked once for all that neither tier has and no other caller is after; of equal keys only the first
        is computed. What it raises is raised here, and for those who wait for the same keys.
        """
        found = [self._memory.get(key) for key in keys]
        if None not in found:
            self.stats.hits_memory += len(found)
            return [(value, "hit-memory") for value in found if value is not None]
        missing: dict[bytes, int] = {}
        for position, (key, value) in enumerate(zip(keys, found, strict=True)):
            if value is None:
                missing.setdefault(key, position)
        shared = await self._flights.share(missing, self._leading(missing, compute))
        if len(missing) == len(keys):
            all_new = [shared[key] for key in keys]
            self._count(all_new)
            return all_new
        answers: list[Answer] = []
        for position, (key, value) in enumerate(zip(keys, found, strict=True)):
            if value is not None:
                answers.append((value, "hit-memory"))
            elif missing[key] == position:
                answers.append(shared[key])
            else:
                answers.append((shared[key][0], "coalesced"))
        self._count(answers)
        return answers

    async def find_many(self, keys: Sequence[bytes]) -> list[Answer | None]:
        """What the tiers have, and which of them; None for the rest."""
        found: list[Answer | None] = []
        for key in keys:
            value = self._memory.get(key)
            found.append(None if value is None else (value, "hit-memory"))
        missing = [key for key, answer in zip(keys, found, strict=True) if answer is None]
        remote = await self._find_remote(missing) if missing else {}
        answers = [remote.get(key) if answer is None else answer for key, answer in zip(keys, found, strict=True)]
        self._count(answers)
        return answers

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [answer and answer[0] for answer in await self.find_many(keys)]

    async def put_many(self, items: Mapping[bytes, bytes]) -> None:
        """Keep in memory at once, remotely soon."""
        self._keep(items)

    def _keep(self, items: Mapping[bytes, bytes]) -> None:
        for key, value in items.items():
            self._memory.put(key, value)
        if self._writer is not None:
            self._writer.add(items)

    async def close(self) -> None:
        """Send what is not yet written, for a second at most, and disconnect."""
        if self._writer is not None:
            await self._writer.close()
        if self._remote is not None:
            await self._remote.close()
        await self._memory.close()

    def _leading(self, positions: Mapping[bytes, int], compute: Compute) -> Lead:
        async def lead(keys: list[bytes]) -> dict[bytes, Answer]:
            answers = {} if self._remote is None else await self._find_remote(keys)
            unknown = [key for key in keys if key not in answers] if answers else keys
            if unknown:
                values = await compute([positions[key] for key in unknown])
                computed = dict(zip(unknown, values, strict=True))
                self._keep(computed)
                for key, value in computed.items():
                    answers[key] = (value, "miss")
            return answers

        return lead

    async def _find_remote(self, keys: Sequence[bytes]) -> dict[bytes, Answer]:
        if self._remote is None:
            return {}
        found: dict[bytes, Answer] = {}
        for key, value in zip(keys, await self._remote.get_many(keys), strict=True):
            if value is not None:
                self._memory.put(key, value)
                found[key] = (value, "hit-redis")
        return found

    def _count(self, answers: Sequence[Answer | None]) -> None:
        if len(answers) == 1 and answers[0] is not None and answers[0][1] == "miss":
            self.stats.misses += 1
            return
        sources = ["miss" if answer is None else answer[1] for answer in answers]
        self.stats.hits_memory += sources.count("hit-memory")
        self.stats.hits_redis += sources.count("hit-redis")
        self.stats.misses += sources.count("miss")
        self.stats.coalesced += sources.count("coalesced")
