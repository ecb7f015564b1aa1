"""The store of records and outcomes: a SQLite file of this box, or Supabase."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from serving.entities.record import Judged, Outcome, Record

BATCH = 500
"""Records or outcomes that are written in one call."""


class EntityStore(Protocol):
    """Shared by all processes that serve. Every method raises StoreUnavailable; an instance may be forked."""

    async def add_records(self, records: Sequence[Record]) -> int:
        """Store all records or none; returns how many were new.

        Only the newest records of an entity are kept. A record whose id exists already changes nothing.
        """
        ...

    async def newest(self, entity: str, limit: int) -> list[Record]:
        """The records of an entity with the latest times, newest first; of equal times, the last stored comes first."""
        ...

    async def add_outcomes(self, outcomes: Sequence[Outcome]) -> int:
        """Store all outcomes or none; returns how many were new.

        Only the last stored outcomes of a model are kept. An outcome whose id exists already changes nothing.
        """
        ...

    async def outcomes(self, model: str, limit: int) -> list[Outcome]:
        """The `limit` last stored outcomes of a model, the last first."""
        ...

    async def judged(self, model: str, version: str, limit: int) -> list[Judged]:
        """The `limit` last stored outcomes of a version that have a prediction, the last first."""
        ...

    async def probe(self) -> None:
        """Raises StoreUnavailable if the store cannot be written now, even if it can be read."""
        ...

    @property
    def state(self) -> str:
        """The state of the circuit breaker, for the health check; `disabled` if there is none."""
        ...

    async def close(self) -> None:
        """Disconnect; the next call connects again."""
        ...
