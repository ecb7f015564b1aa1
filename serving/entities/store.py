"""The store of records and outcomes: a SQLite file of this box, or Supabase."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from serving.entities.record import Entity, Judged, Outcome, Period, Record, Span

BATCH = 500
"""Records or outcomes that are written in one call."""

KEEP_QUALITY = timedelta(days=366)
"""Hours and days whose quality is kept."""

NO_KIND = "(none)"
UNKNOWN_AFTER = "after must be the id of a record of this entity"


@dataclass(frozen=True, slots=True)
class Added:
    """What became of the records or outcomes of a call."""

    stored: int = 0
    present: int = 0
    """Stored before: their ids exist."""
    dropped: int = 0
    """Not kept, because as many are kept as may be and these are the older ones."""

    def said(self) -> dict[str, int]:
        """For an answer: what was stored, and of the rest what there is."""
        others = {"present": self.present, "dropped": self.dropped}
        return {"stored": self.stored} | {name: count for name, count in others.items() if count}

    def __add__(self, other: Added) -> Added:
        return Added(self.stored + other.stored, self.present + other.present, self.dropped + other.dropped)


@dataclass(frozen=True, slots=True)
class Deleted:
    """The numbers of records and outcomes that were deleted with an entity."""

    records: int
    outcomes: int


def room_of_writer(writer: str, keep_in_all: int, all_records: int, records_of_writer: int) -> int:
    """The number of records by which entities may grow: a writer who is known may fill half of the store."""
    room = keep_in_all - all_records
    if writer:
        room = min(room, keep_in_all // 2 - records_of_writer)
    return max(0, room)


def other_kind(entity: str, kind: str) -> str:
    """A sentence for records of another kind than their entity has."""
    return f"{entity} is an entity of kind {kind or NO_KIND}"


class EntityStore(Protocol):
    """Shared by all processes that serve. Every method raises StoreUnavailable; an instance may be forked.

    Nobody displaces others. Of too many records of an entity, or outcomes of a model, the newest of each writer stay,
    in equal shares. When there are too many records in all, entities grow no more: a new record takes the place of the
    oldest one of its entity.
    """

    async def add_records(self, records: Sequence[Record], kind: str | None = None, writer: str = "") -> Added:
        """Store all records that are new, or none if it raises.

        A record whose id its writer has stored already changes nothing. `kind` becomes that of entities that have no
        records yet; None keeps it. `writer` is the name of a key, empty if there is none. Raises StoreFull for an
        entity without records, InvalidRequest if an entity has another kind.
        """
        ...

    async def newest(self, entity: str, limit: int, after: str | None = None) -> list[Record]:
        """The records of an entity with the latest times, newest first; of equal times, the last stored comes first.

        `after` is the id of the record before the first one. Raises InvalidRecord; InvalidRequest for an unknown id.
        """
        ...

    async def entities(self, limit: int, after: str = "", kind: str | None = None) -> list[Entity]:
        """The first entities in the order of their names that come `after` a name, of one `kind` or of all."""
        ...

    async def delete_records(self, entity: str, before: datetime | None = None, writer: str | None = None) -> int:
        """Delete the records of an entity, or only those of times `before`, or of a `writer`; return how many."""
        ...

    async def delete_entity(self, entity: str, writer: str | None = None) -> Deleted:
        """Delete the records of an entity and the outcomes that are about it, or only those of a `writer`."""
        ...

    async def delete_writer(self, writer: str) -> tuple[list[str], Deleted]:
        """Delete all that a writer has stored: of which entities there were records, and how many."""
        ...

    async def add_outcomes(self, outcomes: Sequence[Outcome], writer: str = "") -> Added:
        """Store all outcomes that are new, or none; an outcome whose id exists already changes nothing.

        The `sums` of those that are stored are added to their version's hour and day.
        """
        ...

    async def outcomes(self, model: str, limit: int) -> list[Outcome]:
        """The `limit` last stored outcomes of a model, the last first."""
        ...

    async def outcomes_of_entity(self, entity: str, limit: int) -> list[Outcome]:
        """The `limit` last stored outcomes that are about an entity, the last first."""
        ...

    async def judged(self, model: str, version: str, limit: int) -> list[Judged]:
        """The `limit` last stored outcomes of a version that have a prediction, the last first."""
        ...

    async def quality(self, model: str, span: Span, since: datetime, version: str | None = None) -> list[Period]:
        """The hours or days of a model that start at `since` or later, in their order, of all versions or of one.

        They stay for KEEP_QUALITY, also when outcomes are deleted: sums tell nothing of anybody.
        """
        ...

    async def mark_quality(self, model: str, version: str, *, is_low: bool) -> bool:
        """Remember whether the quality of a version is too low; return whether it was otherwise before."""
        ...

    async def probe(self) -> None:
        """Raises StoreUnavailable if the store cannot be written now, even if it can be read."""
        ...

    async def risk(self) -> str | None:
        """Return why new records may not be stored although the store can be written, or None."""
        ...

    @property
    def state(self) -> str:
        """The state of the circuit breaker, for the health check; `disabled` if there is none."""
        ...

    async def close(self) -> None:
        """Disconnect; the next call connects again."""
        ...
