"""Jobs: what keeps them, who takes them in, who works on them, and where."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable

import structlog

from assembly.source import data_source
from registry.registry import Registry
from serving.errors import InvalidSetting
from serving.events.building import build_event_log
from serving.events.log import EventLog
from serving.jobs.building import build_job_store
from serving.jobs.requests import JobReader
from serving.jobs.rows import OPERATIONS, Backend, LocalBackend, RowHandler, make_row_operations
from serving.jobs.runner import Runner
from serving.jobs.store import JobStore
from serving.master.announcements import announce
from serving.parts import Jobs
from serving.process.executor import Executor
from serving.settings import Settings
from serving.shared.book import Book
from serving.shared.metrics import Metrics
from serving.shared.reloads import Reloads
from serving.training.handler import TrainHandler
from serving.training.outcomes import outcome_reader
from serving.training.request import OPERATION
from serving.training.request import OPERATION as TRAIN
from serving.training.steps import Steps


def build_jobs(settings: Settings, registry: Registry, reloads: Reloads, metrics: Metrics) -> Jobs:
    """What keeps jobs, takes them in and works on them. Raises InvalidRedisUrl, InvalidSetting."""
    store = build_job_store(settings.data_dir, settings.redis_url, max_queued=settings.job_max_queued)
    events = build_event_log(settings.data_dir, settings.redis_url)
    functions = {operation.name: operation.answer_call for operation in make_row_operations(registry)}
    executor = Executor(functions, memory=settings.job_memory_bytes, background=True)
    backend = build_backend(settings, executor)
    rows = RowHandler(registry, backend, timeout=settings.job_timeout_seconds)

    async def announce() -> None:
        await announce_reload(reloads, events, shared=bool(settings.redis_url))

    def serves(name: str) -> str | None:
        return registry.aliases(name).live if name in registry else None

    trainer = build_trainer(settings)
    runner = Runner(
        store,
        events,
        {**dict.fromkeys(OPERATIONS, rows), TRAIN: build_train_handler(settings, trainer, events, serves, announce)},
        (executor, trainer),
        backend,
        figures=metrics.jobs,
        lease_seconds=settings.job_lease_seconds,
        keep_seconds=settings.job_keep_seconds,
        keep_jobs=settings.job_keep,
    )
    reader = JobReader(registry, max_rows=settings.job_max_rows, chunk_rows=settings.shap_max_batch_size)
    return Jobs(store, events, reader, runner, settings.job_max_body_bytes)


def build_backend(settings: Settings, executor: Executor) -> Backend:
    """What computes jobs: the executor, or a Dask cluster and the executor. Raises InvalidSetting."""
    local = LocalBackend(executor)
    if not settings.dask_scheduler:
        return local
    try:
        # in the master, so that the 16 MB that this takes are shared
        from serving.jobs.cluster import Cluster
    except ModuleNotFoundError as error:
        raise InvalidSetting(f"DASK_SCHEDULER needs `pip install forkserve[dask]`: {error}") from error
    from serving.jobs.cluster import pack_version

    pack = functools.partial(pack_version, settings.model_dir, evaluations=settings.shap_max_evals)
    return Cluster(settings.dask_scheduler, local, pack, at_once=settings.dask_chunks)


def build_trainer(settings: Settings) -> Executor:
    """The processes in which models are trained and judged, each for one call."""
    steps = Steps(
        settings.model_dir,
        outcome_reader(data_source(settings), settings.max_outcomes_per_model),
        tolerance=settings.train_tolerance,
        options=settings.load_options,
    )
    return Executor(steps.functions(), memory=settings.train_memory_bytes, background=True, reuse=False)


def build_train_handler(
    settings: Settings,
    trainer: Executor,
    events: EventLog,
    serves: Callable[[str], str | None],
    announce: Callable[[], Awaitable[None]],
) -> TrainHandler:
    """What works on jobs that train models. `serves` and `announce`: see TrainHandler."""
    return TrainHandler(
        settings.model_dir,
        trainer,
        events,
        serves=serves,
        announce=announce,
        timeout=settings.train_timeout_seconds,
        judging=settings.reload_timeout_seconds,
    )


def build_trainer_alone(settings: Settings) -> tuple[JobStore, Runner]:
    """What trains models and does nothing else, without loading any. Raises InvalidRedisUrl."""
    store = build_job_store(settings.data_dir, settings.redis_url, max_queued=settings.job_max_queued)
    events = build_event_log(settings.data_dir, settings.redis_url)
    trainer = build_trainer(settings)

    async def announce() -> None:
        if settings.redis_url:
            await announce_reload(Reloads(), events, shared=True)

    runner = Runner(
        store,
        events,
        {OPERATION: build_train_handler(settings, trainer, events, lambda _name: None, announce)},
        (trainer,),
        LocalBackend(trainer),
        figures=Metrics(Book(1)).jobs,
        lease_seconds=settings.job_lease_seconds,
        keep_seconds=settings.job_keep_seconds,
        keep_jobs=settings.job_keep,
    )
    return store, runner


async def announce_reload(reloads: Reloads, events: EventLog, *, shared: bool) -> None:
    """Have those who serve take over what has become live on the disk; `shared` if other instances read `events`."""
    if reloads.has_master:
        reloads.request()  # which then tells the others
    elif shared:
        await announce(events, "trained")
    else:
        structlog.get_logger(__name__).warning("A new version is live, and there is nobody here to be told")
