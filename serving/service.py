"""The parts that run in the processes of the service, and those that they share: opened in order, closed in reverse."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cache.tiered import TieredCache
from registry.registry import Registry
from serving.entities.notifier import EntityNotifier
from serving.entities.outcomes import OutcomeReader, OutcomeWriter
from serving.entities.predictor import EntityPredictor
from serving.entities.store import EntityStore
from serving.events.follow import Hub
from serving.events.log import EventLog
from serving.jobs.requests import Background, JobReader
from serving.jobs.runner import Runner
from serving.jobs.store import JobStore
from serving.jobs.tables import Tables
from serving.monitoring.drift import Drift
from serving.monitoring.predictions.erasure import Erasure
from serving.monitoring.predictions.recorder import Recorder
from serving.monitoring.predictions.store import PredictionStore
from serving.monitoring.quality import LiveQuality
from serving.monitoring.shadow import Shadows
from serving.predict.batcher import Batcher
from serving.predict.canary import Canaries
from serving.predict.inference import Inference
from serving.predict.observer import Observer
from serving.process.executor import Executor
from serving.schedules.scheduler import Scheduler
from serving.shared.book import Book
from serving.shared.holdings import Holdings
from serving.shared.metrics import BATCHES, BREAKERS, CACHE, EXECUTORS, LOG_LINES, OUTCOMES_QUEUED, STREAMS, Metrics
from serving.shared.pressure import Pressure
from serving.shared.reloads import Reloads
from serving.storage.background import Recent
from serving.telemetry.alerts import Alerts
from serving.telemetry.output import dropped_lines
from serving.training.job import LastTraining

if TYPE_CHECKING:
    from serving.telemetry.tracing import Tracing


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """Shared memory, sockets and stores: made once, before the first fork, they outlive every reload."""

    reloads: Reloads
    book: Book
    pressure: Pressure
    streams: Holdings
    """Open event streams by address and by key."""
    bodies: Holdings
    """Bytes of unfinished bodies by client."""
    unsent: Holdings
    """Bytes of answers that are not read yet, by client."""
    alerts: Alerts
    jobs: JobStore
    events: EventLog
    entities: EntityStore
    """Keeps records and outcomes."""
    predictions: PredictionStore
    """Keeps the log of predictions; also there where nothing is logged any more."""
    recorder: Recorder | None
    """Writes that log, in a process of its own; None where nothing is logged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of one request."""

    max_body_bytes: int
    max_csv_bytes: int
    max_instances: int
    max_explained_instances: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """All parts over one registry. Building them starts nothing: threads and connections begin with `open`."""

    shared: Shared
    registry: Registry
    model_dir: Path
    metrics: Metrics
    cache: TieredCache
    batcher: Batcher
    canaries: Canaries
    shadows: Shadows
    observers: tuple[Observer, ...]
    """Told of every answer to a client."""
    executor: Executor
    inference: Inference
    job_reader: JobReader
    tables: Tables | None
    """Reads and writes Parquet and Arrow; None where pyarrow is not installed."""
    background: Background | None
    """Turns requests that take too long into jobs; None where they are answered 504."""
    runner: Runner
    """Runs jobs, in a process of its own."""
    scheduler: Scheduler
    """Fires schedules, in a process of its own; all processes may ask it for the timetable."""
    hub: Hub
    predictor: EntityPredictor
    notifier: EntityNotifier
    outcome_reader: OutcomeReader
    outcome_writer: OutcomeWriter
    erasure: Erasure
    """Deletes all that is kept of somebody."""
    quality: LiveQuality
    drift: Drift
    trainings: Recent[dict[str, LastTraining]]
    tracing: Tracing | None
    limits: Limits
    default_model: str
    """The name of the model for requests that name none; empty for the only one."""
    access_log: bool
    show_examples: bool
    """Whether clients see an example of each model's input."""
    show_timing: bool
    """Whether clients see where an answer came from and what took how long."""

    def prepare(self) -> None:
        """Do before the fork everything that is needed once, and register the metrics that parts count themselves."""
        self.inference.prepare()
        for families, figures in (
            (CACHE, lambda: astuple(self.cache.stats)),
            (BATCHES, self.batcher.figures),
            (EXECUTORS, lambda: (self.executor.replacements,)),
            (OUTCOMES_QUEUED, lambda: (self.outcome_writer.queued,)),
            (STREAMS, lambda: (self.hub.open_streams,)),
            (LOG_LINES, lambda: (dropped_lines(),)),
            (BREAKERS, lambda: (self.cache.redis_state in ("open", "half-open"),)),
        ):
            self.metrics.follow(families, figures)

    async def open(self, closing: AsyncExitStack) -> None:
        """Start in the process that serves; `closing` then closes in reverse order.

        Nothing here may fail because an outside service does: gunicorn ends when a worker cannot start.
        """
        shared = self.shared
        is_alone = shared.book.enter_alone()
        self.executor.start()  # before any thread: it forks
        closing.callback(self.executor.stop)
        self.shadows.executor.start()
        closing.callback(self.shadows.executor.stop)
        closing.push_async_callback(self.shadows.close)
        for batcher in (self.batcher, self.canaries.batcher):
            batcher.start()
            closing.callback(batcher.stop)
        closing.push_async_callback(shared.alerts.outbound.close)
        shared.alerts.start()
        closing.push_async_callback(shared.alerts.stop)
        if self.tracing is not None:
            self.tracing.start()
            closing.push_async_callback(self.tracing.stop)
        for part in (shared.events, shared.jobs, self.cache, shared.entities, shared.predictions):
            closing.push_async_callback(part.close)
        if is_alone and shared.recorder is not None:
            closing.push_async_callback(shared.recorder.start())
        closing.callback(self.metrics.publish)
        closing.push_async_callback(self.quality.close)
        closing.push_async_callback(self.outcome_writer.close)
        closing.push_async_callback(self.notifier.close)

    def reason_to_replace(self) -> str | None:
        return self.batcher.reason_to_replace() or self.executor.reason_to_replace()
