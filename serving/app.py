"""Builds the service from its settings, and the ASGI app over it; nothing here starts anything."""

from __future__ import annotations

import functools
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from registry.errors import VersionRefused
from registry.imports import has_arrow
from registry.model import LoadedModel
from registry.registry import Registry
from registry.store.directory import Fingerprint, find_model, fingerprint, is_empty
from registry.store.loader import fall_back, load_version
from registry.store.manifest import read_manifest
from registry.store.options import LoadOptions
from registry.store.reload import Load, renew_registry, versions_to_load
from registry.training.script import live_manifest
from serving.entities.feeds import POLL, Poller, parse_feeds, poll_request
from serving.entities.notifier import EntityNotifier
from serving.entities.outcomes import OutcomeReader, OutcomeWriter
from serving.entities.predictor import EntityPredictor, RecordReader
from serving.errors import CannotReload, CannotServe, InvalidSetting
from serving.events.follow import Hub
from serving.http.api import make_api
from serving.http.body import Bodies
from serving.http.cors import Origins
from serving.http.edge import Edge
from serving.http.keys import ADMIN, ANY, Key, Keys, digest_of, parse_entries
from serving.http.pages.routes import pages_router
from serving.http.problems import render, status_of
from serving.http.protocols.mlflow import AzureML, MLflow, check_default, names_of, platform_paths
from serving.http.protocols.route import Protocol, ProtocolRoute
from serving.http.protocols.v2 import V2
from serving.http.rate_limit import Limiter, Limiters
from serving.http.routes.predict import PATH, PredictRoute
from serving.http.sse import Streams
from serving.http.unsent import UnsentBytes
from serving.http.views import make_views
from serving.jobs.attempt import AttemptFailed, Handler, Report
from serving.jobs.job import Job, JobRequest
from serving.jobs.requests import Background, JobReader
from serving.jobs.rows import OPERATIONS, Backend, LocalBackend, RowHandler
from serving.jobs.runner import JobLimits, Runner
from serving.jobs.store import JobStore
from serving.jobs.tables import Tables, TableTools
from serving.monitoring.drift import Drift
from serving.monitoring.predictions.erasure import Erasure
from serving.monitoring.predictions.log import PredictionLog, PredictionLogger
from serving.monitoring.predictions.policy import LogPolicy
from serving.monitoring.predictions.recorder import Recorder
from serving.monitoring.quality import LiveQuality
from serving.monitoring.replay import OPERATION as REPLAY
from serving.monitoring.replay import ReplayHandler, replay_functions
from serving.monitoring.shadow import Shadows
from serving.monitoring.windows import parse_windows
from serving.predict.batcher import Batcher
from serving.predict.canary import Canaries
from serving.predict.inference import Inference
from serving.predict.observer import Observer
from serving.predict.operation import make_operations
from serving.predict.request_body import Reader
from serving.process.apart import nothing
from serving.process.executor import Executor
from serving.process.trial import can_try, try_first
from serving.schedules.parse import Action, Schedule, parse_schedules
from serving.schedules.scheduler import Scheduler
from serving.schedules.takeover import take_over
from serving.service import Limits, Service, Shared
from serving.settings import Settings, warn_of_misspelt
from serving.shared.book import Book
from serving.shared.metrics import Metrics
from serving.shared.pressure import Pressure, Trimmer
from serving.shared.rate_table import Rate, RateTable, parse_rate
from serving.shared.reloads import Reloads
from serving.storage.http import Outbound
from serving.stores import (
    build_answer_cache,
    build_entity_store,
    build_event_log,
    build_job_store,
    build_prediction_store,
    choose_scratch_directory,
    queue_limits,
)
from serving.telemetry import logs
from serving.telemetry.access_log import AccessLog
from serving.telemetry.alerts import Alerts, form_of
from serving.telemetry.logs import LEVELS
from serving.telemetry.output import protect_output
from serving.training.handler import TrainHandler
from serving.training.job import OPERATION as TRAIN
from serving.training.job import last_trainings, training_request
from serving.training.steps import Steps

if TYPE_CHECKING:
    from serving.telemetry.tracing import Tracing

log = structlog.get_logger(__name__)

RELOAD = "reload"
"""The operation of jobs that have the models reloaded."""

KEY_BUCKETS = 1 << 12
"""Of the table of keys: 256 KB, for more keys than one service has."""


class Application:
    """The ASGI app: one edge around a dispatcher, which sends predictions their own short way, all else to FastAPI.

    FastAPI's own routing costs 20 us a request, as much as everything else that a prediction needs.
    """

    def __init__(self, service: Service, settings: Settings, limiters: Limiters, keys: Keys) -> None:
        """`limiters` count requests by client; they outlive reloads, and so do the `keys`."""
        self.service = service
        self.settings = settings
        self.limiters = limiters
        self.keys = keys
        service.metrics.name_keys(key.name for key in keys.listed)
        self.streams = Streams(service.hub, heartbeat_seconds=settings.stream_heartbeat_seconds)
        self._trimmer = Trimmer(service.shared.pressure)
        self._stack = self._build_stack()
        self._aliases = platform_paths(
            service.registry,
            settings.default_model,
            health=settings.aip_health_route,
            predict=settings.aip_predict_route,
        )
        # for the gunicorn worker
        self.count_refusal = service.metrics.count_response
        self.unsent = UnsentBytes(service.shared.unsent)
        self.end_streams = self.streams.end
        self.reason_to_replace = service.reason_to_replace

    def _build_stack(self) -> ASGIApp:
        """Everything that a request goes through, outermost first."""
        service, settings = self.service, self.settings
        hot_path = PredictRoute(service, self.streams)
        protocols = [
            ProtocolRoute(service, protocol) for protocol in make_protocols(service, hot_path.readers["predict"])
        ]
        views = make_views(service)
        pages = None
        if settings.pages:
            pages = pages_router(
                service,
                views,
                hot_path,
                self.keys,
                max_job_rows=settings.job_max_rows,
                with_patterns=settings.pages_patterns,
            )
        api = make_api(service, views, self.streams, self.keys, lambda _api: self._running(), pages)

        async def timed(scope: Scope, receive: Receive, send: Send) -> None:
            started = time.perf_counter()
            try:
                await api(scope, receive, send)
            finally:
                if scope["type"] == "http" and not scope["state"].keys() & {"endless", "warmup"}:
                    service.metrics.count_route(scope["path"], time.perf_counter() - started)

        def dispatch(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
            if scope["type"] != "http":
                return timed(scope, receive, send)
            path = PATH.fullmatch(scope["path"])
            if path is not None:
                scope["path_params"] = path.groupdict()
                return hot_path(scope, receive, send)
            for route in protocols:
                names = route.match(scope["path"])
                if names is not None:
                    scope["path_params"] = names
                    return route(scope, receive, send)
            return timed(scope, receive, send)

        edge = Edge(
            dispatch,
            count_response=service.metrics.count_response,
            access_log=AccessLog(logs.renderer(settings.log_format)) if service.access_log else None,
            trusted_proxies=settings.trusted_proxy_count,
            origins=Origins(settings.cors_origins) if settings.cors_origins else None,
            limiters=self.limiters,
            keys=self.keys,
            bodies=Bodies(service.shared.bodies, settings.max_body_bytes),
        )
        return edge if service.tracing is None else service.tracing.wrap(edge)

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        async with AsyncExitStack() as closing:
            await self.service.open(closing)
            closing.push_async_callback(self.limiters.close)
            closing.push_async_callback(self.streams.end)
            yield

    def tick(self) -> None:
        """Called every second in a worker: publish metrics, and give memory back if the master has asked for it."""
        self.service.metrics.publish()
        self.service.drift.tick()
        self._trimmer.heed()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._aliases and scope["type"] == "http":
            is_reading = scope["method"] in ("GET", "HEAD")
            scope = {**scope, "path": self._aliases.get((is_reading, scope["path"]), scope["path"])}
        await self._stack(scope, receive, send)


def build(settings: Settings, alerts: Alerts) -> Application:
    """The app over all models that are there. Raises RegistryError, InvalidSetting, InvalidRedisUrl, CannotServe."""
    choose_scratch_directory(settings.data_dir)
    seen = fingerprint(settings.model_dir)  # before they are loaded: later changes count
    registry = load_models(settings)
    check_default(names_of(registry), settings.default_model, is_needed=bool(settings.aip_predict_route))
    service = build_service(settings, registry, build_shared(settings, alerts), seen)
    return Application(service, settings, build_limiters(settings), build_keys(settings))


def load_models(settings: Settings) -> Registry:
    """The models of a start: every version is tried first, and one that is not fit to serve is left out.

    `forkserve serve` also starts without any, with a page that says how to add one. Raises VersionRefused when there is
    no model otherwise, CannotServe naming each refused version when none can be loaded, or
    one cannot be with STRICT_MODELS.
    """
    root, selected = settings.model_dir, settings.serve_versions
    if settings.greeting and settings.pages and is_empty(root):
        log.warning("No model yet", directory=str(root))
        return Registry([], root=root)
    order = versions_to_load(root, selected)
    load: Load = functools.partial(load_version, root, options=settings.load_options)
    if can_try():
        load = try_first(load, seconds=settings.reload_timeout_seconds, order=order, read=read_manifest)
    if settings.model_fallback:
        load = functools.partial(_load_or_fall_back, load, settings.load_options)
    registry, refused = renew_registry(Registry([]), root, load, selected=selected)
    if refused and (settings.strict_models or not registry):
        raise CannotServe("\n".join(f"{root}/{reason}" for reason in refused))
    for reason in refused:
        log.error("Version left out", reason=reason)
    log.info(
        f"Model registry initialized with {len(registry)} models",
        versions=[f"{model.name}/{model.version}" for model in registry],
    )
    return registry


def _load_or_fall_back(load: Load, options: LoadOptions, directory: Path) -> LoadedModel:
    """The version kept in `directory`, or a minimal model. Raises VersionRefused if its manifest is damaged, too."""
    try:
        return load(directory)
    except VersionRefused as error:
        return fall_back(read_manifest(directory), error.reason, options)


def renew(app: Application, meanwhile: Callable[[], None] = nothing) -> tuple[Application, tuple[str, ...]]:
    """A new app over the model directory as it is now, and the versions that were refused, each with its reason.

    While a version is tried, `meanwhile` is called every second.
    """
    settings, service = app.settings, app.service
    seen = fingerprint(settings.model_dir)
    plain = functools.partial(load_version, settings.model_dir, options=settings.load_options)
    load = try_first(plain, seconds=settings.reload_timeout_seconds, read=read_manifest, meanwhile=meanwhile)
    registry, refused = renew_registry(service.registry, settings.model_dir, load, selected=settings.serve_versions)
    renewed = build_service(settings, registry, service.shared, seen)
    return Application(renewed, settings, app.limiters, app.keys), refused


def build_alerts(settings: Settings) -> Alerts:
    """Sends alerts, and calls elsewhere for all of a process; made once, for all reloads."""
    url = settings.alert_webhook_url
    return Alerts(Outbound(), url, form_of(url, settings.alert_form), name=f"forkserve on {socket.gethostname()}")


def start_logging(settings: Settings) -> Alerts:
    """Log as a service does, send alerts for what is logged, and warn of variables that may be misspelt settings."""
    alerts = build_alerts(settings)
    protect_output()
    logs.configure(settings.log_level, settings.log_format, watch=alerts.watch)
    warn_of_misspelt(os.environ)
    return alerts


def build_shared(settings: Settings, alerts: Alerts) -> Shared:
    """Everything that outlives reloads; it needs no models. Raises InvalidRedisUrl, CannotServe."""
    # twice as many processes: at a reload the old ones drain beside the new
    book = Book(2 * (settings.web_concurrency + settings.job_runners + 1))
    predictions = build_prediction_store(settings)
    policy = LogPolicy.parse(settings.log_predictions, settings.log_predictions_keep, settings.log_predictions_redact)
    return Shared(
        reloads=Reloads(),
        book=book,
        streams=book.holdings(),
        bodies=book.holdings(),
        unsent=book.holdings(),
        pressure=Pressure(),
        alerts=alerts,
        jobs=build_job_store(settings),
        events=build_event_log(settings),
        entities=build_entity_store(settings),
        predictions=predictions,
        recorder=Recorder(PredictionLog(policy, book), predictions) if policy.share else None,
    )


def make_protocols(service: Service, readers: Mapping[LoadedModel, Reader]) -> list[Protocol]:
    """The protocols beside our own in which predictions are asked for."""
    registry, most, default = service.registry, service.limits.max_instances, service.default_model
    others = [kind(registry, readers, most, default) for kind in (MLflow, AzureML)]
    return [V2(registry, readers, most), *others]


def build_service(settings: Settings, registry: Registry, shared: Shared, seen: Fingerprint) -> Service:
    """All parts over the models of a directory that was `seen` so. Raises InvalidSetting, InvalidRedisUrl."""
    metrics = Metrics(shared.book)
    cache = build_answer_cache(settings)
    batcher = build_batcher(settings)
    executor, tables = build_executor(settings, registry)
    canaries = Canaries(registry, shared.book, settings.model_dir, build_batcher(settings))
    timeout, apart = settings.inference_timeout_seconds, canaries.batchers()
    inference = Inference(registry, batcher=batcher, executor=executor, cache=cache, timeout=timeout, apart=apart)
    records = RecordReader(shared.entities, settings.max_limit_checkins)
    drift = Drift(registry, parse_windows(settings.drift_window), settings.drift_alert, shared.book, shared.alerts)
    shadows = build_shadows(settings, registry, shared, batcher)
    observers = build_observers(shared, registry, drift, shadows)
    predictor = EntityPredictor(registry, inference, records, metrics, status_of, canaries, observers)
    quality = LiveQuality(registry, shared.entities, tolerance=settings.quality_tolerance, alert=shared.alerts.alert)
    service = Service(
        shared=shared,
        registry=registry,
        model_dir=settings.model_dir,
        metrics=metrics,
        cache=cache,
        batcher=batcher,
        canaries=canaries,
        shadows=shadows,
        observers=observers,
        executor=executor,
        inference=inference,
        job_reader=build_job_reader(settings, registry, tables),
        tables=tables,
        background=Background(shared.jobs, chunk_rows=settings.shap_max_batch_size)
        if settings.use_background_inference
        else None,
        runner=build_runner(settings, shared, registry, metrics, seen),
        scheduler=build_scheduler(settings, shared),
        hub=Hub(
            shared.events,
            held=shared.streams,
            max_streams=settings.max_streams,
            max_streams_per_address=settings.max_streams_per_address,
            max_streams_per_key=settings.max_streams_per_key,
        ),
        predictor=predictor,
        notifier=EntityNotifier(predictor, shared.events, lambda error, request_id: render(error, request_id)[2]),
        outcome_reader=OutcomeReader(registry, inference, max_instances=settings.max_instances),
        erasure=build_erasure(shared),
        drift=drift,
        outcome_writer=OutcomeWriter(shared.entities, stored=quality.wake),
        quality=quality,
        trainings=last_trainings(settings.model_dir, [model.name for model in registry.live()]),
        tracing=build_tracing(settings),
        limits=limits_of(settings),
        default_model=settings.default_model,
        access_log=settings.access_log and LEVELS[settings.log_level] <= LEVELS["info"],
        show_examples=settings.show_examples,
        show_timing=settings.show_timing,
    )
    service.prepare()
    return service


def build_erasure(shared: Shared) -> Erasure:
    """Deletes what the stores keep of somebody, and what a recorder is about to store."""

    async def settle() -> None:
        if shared.recorder is not None:
            await shared.recorder.settle()

    return Erasure(shared.predictions, shared.entities, shared.events, shared.jobs, settle)


def build_observers(shared: Shared, registry: Registry, drift: Drift, shadows: Shadows) -> tuple[Observer, ...]:
    """The parts that observe every answer."""
    observers: list[Observer] = [drift] if drift.windows else []
    if shadows:
        observers.append(shadows)
    if shared.recorder is not None:
        observers.append(PredictionLogger(shared.recorder.log, registry))
    return tuple(observers)


def build_shadows(settings: Settings, registry: Registry, shared: Shared, batcher: Batcher) -> Shadows:
    """The versions that predict beside the live ones while no request waits for a thread."""
    return Shadows(registry, shared.book, memory=settings.executor_memory_bytes, is_busy=batcher.has_waiting)


def build_batcher(settings: Settings) -> Batcher:
    """The inference threads of a worker."""
    return Batcher(threads=settings.inference_threads, queue_seconds=settings.queue_seconds)


def limits_of(settings: Settings) -> Limits:
    """The limits of one request."""
    return Limits(
        max_body_bytes=settings.max_body_bytes,
        max_csv_bytes=settings.job_max_body_bytes,
        max_instances=settings.max_instances,
        max_explained_instances=settings.shap_max_batch_size,
    )


def build_executor(settings: Settings, registry: Registry) -> tuple[Executor, Tables | None]:
    """Processes for what must not run in a worker: explainers that hold the GIL, and the reading of tables."""
    isolated = {one.name: one.answer_call for one in make_operations(registry) if one.is_isolated}
    takes_tables = has_arrow()
    executor = Executor(
        isolated,
        tools=TableTools(registry).tools() if takes_tables else None,
        processes=settings.executor_processes,
        memory=settings.executor_memory_bytes,
    )
    return executor, Tables(executor) if takes_tables else None


def build_job_reader(settings: Settings, registry: Registry, tables: Tables | None) -> JobReader:
    """Makes jobs of what clients send."""
    return JobReader(
        registry,
        max_rows=settings.job_max_rows,
        chunk_rows=settings.shap_max_batch_size,
        max_bytes=queue_limits(settings).of_account()[1],
        max_result_bytes=settings.job_keep_bytes,
        tables=tables,
    )


def build_keys(settings: Settings) -> Keys:
    """All keys that requests may be sent with. Raises InvalidSetting if API_KEYS_FILE cannot be used."""
    keys = list(parse_entries(settings.api_keys)) if settings.api_keys else []
    if settings.api_key:
        keys.append(Key("default", digest_of(settings.api_key), ANY - ADMIN))
    if settings.admin_token:
        keys.append(Key("admin", digest_of(settings.admin_token), ADMIN))
    file = Path(settings.api_keys_file) if settings.api_keys_file else None
    return Keys(keys, file, is_open=not settings.has_keys, admin_in_query=settings.admin_token_in_query)


def build_limiters(settings: Settings) -> Limiters:
    """Count requests by client, to be built before the fork. Raises InvalidRedisUrl."""

    def build_limiter(table: RateTable) -> Limiter:
        return Limiter(table, settings.redis_url, health_check_interval=settings.redis_health_check_interval)

    rate = parse_rate(settings.rate_limit, settings.rate_limit_burst) if settings.rate_limit else None
    return Limiters(
        of_addresses=build_limiter(RateTable(rate)) if rate else None,
        # each key has a rate of its own
        of_keys=build_limiter(RateTable(Rate(1, 1.0, 1), buckets=KEY_BUCKETS)) if settings.has_keys else None,
    )


def build_tracing(settings: Settings) -> Tracing | None:
    """Sends traces to a collector; None without one. Raises InvalidSetting without the extra `otel`."""
    if not settings.otel_exporter_otlp_endpoint:
        return None
    try:
        # before the fork, so that the workers share its libraries
        from serving.telemetry.tracing import Tracing

        return Tracing(settings.otel_exporter_otlp_endpoint, settings.otel_service_name)
    except ImportError:
        raise InvalidSetting("OTEL_EXPORTER_OTLP_ENDPOINT needs `pip install forkserve[otel]`") from None


def build_runner(settings: Settings, shared: Shared, registry: Registry, metrics: Metrics, seen: Fingerprint) -> Runner:
    """Works on all jobs. Raises InvalidSetting."""
    functions = {operation.name: operation.answer_call for operation in make_operations(registry)}
    functions |= replay_functions(registry, shared.predictions)
    executor = Executor(functions, memory=settings.job_memory_bytes, background=True)
    backend = build_backend(settings, executor)
    handlers: dict[str, Handler] = {
        **dict.fromkeys(OPERATIONS, RowHandler(registry, backend, timeout=settings.job_timeout_seconds)),
        REPLAY: ReplayHandler(registry, executor, timeout=settings.job_timeout_seconds),
        POLL: Poller(parse_feeds(settings.feeds), shared.alerts.outbound, shared.entities),
        RELOAD: build_reload_handler(
            shared, lambda: bool(registry.refusals) or fingerprint(settings.model_dir) != seen
        ),
    }
    return build_trainer(settings, shared, metrics, handlers, (executor,), backend)


def build_trainer(
    settings: Settings,
    shared: Shared,
    metrics: Metrics,
    handlers: Mapping[str, Handler] | None = None,
    executors: tuple[Executor, ...] = (),
    backend: Backend | None = None,
) -> Runner:
    """Works on jobs that train models, and on those of further `handlers`, which need `executors` and `backend`."""
    steps = Steps(
        settings.model_dir,
        shared.entities,
        settings.max_outcomes_per_model,
        tolerance=settings.train_tolerance,
        agreement=settings.train_min_agreement,
        log=shared.predictions,
        options=settings.load_options,
        seconds=settings.reload_timeout_seconds,
    )
    trainer = Executor(steps.functions(), memory=settings.train_memory_bytes, background=True, reuse=False)
    handler = TrainHandler(
        settings.model_dir,
        trainer,
        shared.events,
        timeout=settings.train_timeout_seconds,
        judging=2 * settings.reload_timeout_seconds,  # the trial, and as long for the comparison
    )
    return Runner(
        shared.jobs,
        shared.events,
        {**(handlers or {}), TRAIN: handler},
        (*executors, trainer),
        build_job_limits(settings),
        metrics=metrics,
        backend=backend,
        tracing=build_tracing(settings),
    )


def build_backend(settings: Settings, executor: Executor) -> Backend:
    """Computes the rows of jobs, in the executor or also in a Dask cluster. Raises InvalidSetting."""
    local = LocalBackend(executor)
    if not settings.dask_scheduler:
        return local
    try:
        # in the master, so that the 16 MB that this takes are shared
        from serving.jobs.cluster import Cluster, pack_version
    except ModuleNotFoundError as error:
        raise InvalidSetting(f"DASK_SCHEDULER needs `pip install forkserve[dask]`: {error}") from error
    pack = functools.partial(pack_version, settings.model_dir, options=settings.load_options)
    # its lines would have a format of their own
    logging.getLogger("distributed").handlers = [logs.handler_of(settings.log_format)]
    return Cluster(settings.dask_scheduler, local, pack, at_once=settings.dask_chunks)


def build_trainer_alone(settings: Settings) -> tuple[JobStore, Runner]:
    """Trains models and does nothing else, without loading any. Raises InvalidRedisUrl, CannotServe."""
    shared = build_shared(settings, build_alerts(settings))
    return shared.jobs, build_trainer(settings, shared, Metrics(shared.book))


def build_replayer(settings: Settings, registry: Registry) -> tuple[Shared, Runner]:
    """Replays logged predictions on the versions of `registry`, and does nothing else. Raises CannotServe."""
    shared = build_shared(settings, build_alerts(settings))
    functions = replay_functions(registry, shared.predictions)
    executor = Executor(functions, memory=settings.job_memory_bytes, background=True)
    handler = ReplayHandler(registry, executor, timeout=settings.job_timeout_seconds)
    limits = build_job_limits(settings)
    metrics = Metrics(shared.book)
    return shared, Runner(shared.jobs, shared.events, {REPLAY: handler}, (executor,), limits, metrics=metrics)


def build_job_limits(settings: Settings) -> JobLimits:
    """How long a runner holds a job, and what is kept of finished ones."""
    return JobLimits(settings.job_lease_seconds, settings.job_keep_seconds, settings.job_keep, settings.job_keep_bytes)


def build_reload_handler(shared: Shared, is_needed: Callable[[], bool]) -> Handler:
    """Works on jobs that have the models reloaded, if something has changed: a reload replaces all workers."""

    async def reload(_job: Job, _chunk: int, _data: bytes, _report: Report) -> bytes:
        if not is_needed():
            log.info("Reload not needed")
            return b"{}"
        try:
            shared.reloads.request()  # not waited for: the reload replaces this runner
        except CannotReload as error:
            raise AttemptFailed(str(error)) from None  # a runner below a master may take the job
        return b"{}"

    return reload


def build_scheduler(settings: Settings, shared: Shared) -> Scheduler:
    """Fires and shows schedules. Raises InvalidSetting."""
    old = functools.partial(take_over, directory=settings.data_dir, redis_url=settings.redis_url)
    return Scheduler(read_schedules(settings), shared.jobs, take_over=old)


def read_schedules(settings: Settings) -> tuple[Schedule, ...]:
    """The entries of SCHEDULES. Raises InvalidSetting naming the first invalid one."""
    return parse_schedules(settings.schedules, schedule_actions(settings), grace=settings.schedule_grace_seconds)


def schedule_actions(settings: Settings) -> Mapping[str, Action]:
    """The actions of schedules by name; each makes a job from the words after its name."""

    def reload() -> JobRequest:
        return JobRequest(operation=RELOAD, inputs=[b""])

    def train(model: str) -> JobRequest:
        return training_request(live_manifest(find_model(settings.model_dir, model)))

    feeds = tuple(feed.name for feed in parse_feeds(settings.feeds))
    return {"reload": Action(reload), "train": Action(train), "poll": Action(poll_request, known=feeds)}
