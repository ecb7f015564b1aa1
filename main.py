"""Puts the parts together, and the command line; importing it does nothing. Read this file first.

`gunicorn -c serving/gunicorn_conf.py main:app` serves, `uvicorn main:app --reload` is for development. Imports stand
inside functions where they are heavy: the number of numeric threads has to be set before numpy is first imported, and
`forkserve --help` should not wait for scikit-learn.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import importlib.metadata
import math
import os
import secrets
import socket
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from serving import numeric_threads
from serving.errors import InvalidSetting, ServingError
from serving.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    import pandas as pd

    from registry.registry import Registry
    from serving.admission import Admission
    from serving.alerts import Alerts
    from serving.announcements import Announcements
    from serving.app import Application, Data, Jobs
    from serving.data.record import Record
    from serving.data.source import Source
    from serving.events.log import EventLog
    from serving.executor import Executor
    from serving.inference import Inference
    from serving.jobs.backend import Backend
    from serving.jobs.job import JobRequest
    from serving.jobs.runner import Runner
    from serving.jobs.store import JobStore
    from serving.lasting import Lasting
    from serving.metrics.recording import Metrics
    from serving.reloads import Reloads
    from serving.schedules.building import Schedules
    from serving.schedules.schedule import Action
    from serving.tracing import Tracing
    from serving.training.handler import TrainHandler


def __getattr__(name: str) -> Any:
    """`main.app`, built when it is asked for."""
    if name == "app":
        return web()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def web() -> Application:
    """The app; gunicorn asks for it once, in the master, before it forks."""
    numeric_threads.limit(os.environ)
    from cache.connection import InvalidRedisUrl
    from registry.errors import RegistryError
    from serving import logs
    from serving.errors import CannotServe

    try:
        settings = Settings.from_env(os.environ)
        alerts = build_alerts(settings)
        logs.configure(settings.log_level, watch=alerts.watch)
        return build(settings, alerts)
    except (InvalidSetting, RegistryError, InvalidRedisUrl, CannotServe) as error:
        sys.exit(f"forkserve: {error}")


def build(settings: Settings, alerts: Alerts) -> Application:
    """The parts, put together; nothing is started. Raises RegistryError, InvalidSetting, InvalidRedisUrl."""
    from registry.explainers.budget import Budget
    from registry.registry import load_registry
    from serving.lasting import Lasting
    from serving.memory.pressure import Pressure
    from serving.metrics.book import Book
    from serving.reloads import Reloads

    reloads = Reloads()  # first: what others tell from now on may be missed by what is loaded
    registry = load_registry(
        settings.model_dir,
        selected=settings.serve_versions,
        fallback=settings.model_fallback,
        compiled=settings.compile,
        budget=Budget(evaluations=settings.shap_max_evals),
    )
    # twice as many processes: at a reload the old ones drain beside the new
    book = Book(2 * (settings.web_concurrency + settings.job_runners + 1))
    return assemble(settings, registry, Lasting(reloads, book, Pressure(), alerts))


def renew(settings: Settings, old: Registry, lasting: Lasting) -> tuple[Application, tuple[str, ...]]:
    """The parts anew over what is in the model directory now, in the master; and what could not be taken over."""
    from registry.explainers.budget import Budget
    from registry.loader import load_version
    from registry.renewing import renew_registry
    from serving.reloading import loading_carefully

    budget = Budget(evaluations=settings.shap_max_evals)
    load = functools.partial(load_version, settings.model_dir, compiled=settings.compile, budget=budget)
    carefully = loading_carefully(load, settings.reload_timeout_seconds)
    renewal = renew_registry(old, settings.model_dir, carefully, selected=settings.serve_versions)
    return assemble(settings, renewal.registry, lasting), renewal.refused


def assemble(settings: Settings, registry: Registry, lasting: Lasting) -> Application:
    """The app over these models. Raises InvalidSetting, InvalidRedisUrl."""
    from cache.building import build_cache
    from serving.app import create_app
    from serving.batching import Batcher
    from serving.events.hub import Hub
    from serving.executor import Executor
    from serving.inference import Inference, isolated_functions, make_operations
    from serving.metrics.recording import Metrics
    from serving.streams import Streams

    metrics = Metrics(lasting.book)
    cache = build_cache(
        max_items=settings.cache_max_items,
        max_bytes=settings.cache_max_bytes,
        ttl_seconds=settings.cache_ttl_seconds,
        redis_url=settings.redis_url,
        redis_health_check_interval=settings.redis_health_check_interval,
    )
    operations = make_operations(registry)
    batcher = Batcher(threads=settings.inference_threads, queue_seconds=settings.queue_seconds)
    executor = Executor(
        isolated_functions(operations), processes=settings.executor_processes, memory=settings.executor_memory_bytes
    )
    inference = Inference(
        operations, batcher=batcher, executor=executor, cache=cache, timeout=settings.inference_timeout_seconds
    )
    jobs = build_jobs(settings, registry, lasting.reloads, metrics)
    hub = Hub(
        jobs.events,
        max_streams=settings.max_streams,
        max_streams_per_address=settings.max_streams_per_address or None,
    )
    return create_app(
        registry,
        inference,
        cache,
        batcher=batcher,
        executor=executor,
        jobs=jobs,
        data=build_data(settings, registry, inference, jobs.events),
        schedules=schedules_of(settings, lasting.reloads),
        streams=Streams(hub, heartbeat_seconds=settings.stream_heartbeat_seconds),
        metrics=metrics,
        tracing=build_tracing(settings),
        version=importlib.metadata.version("forkserve"),
        max_body_bytes=settings.max_body_bytes,
        max_instances=settings.max_instances,
        max_explained_instances=settings.shap_max_batch_size,
        admin_token=settings.admin_token,
        admin_token_in_query=settings.admin_token_in_query,
        access_log=settings.access_log,
        admission=build_admission(settings),
        background=settings.use_background_inference,
        model_dir=settings.model_dir,
        lasting=lasting,
        announcements=build_announcements(settings, lasting.reloads),
        renew=lambda: renew(settings, registry, lasting),
    )


def build_tracing(settings: Settings) -> Tracing | None:
    """Traces, where there is somebody to send them to. Raises InvalidSetting without the extra `otel`."""
    if not settings.otel_exporter_otlp_endpoint:
        return None
    from serving.tracing import Tracing

    try:
        return Tracing(settings.otel_exporter_otlp_endpoint, settings.otel_service_name)
    except ImportError:
        raise InvalidSetting("OTEL_EXPORTER_OTLP_ENDPOINT needs `pip install forkserve[otel]`") from None


def build_alerts(settings: Settings) -> Alerts:
    """What tells people, and calls elsewhere for all of a process; to be made once, for all reloads."""
    from serving.alerts import Alerts, form_of
    from serving.outbound import Outbound

    url = settings.alert_webhook_url
    return Alerts(Outbound(), url, form_of(url, settings.alert_form), name=f"forkserve on {socket.gethostname()}")


def build_admission(settings: Settings) -> Admission | None:
    """What looks at every request before the app does; None if no setting asks for it. Raises InvalidRedisUrl."""
    from serving.admission import Admission
    from serving.clients import Clients
    from serving.cors import Origins
    from serving.limits.building import build_limiter
    from serving.limits.rate import parse_rate

    if not (settings.trusted_proxy_count or settings.rate_limit or settings.cors_origins):
        return None
    limiter = None
    if settings.rate_limit:
        rate = parse_rate(settings.rate_limit, settings.rate_limit_burst)
        interval = settings.redis_health_check_interval
        limiter = build_limiter(rate, settings.redis_url, redis_health_check_interval=interval)
    origins = Origins(settings.cors_origins) if settings.cors_origins else None
    return Admission(Clients(settings.trusted_proxy_count), limiter, origins)


def build_jobs(settings: Settings, registry: Registry, reloads: Reloads, metrics: Metrics) -> Jobs:
    """What keeps jobs, takes them in and works on them. Raises InvalidRedisUrl, InvalidSetting."""
    from serving.app import Jobs
    from serving.events.building import build_event_log
    from serving.executor import Executor
    from serving.jobs.building import build_job_store
    from serving.jobs.handlers import RowHandler, make_row_operations
    from serving.jobs.rows import OPERATIONS
    from serving.jobs.runner import Runner
    from serving.submitting import JobReader
    from serving.training.request import OPERATION as TRAIN

    store = build_job_store(settings.data_dir, settings.redis_url, max_queued=settings.job_max_queued)
    events = build_event_log(settings.data_dir, settings.redis_url)
    functions = {operation.name: operation.answer_isolated for operation in make_row_operations(registry)}
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


def build_data(settings: Settings, registry: Registry, inference: Inference, events: EventLog) -> Data:
    """What keeps records and outcomes, and who is asked about them. Raises CannotServe."""
    from serving.app import Data
    from serving.arrivals import Arrivals
    from serving.data.reading import RecordReader
    from serving.data.writer import OutcomeWriter
    from serving.entities import EntityPredictor
    from serving.outcomes import LiveQuality, OutcomeReader

    source = data_source(settings)
    predictor = EntityPredictor(registry, inference, RecordReader(source, settings.max_limit_checkins))
    return Data(
        source,
        predictor,
        Arrivals(predictor, events),
        OutcomeReader(registry, inference, max_instances=settings.max_instances),
        OutcomeWriter(source),
        LiveQuality(registry, source),
    )


def data_source(settings: Settings) -> Source:
    """Where records and outcomes are kept. Raises CannotServe."""
    from serving.data.building import build_source

    return build_source(
        settings.data_dir,
        settings.supabase_url,
        settings.supabase_key,
        keep_records=settings.max_records_per_entity,
        keep_outcomes=settings.max_outcomes_per_model,
        keep_in_all=settings.max_records,
    )


def build_backend(settings: Settings, executor: Executor) -> Backend:
    """What computes jobs: the executor, or a Dask cluster and the executor. Raises InvalidSetting."""
    from serving.jobs.backend import LocalBackend

    local = LocalBackend(executor)
    if not settings.dask_scheduler:
        return local
    try:
        # in the master, so that the 16 MB that this takes are shared
        from serving.jobs.cluster import Cluster
    except ModuleNotFoundError as error:
        raise InvalidSetting(f"DASK_SCHEDULER needs `pip install forkserve[dask]`: {error}") from error
    from serving.jobs.parcel import pack_version

    pack = functools.partial(pack_version, settings.model_dir, evals=settings.shap_max_evals)
    return Cluster(settings.dask_scheduler, local, pack, at_once=settings.dask_chunks)


def build_trainer(settings: Settings) -> Executor:
    """The processes in which models are trained and judged, each for one call."""
    from registry.explainers.budget import Budget
    from serving.executor import Executor
    from serving.training.steps import Steps

    steps = Steps(
        settings.model_dir,
        read_outcomes,
        tolerance=settings.train_tolerance,
        compiled=settings.compile,
        budget=Budget(evaluations=settings.shap_max_evals),
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
    from serving.training.handler import TrainHandler

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
    from serving.events.building import build_event_log
    from serving.jobs.backend import LocalBackend
    from serving.jobs.building import build_job_store
    from serving.jobs.runner import Runner
    from serving.metrics.book import Book
    from serving.metrics.recording import Metrics
    from serving.reloads import Reloads
    from serving.training.request import OPERATION

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


async def read_outcomes(_model: str) -> pd.DataFrame:
    """What really happened, for training: nothing is kept yet."""
    import pandas as pd

    return pd.DataFrame()


async def announce_reload(reloads: Reloads, events: EventLog, *, shared: bool) -> None:
    """Have those who serve take over what has become live on the disk; `shared` if other instances read `events`."""
    import structlog

    from serving.announcements import announce

    if reloads.has_master:
        reloads.request()  # which then tells the others
    elif shared:
        await announce(events, "trained")
    else:
        structlog.get_logger(__name__).warning("A new version is live, and there is nobody here to be told")


def build_announcements(settings: Settings, reloads: Reloads) -> Announcements | None:
    """What instances tell each other, if they share a Redis. Raises InvalidRedisUrl."""
    from serving.announcements import Announcements
    from serving.events.building import build_event_log

    if not settings.redis_url:
        return None
    return Announcements(build_event_log(settings.data_dir, settings.redis_url), reloads)


def schedules_of(settings: Settings, reloads: Reloads) -> Schedules:
    """What fires at set times, and what shows it. Raises InvalidSetting, InvalidRedisUrl."""
    from serving.schedules.building import build_schedules

    return build_schedules(
        settings.schedules,
        schedule_actions(settings, reloads),
        grace=settings.schedule_grace_seconds,
        directory=settings.data_dir,
        redis_url=settings.redis_url,
        max_queued=settings.job_max_queued,
    )


def schedule_actions(settings: Settings, reloads: Reloads) -> Mapping[str, Action]:
    """What schedules can do, by the word that they use for it. The words after it are the function's parameters."""
    from serving.announcements import announce
    from serving.events.building import build_event_log
    from serving.schedules.schedule import Called, Queued

    async def reload() -> None:
        if reloads.has_master or not settings.redis_url:
            reloads.request()  # and not waited for: the scheduler is replaced by it
            return
        events = build_event_log(settings.data_dir, settings.redis_url)
        await announce(events, "schedule")
        await events.close()

    def train(model: str) -> JobRequest:
        return train_request(settings.model_dir, model)

    return {"reload": Called(reload), "train": Queued(train)}


def train_request(model_dir: Path, model: str) -> JobRequest:
    """The job that trains a model anew. Raises ModelNotFound, VersionRefused, CannotTrain."""
    from registry.registry import find_model
    from registry.training import live_manifest
    from serving.training.request import training_request

    return training_request(live_manifest(find_model(model_dir, model)))


def serve(_arguments: argparse.Namespace, settings: Settings) -> NoReturn:
    """Become gunicorn, with an admin token made for this run if there is none; or a worker without web."""
    if "web" not in settings.roles:
        os.execv(sys.executable, [sys.executable, __file__, "worker"])  # noqa: S606 - no shell is wanted
    os.environ["GREETING"] = "true"
    if not os.environ.get("ADMIN_TOKEN"):
        os.environ["ADMIN_TOKEN"] = token = secrets.token_urlsafe(24)
        say(f"ADMIN_TOKEN is not set; for this run it is {token}")
    configuration = Path(__file__).parent / "serving" / "gunicorn_conf.py"
    command = [sys.executable, "-m", "gunicorn", "--config", str(configuration), "main:app"]
    os.execv(sys.executable, command)  # noqa: S606 - no shell is wanted


def worker(arguments: argparse.Namespace, settings: Settings) -> int:
    """Run jobs and schedules without serving, as ROLES says; with --once jobs until none is due, in this process."""
    from serving import logs, prefork
    from serving.errors import CannotServe
    from serving.jobs.runner import at_once
    from serving.metrics.book import Book
    from serving.processes import SCHEDULER
    from serving.reloads import Reloads
    from serving.runners import Runners, supervise

    alerts = build_alerts(settings)
    logs.configure(settings.log_level, watch=alerts.watch)
    kinds = []
    try:
        if "scheduler" in settings.roles and settings.schedules and not arguments.once:
            kinds.append(Runners(schedules_of(settings, Reloads()).scheduler.run, 1, Book(2), name=SCHEDULER))
        if arguments.once or "worker" in settings.roles or "scheduler" not in settings.roles:
            app = build(settings, alerts)
            kinds.append(Runners(app.runner.run, settings.job_runners, app.lasting.book))
        prefork.import_modules(settings.preload_modules)
        prefork.settle()
        prefork.check_single_thread()
    except CannotServe as error:
        say(f"forkserve: {error}", file=sys.stderr)
        return 1
    if not kinds:
        say("forkserve: ROLES names the scheduler alone, and SCHEDULES is empty", file=sys.stderr)
        return 1
    if arguments.once:
        app.runner.run(until=at_once)
    else:
        supervise(kinds)
    return 0


def schedules(_arguments: argparse.Namespace, settings: Settings) -> int:
    """List what fires when, next and last, and how often it did."""
    import asyncio

    from serving.reloads import Reloads

    timetable = schedules_of(settings, Reloads()).timetable

    async def read() -> list[dict[str, Any]]:
        try:
            return await timetable.rows()
        finally:
            await timetable.close()

    for row in asyncio.run(read()):
        counts = ", ".join(f"{name.replace('_', ' ')} {row[name]}" for name in COUNTED if row.get(name))
        when, what = f"{row['when']:40}", f"{row['action']:24}"
        say(f"{row['name']:24} {when} {what} next {row['next'] or 'never'}  {counts}".rstrip())
    return 0


def models(_arguments: argparse.Namespace, settings: Settings) -> int:
    """List what is in the model directory."""
    from registry.registry import load_registry

    registry = load_registry(settings.model_dir, fallback=settings.model_fallback)
    for model in registry:
        metrics = ", ".join(f"{name} {value:.3f}" for name, value in model.manifest.metrics.items())
        live = "live" if registry.aliases(model.name).live == model.version else ""
        kind = f"{model.manifest.task:18} {model.manifest.estimator:48}"
        say(f"{model.name:24} {model.version:10} {live:5} {kind} {metrics}")
    return 0


def promote(arguments: argparse.Namespace, settings: Settings) -> int:
    """Make a version live, once it has been loaded and verified; a service that runs takes it over when it reloads."""
    from registry import aliases
    from registry.registry import load_one

    model = load_one(settings.model_dir, arguments.model, arguments.version)
    after = aliases.promote(settings.model_dir / model.name, model.version)
    say(f"{model.name}: version {after.live} is live, the previous one is {after.previous or 'none'}")
    return 0


def rollback(arguments: argparse.Namespace, settings: Settings) -> int:
    """Make the previous version live again, once it has been loaded and verified."""
    from registry import aliases
    from registry.registry import find_model, load_one

    directory = find_model(settings.model_dir, arguments.model)
    before = aliases.current(directory)
    if before.previous is not None:
        load_one(settings.model_dir, arguments.model, before.previous)
    after = aliases.rollback(directory)
    say(f"{arguments.model}: version {after.live} is live, the previous one is {after.previous or 'none'}")
    return 0


def add(arguments: argparse.Namespace, settings: Settings) -> int:
    """Make a new version from a joblib file and a table."""
    from registry.adding import add_version, read_estimator, read_table
    from registry.training import read_script, record_script, write_script

    script = read_script(arguments.train) if arguments.train else None
    model = add_version(
        settings.model_dir,
        arguments.name,
        read_estimator(arguments.artefact),
        read_table(arguments.data),
        version=arguments.version,
        target=arguments.target,
        labels=arguments.labels.split(",") if arguments.labels else (),
        margin=MARGINS[arguments.bounds],
        source=arguments.source,
        training=None if script is None else record_script(script),
        entities=arguments.entities,
    )
    if script is not None:
        write_script(settings.model_dir / model.name, script)
    say(f"added {model.name} version {model.version} in {settings.model_dir / model.name / model.version}")
    return 0


def retrain(arguments: argparse.Namespace, settings: Settings) -> int:
    """Train a model anew and make it live if it is no worse than what is; waits for it. For cron."""
    from registry.registry import find_model
    from registry.training import live_manifest
    from serving import prefork
    from serving.errors import ServingError
    from serving.training.once import train_once

    live = live_manifest(find_model(settings.model_dir, arguments.model))
    try:
        store, runner = build_trainer_alone(settings)
        prefork.check_single_thread()
        job, result = train_once(store, runner, live)
    except ServingError as error:
        say(f"forkserve: {error}", file=sys.stderr)
        return 1
    if result is None:
        say(
            f"forkserve: {live.name}: job {job.id} is {job.state}{f': {job.error}' if job.error else ''}",
            file=sys.stderr,
        )
        return 1
    for reason in result.reasons:
        say(f"forkserve: {live.name}: version {result.version} is refused: {reason}", file=sys.stderr)
    metrics = ", ".join(f"{name} {value:.3f}" for name, value in result.metrics.items())
    if result.promoted:
        say(f"{live.name}: version {result.version} is live, {metrics}; the previous one is {result.live}")
        say("a service that runs takes it over when it reloads")
    return 0 if result.promoted else 1


def explain(arguments: argparse.Namespace, settings: Settings) -> int:
    """Explain one row, as JSON and as a picture."""
    import json

    from registry.errors import InvalidRows
    from registry.presenting import Selection
    from registry.registry import load_one

    try:
        instance = json.loads(arguments.row.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        say(f"forkserve: {arguments.row}: {error}", file=sys.stderr)
        return 1
    model = load_one(settings.model_dir, arguments.model, arguments.version)
    try:
        rows = model.schema.rows([instance])
    except InvalidRows as error:
        for fault in error.faults:
            say(f"forkserve: {arguments.row}: {fault.feature or 'the row'} {fault.reason}", file=sys.stderr)
        return 1
    (explanation,) = model.explain(rows, Selection(top=arguments.top))
    say(json.dumps(explanation, indent=1))
    if arguments.plot:
        from registry.waterfall import draw_waterfall

        draw_waterfall(explanation, model.schema.instance(rows[0]), arguments.plot)
    return 0


def entities(arguments: argparse.Namespace, settings: Settings) -> int:
    """Import records of entities from a CSV file, or those of the demo."""
    from serving.data.importing import read_table

    try:
        if arguments.action == "demo":
            import_demo(settings)
        else:
            import_into(data_source(settings), read_table(arguments.file))
    except OSError as error:
        say(f"forkserve: {error}", file=sys.stderr)
        return 1
    return 0


def import_demo(settings: Settings) -> None:
    """A year of market days for each share of the demo. Raises StoreUnavailable, CannotServe."""
    from examples.market import market_records
    from serving.data.record import make_record

    import_into(data_source(settings), (make_record(share, values, day) for share, day, values in market_records()))


def import_into(source: Source, records: Iterable[Record]) -> None:
    """Keep the records and say how many they were. Raises InvalidRequest, StoreUnavailable."""
    from serving.data.importing import import_records

    async def run() -> None:
        try:
            done = await import_records(source, records)
        finally:
            await source.close()
        say(f"imported {done.records} records, {done.new} of them new")

    asyncio.run(run())


def train(_arguments: argparse.Namespace, settings: Settings) -> int:
    """Train the demo models, and import the records of the demo where no Supabase is set up."""
    from examples.train import train_all

    for model in train_all(settings.model_dir):
        metrics = ", ".join(f"{name} {value:.3f}" for name, value in model.manifest.metrics.items())
        say(f"trained {model.name} version {model.version}: {metrics} (held out)")
    if not settings.supabase_url:  # nobody's project is filled with a demo unasked: `forkserve entities demo`
        import_demo(settings)
    return 0


def check(_arguments: argparse.Namespace, settings: Settings) -> int:
    """Verify models, settings and the fork before a deploy; a line a fault."""
    from cache.connection import InvalidRedisUrl
    from serving.check import find_faults
    from serving.reloads import Reloads

    faults = find_faults(settings)
    try:
        schedules_of(settings, Reloads())
    except (InvalidSetting, InvalidRedisUrl) as error:
        faults.append(str(error))
    for fault in faults:
        say(f"forkserve: {fault}", file=sys.stderr)
    if not faults:
        say("ready to serve")
    return 1 if faults else 0


def verify(arguments: argparse.Namespace, settings: Settings) -> int:
    """Ask a running service for one of everything it is there for, after a deploy; a line a finding."""
    from remote.service import RemoteService
    from remote.verifying import verify as look

    faults = 0
    with RemoteService(arguments.url or local(settings), settings.admin_token) as service:
        for finding in look(service, wait_seconds=arguments.wait, max_memory_mb=arguments.max_memory_mb):
            say(
                f"{'FAULT' if finding.fault else 'ok':5}  {finding.subject:32} {finding.fault or finding.note}".rstrip()
            )
            faults += bool(finding.fault)
    say(f"forkserve: {faults} faults", file=sys.stderr) if faults else say("all is well")
    return 1 if faults else 0


def load_test(arguments: argparse.Namespace, settings: Settings) -> int:
    """Send a running service as many requests as it answers for some seconds, and say how that went."""
    from remote.errors import Unreachable
    from remote.load import Plan, run
    from remote.service import RemoteService

    plan = Plan(
        seconds=arguments.seconds,
        connections=arguments.connections,
        explained=arguments.explained,
        repeated=arguments.repeated,
        models=tuple(arguments.models),
    )
    try:
        with RemoteService(arguments.url or local(settings), settings.admin_token) as service:
            report = run(service, plan, progress)
    except Unreachable as error:
        say(f"forkserve: {error}", file=sys.stderr)
        return 1
    progress("")
    for line in report.lines():
        say(line)
    return 0 if report.tally.failed == 0 else 1


def local(settings: Settings) -> str:
    """Where the service of these settings is, on this machine."""
    return f"http://127.0.0.1:{settings.port}"


def progress(line: str) -> None:
    """In one line of a terminal; line after line elsewhere."""
    terminal = sys.stderr.isatty()
    sys.stderr.write(f"\r{line}\x1b[K" if terminal else f"{line}\n")
    sys.stderr.flush()


COUNTED = ("fired", "missed", "coalesced", "overlaps_prevented", "failed", "overlap_incidents")
MARGINS = {"seen": 0.0, "wide": 1.0, "none": None}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="forkserve", description="Serve scikit-learn models from workers that share them."
    )
    commands = top.add_subparsers(required=True, metavar="command")
    for command in (
        serve,
        worker,
        schedules,
        models,
        add,
        explain,
        promote,
        rollback,
        retrain,
        train,
        check,
        verify,
        load_test,
    ):
        sub = commands.add_parser(command.__name__.replace("_", "-"), help=command.__doc__, description=command.__doc__)
        sub.set_defaults(command=command)
        if command is add:
            sub.add_argument("artefact", type=Path, help="a joblib file that holds a fitted estimator; it is executed")
            sub.add_argument("--name", required=True, help="the model's name")
            sub.add_argument("--data", required=True, type=Path, help="CSV of the model's input, one column a feature")
            sub.add_argument("--version", help="default: the number after the newest")
            sub.add_argument("--target", help="the column of the CSV that the model predicts; its metrics are measured")
            sub.add_argument("--labels", help="names of the classes with commas, in the order of classes_")
            sub.add_argument(
                "--train", type=Path, help="a train.py that trains the model anew; its code is executed then"
            )
            sub.add_argument("--entities", action="store_true", help="ask it about the records of entities, too")
            sub.add_argument("--source", default="", help="where the data come from, and under which licence")
            sub.add_argument(
                "--bounds",
                choices=tuple(MARGINS),
                default="wide",
                help="numbers to accept: only the range seen; as far outside as it is wide (default); all that fit",
            )
        if command in (verify, load_test):
            sub.add_argument("url", nargs="?", help="https://... of the service; default: this machine, port PORT")
        if command is verify:
            sub.add_argument("--wait", type=float, default=0.0, help="seconds that it may take until it is ready")
            sub.add_argument(
                "--max-memory-mb", type=float, default=math.inf, help="what all of its processes may take together"
            )
        if command is load_test:
            sub.add_argument("--seconds", type=float, default=10.0, help="default: 10")
            sub.add_argument("--connections", type=int, default=20, help="default: 20")
            sub.add_argument("--explained", type=float, default=0.1, help="share of explanations; default: 0.1")
            sub.add_argument("--repeated", type=float, default=0.2, help="share sent before; default: 0.2")
            sub.add_argument("--models", nargs="*", default=[], help="default: all")
        if command in (promote, rollback, retrain):
            sub.add_argument("model", help="the model's name")
        if command is promote:
            sub.add_argument("version", help="the version to make live")
        if command is worker:
            sub.add_argument("--once", action="store_true", help="do what is queued, then end; for cron")
        if command is explain:
            sub.add_argument("model", help="the model's name")
            sub.add_argument("--row", required=True, type=Path, help="JSON file: one row by name, or by position")
            sub.add_argument("--version", help="default: the one that is live")
            sub.add_argument("--top", type=int, help="show so many features, and the others as a sum")
            sub.add_argument("--plot", type=Path, help="draw a waterfall into this file: .png, .svg or .pdf")
    add_entities(commands)
    return top


def add_entities(commands: Any) -> None:
    """`forkserve entities` and what it can do."""
    sub = commands.add_parser("entities", help=entities.__doc__, description=entities.__doc__)
    sub.set_defaults(command=entities)
    actions = sub.add_subparsers(dest="action", required=True, metavar="action")
    importing = actions.add_parser("import", help="import a CSV file with the columns entity, time and more")
    importing.add_argument("file", type=Path, help="in UTF-8; what was imported before is not imported again")
    actions.add_parser("demo", help="import the records of the demo")


def run() -> int:
    """The `forkserve` command."""
    numeric_threads.limit(os.environ)
    sys.path.insert(0, str(Path.cwd()))  # as gunicorn does: artefacts may need modules of the project they serve
    arguments = parser().parse_args()
    try:
        settings = Settings.from_env(os.environ)
    except InvalidSetting as error:
        say(f"forkserve: {error}", file=sys.stderr)
        return 1
    if arguments.command is serve:
        serve(arguments, settings)
    from cache.connection import InvalidRedisUrl
    from registry.errors import RegistryError
    from serving import logs

    logs.configure("warning")
    try:
        status: int = arguments.command(arguments, settings)
    except (RegistryError, InvalidRedisUrl, ServingError) as error:
        say(f"forkserve: {error}", file=sys.stderr)
        return 1
    return status


def say(text: str, *, file: Any = None) -> None:
    """Tell the person at the terminal."""
    print(text, file=file or sys.stdout, flush=True)


if __name__ == "__main__":
    sys.exit(run())
