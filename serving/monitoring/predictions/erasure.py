"""Deletion of all that is kept about an entity, by a key, or of a request, wherever it is kept."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from serving.entities.notifier import topic_of
from serving.entities.store import EntityStore
from serving.events.log import EventLog
from serving.jobs.store import JobStore
from serving.monitoring.predictions.store import PredictionStore, Wanted


@dataclass(frozen=True, slots=True)
class Erased:
    """The numbers of what was deleted."""

    records: int = 0
    outcomes: int = 0
    events: int = 0
    predictions: int = 0
    jobs: int = 0

    @property
    def total(self) -> int:
        return self.records + self.outcomes + self.events + self.predictions + self.jobs


class Erasure:
    """Deletes in all stores of a service. Every method raises StoreUnavailable, and may be called again then."""

    def __init__(
        self,
        predictions: PredictionStore,
        entities: EntityStore,
        events: EventLog,
        jobs: JobStore,
        settle: Callable[[], Awaitable[None]],
    ) -> None:
        """`settle` waits until what has been answered until now is in the log, or it would come after the deletion."""
        self._predictions = predictions
        self._entities = entities
        self._events = events
        self._jobs = jobs
        self._settle = settle

    async def of_entity(self, entity: str, writer: str | None = None) -> Erased:
        """Delete the records, outcomes and predictions of an entity, or only those of a `writer`, a key.

        Its events, which say what was predicted for it, and the predictions of others go with the last record.
        """
        deleted = await self._entities.delete_entity(entity, writer)
        is_gone = not await self._entities.newest(entity, 1)
        dropped = await self._events.drop(topic_of(entity)) if is_gone else 0
        # who deletes its last record deletes what others were told of it, too
        logged = await self.of_log(Wanted(entity=entity, key=None if is_gone and deleted.records else writer))
        return Erased(deleted.records, deleted.outcomes, dropped, logged.predictions)

    async def of_key(self, key: str) -> Erased:
        """Delete all that was sent with the keys of a name, and the events of the entities that it has written."""
        entities, deleted = await self._entities.delete_writer(key)
        jobs = await self._jobs.delete_of(key)
        topics = [*map(topic_of, entities), *jobs]
        dropped = sum([await self._events.drop(topic) for topic in topics])
        logged = await self.of_log(Wanted(key=key))
        return Erased(deleted.records, deleted.outcomes, dropped, logged.predictions, len(jobs))

    async def of_log(self, wanted: Wanted) -> Erased:
        """Delete rows of the log alone."""
        await self._settle()
        return Erased(predictions=await self._predictions.delete(wanted))
