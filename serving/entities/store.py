"""What keeps records and outcomes: a file of this box, or Supabase."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from serving.entities.record import Judged, Outcome, Record

BATCH = 500
"""Records or outcomes that are written at once."""


class Source(Protocol):
    """Shared by all processes that serve. Every method raises StoreUnavailable; what was built may be forked."""

    async def add_records(self, records: Sequence[Record]) -> int:
        """Keep records, all or none of them; gives how many of them were not there before.

        Of an entity's records only the newest are kept. One whose id is known changes nothing.
        """
        ...

    async def newest(self, entity: str, limit: int) -> list[Record]:
        """The records of an entity with the latest times, newest first; of the same time, the last that came first."""
        ...

    async def add_outcomes(self, outcomes: Sequence[Outcome]) -> int:
        """Keep outcomes, all or none of them; gives how many of them were not there before.

        Of a model's outcomes only the last that came are kept. One whose id the model knows changes nothing.
        """
        ...

    async def outcomes(self, model: str, limit: int) -> list[Outcome]:
        """The last `limit` outcomes that came of a model, the last first."""
        ...

    async def judged(self, model: str, version: str, limit: int) -> list[Judged]:
        """What a version is judged by: its last `limit` outcomes with what it had answered, the last first.

        Those that it had no answer to are left out.
        """
        ...

    async def probe(self) -> None:
        """Raises StoreUnavailable if nothing could be kept now, also where it can still be read."""
        ...

    @property
    def state(self) -> str:
        """For who asks how the service is: of a breaker, `closed`, `open` or `half-open`; `disabled` without one."""
        ...

    async def close(self) -> None:
        """Disconnect; the next call connects again."""
        ...
