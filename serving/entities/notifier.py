"""Predicts for records that have just arrived, in the background, and appends the result to their entity's events."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import structlog

from registry.errors import RegistryError
from serving.entities.predictor import EntityAnswer, EntityPredictor
from serving.entities.record import Record
from serving.errors import ServingError
from serving.events.log import EventLog, tell
from serving.storage.background import BackgroundTask

MAX_QUEUED = 200
MAX_QUEUED_BYTES = 16 * 1024 * 1024
"""Bytes of the bodies in which they were sent, or of the part of these that is kept."""
CLOSING_SECONDS = 2.0

log = structlog.get_logger(__name__)


def topic_of(entity: str) -> str:
    """The topic of an entity's events; a job's id has no colon."""
    return f"entity:{entity}"


class EntityNotifier:
    """A queue of new records, worked off one after the other so that events keep their order; drops what overflows."""

    def __init__(
        self, predictor: EntityPredictor, events: EventLog, problem_of: Callable[[Exception, str], bytes]
    ) -> None:
        """`problem_of` renders an error of a request, given by its id, as a problem document."""
        self._predictor = predictor
        self._events = events
        self._problem_of = problem_of
        self._queue: deque[tuple[str, list[Record], str, int]] = deque()
        self._bytes = 0
        self._background = BackgroundTask(self._work, closing_seconds=CLOSING_SECONDS)

    def add(self, entity: str, records: Sequence[Record], request_id: str, size: int = 0) -> None:
        """Queue the newest of the records that arrived with one request, in a body of `size` bytes; never waits."""
        kept = size * min(len(records), self._predictor.max_records) // len(records)
        if len(self._queue) >= MAX_QUEUED or self._bytes + kept > MAX_QUEUED_BYTES:
            log.warning("Entity event dropped: queue is full", entity=entity)
            return
        newest = sorted(records, key=lambda record: record.time, reverse=True)[: self._predictor.max_records]
        self._queue.append((entity, newest, request_id, kept))
        self._bytes += kept
        self._background.wake()

    async def close(self) -> None:
        """Work off the queue for at most CLOSING_SECONDS; drop the rest."""
        await self._background.close()
        self._queue.clear()
        self._bytes = 0

    async def _work(self) -> None:
        while self._queue:
            entity, records, request_id, size = self._queue.popleft()
            self._bytes -= size
            kind, data = await self._predict(entity, records, request_id)
            await tell(self._events, topic_of(entity), kind, data)

    async def _predict(self, entity: str, records: list[Record], request_id: str) -> tuple[str, bytes]:
        """The kind of the event and its data: the predictions, or the problem that prevented them."""
        try:
            models = await self._predictor.bound_to(entity)
            answers = await self._predictor.predict_records(records, models)
        except (ServingError, RegistryError) as error:
            return "refused", self._problem_of(error, request_id)
        return "predictions", EntityAnswer(entity, records, answers).content()
