"""What the app is made of, started and stopped together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from cache.tiered import TieredCache
from registry.registry import Registry
from serving.entities.notifier import EntityNotifier
from serving.entities.outcomes import OutcomeReader, OutcomeWriter
from serving.entities.predictor import EntityPredictor
from serving.entities.store import EntityStore
from serving.events.log import EventLog
from serving.http.admission import Admission
from serving.http.sse import Streams
from serving.jobs.requests import JobReader
from serving.jobs.runner import Runner
from serving.jobs.store import JobStore
from serving.master.announcements import Announcements
from serving.monitoring.quality import LiveQuality
from serving.predict.batcher import Batcher
from serving.predict.inference import Inference
from serving.process.executor import Executor
from serving.schedules.building import Schedules
from serving.shared.metrics import BATCHES, CACHE, EXECUTORS, OUTCOMES_QUEUED, STREAMS, Metrics, breakers
from serving.shared.state import Lasting
from serving.telemetry.tracing import Tracing


@dataclass(frozen=True, slots=True)
class Jobs:
    """All that jobs need: where they are kept and told of, who reads requests for them, who works on them."""

    store: JobStore
    events: EventLog
    reader: JobReader
    runner: Runner
    max_csv_bytes: int

    async def close(self) -> None:
        """Disconnect from both."""
        await self.store.close()
        await self.events.close()


@dataclass(frozen=True, slots=True)
class Data:
    """All that records and outcomes need: where they are kept, who is asked about them, who tells of them."""

    source: EntityStore
    predictor: EntityPredictor
    arrivals: EntityNotifier
    outcomes: OutcomeReader
    writer: OutcomeWriter
    quality: LiveQuality

    async def close(self) -> None:
        """Finish what waits, then disconnect; before the log of events is closed."""
        await self.arrivals.close()
        await self.writer.close()
        await self.source.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the app itself is to know of the settings, and its version."""

    version: str
    model_dir: Path
    max_body_bytes: int
    max_instances: int
    max_explained_instances: int
    admin_token: str
    admin_token_in_query: bool
    access_log: bool
    background: bool
    """Whether what takes too long for a request becomes a job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """All parts of one app. Making them starts nothing: threads and connections begin with `running`."""

    registry: Registry
    inference: Inference
    cache: TieredCache
    batcher: Batcher
    executor: Executor
    jobs: Jobs
    data: Data
    schedules: Schedules
    streams: Streams
    metrics: Metrics
    lasting: Lasting
    tracing: Tracing | None
    admission: Admission | None
    """What looks at every request first."""
    announcements: Announcements | None
    """Without it other instances are neither told of reloads nor listened to."""

    def prepare(self) -> None:
        """Before the fork: what is measured and computed once, and what the parts count for themselves."""
        self.inference.prepare()
        for families, figures in (
            (CACHE, self.cache.stats.figures),
            (BATCHES, self.batcher.figures),
            (EXECUTORS, lambda: (self.executor.replacements,)),
            (OUTCOMES_QUEUED, lambda: (self.data.writer.queued,)),
            (STREAMS, lambda: (self.streams.hub.open_streams,)),
            (breakers(("redis",)), lambda: (self.cache.redis_state in ("open", "half-open"),)),
        ):
            self.metrics.follow(families, figures)

    def reason_to_replace(self) -> str | None:
        """Why this process should be replaced, if it should."""
        return self.batcher.reason_to_replace() or self.executor.reason_to_replace()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """In the process that serves.

        Nothing here may fail on an outside service: gunicorn shuts all down when one worker cannot start.
        """
        self.metrics.book.enter_alone()
        self.executor.start()
        self.batcher.start()
        self.lasting.alerts.start()
        if self.tracing is not None:
            self.tracing.start()
        async with _told(self.announcements):
            yield
            await self.data.close()
        self.metrics.publish()
        self.batcher.stop()
        self.executor.stop()
        await self.streams.end()
        await self._disconnect()

    async def _disconnect(self) -> None:
        await self.cache.close()
        await self.jobs.close()
        await self.schedules.timetable.close()
        if self.admission is not None:
            await self.admission.close()
        await self.lasting.alerts.stop()
        await self.lasting.alerts.outbound.close()
        if self.tracing is not None:
            await self.tracing.stop()


@asynccontextmanager
async def _told(announcements: Announcements | None) -> AsyncIterator[None]:
    """Told and heard beside whatever is done meanwhile."""
    if announcements is None:
        yield
        return
    task = asyncio.create_task(announcements.run())
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await announcements.close()
