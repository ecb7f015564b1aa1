"""Tells who follows an entity what the models say of records that have just arrived, behind the answer's back."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import structlog

from registry.errors import RegistryError
from serving.entities.predictor import EntityAnswer, EntityPredictor
from serving.entities.record import Record
from serving.errors import ServingError, StoreUnavailable
from serving.events.log import EventLog
from serving.http import problems

MAX_WAITING = 200
CLOSING_SECONDS = 2.0

log = structlog.get_logger(__name__)


def topic_of(entity: str) -> str:
    """Of the events of an entity; the id of a job has no colon."""
    return f"entity:{entity}"


@dataclass(frozen=True, slots=True)
class Arrival:
    """Records of one entity that came with one request; while they wait, only those that are told of."""

    entity: str
    records: Sequence[Record]
    request_id: str


class Arrivals:
    """Works on arrivals one after the other, so that they are told of in their order; drops what it has no room for."""

    def __init__(self, predictor: EntityPredictor, events: EventLog) -> None:
        self._predictor = predictor
        self._events = events
        self._waiting: deque[Arrival] = deque()
        self._working: asyncio.Task[None] | None = None

    def add(self, arrival: Arrival) -> None:
        """Take it to be told of soon; never waits."""
        if len(self._waiting) >= MAX_WAITING:
            log.warning("Arrival is not told of", entity=arrival.entity)
            return
        newest = sorted(arrival.records, key=lambda record: record.time, reverse=True)[: self._predictor.most]
        self._waiting.append(replace(arrival, records=newest))
        if self._working is None or self._working.done():
            # a task for each burst: an idle worker has none, and none exists before the fork
            self._working = asyncio.get_running_loop().create_task(self._work())

    async def close(self) -> None:
        """Tell of those that wait, for two seconds at most."""
        if self._working is not None:
            await asyncio.wait({self._working}, timeout=CLOSING_SECONDS)
            self._working.cancel()
            await asyncio.gather(self._working, return_exceptions=True)
            self._working = None
        self._waiting.clear()

    async def _work(self) -> None:
        while self._waiting:
            arrival = self._waiting.popleft()
            kind, data = await self._say(arrival)
            try:
                await self._events.append(topic_of(arrival.entity), kind, data)
            except StoreUnavailable as error:
                log.warning("Event is lost", entity=arrival.entity, kind=kind, error=str(error))

    async def _say(self, arrival: Arrival) -> tuple[str, bytes]:
        """The kind of the event and its data: what the models say, or why they do not."""
        try:
            answers = await self._predictor.predict_records(arrival.records, self._predictor.bound())
        except (ServingError, RegistryError) as error:
            _, _, problem = problems.render(error, arrival.request_id)
            return "refused", problem
        return "predictions", EntityAnswer(arrival.entity, arrival.records, answers).content()
