"""The app, from the models that are there and the parts that the settings ask for."""

from __future__ import annotations

import functools
import importlib.metadata
import socket
from typing import TYPE_CHECKING

from assembly.data import build_data
from assembly.jobs import build_jobs
from assembly.schedules import schedules_of
from cache.building import build_cache
from registry.registry import Registry, load_registry
from registry.store.loader import load_version
from registry.store.reload import renew_registry
from serving.app import Application, create_app
from serving.errors import InvalidSetting
from serving.events.building import build_event_log
from serving.events.hub import Hub
from serving.http.admission import Admission
from serving.http.clients import Clients
from serving.http.cors import Origins
from serving.http.rate_limit import Limiter, RedisLimiter
from serving.http.sse import Streams
from serving.master.announcements import Announcements
from serving.master.reload import loading_carefully
from serving.parts import Options, Parts
from serving.predict.batcher import Batcher
from serving.predict.inference import Inference, isolated_functions, make_operations
from serving.process.executor import Executor
from serving.settings import Settings
from serving.shared.book import Book
from serving.shared.metrics import Metrics
from serving.shared.pressure import Pressure
from serving.shared.rate_table import SharedTable, parse_rate
from serving.shared.reloads import Reloads
from serving.shared.state import Lasting
from serving.storage.http import Outbound
from serving.telemetry.alerts import Alerts, form_of

if TYPE_CHECKING:
    from serving.telemetry.tracing import Tracing


def build(settings: Settings, alerts: Alerts) -> Application:
    """The parts, put together; nothing is started. Raises RegistryError, InvalidSetting, InvalidRedisUrl."""
    reloads = Reloads()  # first: what others tell from now on may be missed by what is loaded
    registry = load_registry(
        settings.model_dir,
        settings.load_options,
        selected=settings.serve_versions,
        fallback=settings.model_fallback,
    )
    # twice as many processes: at a reload the old ones drain beside the new
    book = Book(2 * (settings.web_concurrency + settings.job_runners + 1))
    return assemble(settings, registry, Lasting(reloads, book, Pressure(), alerts))


def renew(settings: Settings, old: Registry, lasting: Lasting) -> tuple[Application, tuple[str, ...]]:
    """The parts anew over what is in the model directory now, in the master; and what could not be taken over."""
    load = functools.partial(load_version, settings.model_dir, options=settings.load_options)
    carefully = loading_carefully(load, settings.reload_timeout_seconds)
    renewal = renew_registry(old, settings.model_dir, carefully, selected=settings.serve_versions)
    return assemble(settings, renewal.registry, lasting), renewal.refused


def assemble(settings: Settings, registry: Registry, lasting: Lasting) -> Application:
    """The app over these models. Raises InvalidSetting, InvalidRedisUrl."""
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
    parts = Parts(
        registry=registry,
        inference=inference,
        cache=cache,
        batcher=batcher,
        executor=executor,
        jobs=jobs,
        data=build_data(settings, registry, inference, jobs.events, metrics),
        schedules=schedules_of(settings, lasting.reloads, lasting.alerts.outbound),
        streams=Streams(hub, heartbeat_seconds=settings.stream_heartbeat_seconds),
        metrics=metrics,
        lasting=lasting,
        tracing=build_tracing(settings),
        admission=build_admission(settings),
        announcements=build_announcements(settings, lasting.reloads),
    )
    return create_app(parts, options_of(settings), lambda: renew(settings, registry, lasting))


def options_of(settings: Settings) -> Options:
    """What the app itself is to know."""
    return Options(
        version=importlib.metadata.version("forkserve"),
        model_dir=settings.model_dir,
        max_body_bytes=settings.max_body_bytes,
        max_instances=settings.max_instances,
        max_explained_instances=settings.shap_max_batch_size,
        admin_token=settings.admin_token,
        admin_token_in_query=settings.admin_token_in_query,
        access_log=settings.access_log,
        background=settings.use_background_inference,
    )


def build_alerts(settings: Settings) -> Alerts:
    """What tells people, and calls elsewhere for all of a process; to be made once, for all reloads."""
    url = settings.alert_webhook_url
    return Alerts(Outbound(), url, form_of(url, settings.alert_form), name=f"forkserve on {socket.gethostname()}")


def build_admission(settings: Settings) -> Admission | None:
    """What looks at every request before the app does; None if no setting asks for it. Raises InvalidRedisUrl."""
    if not (settings.trusted_proxy_count or settings.rate_limit or settings.cors_origins):
        return None
    limiter = build_limiter(settings) if settings.rate_limit else None
    origins = Origins(settings.cors_origins) if settings.cors_origins else None
    return Admission(Clients(settings.trusted_proxy_count), limiter, origins)


def build_limiter(settings: Settings) -> Limiter:
    """Count requests in the memory of this box, and in Redis if there is one. Raises InvalidRedisUrl."""
    table = SharedTable(parse_rate(settings.rate_limit, settings.rate_limit_burst))
    if not settings.redis_url:
        return table
    return RedisLimiter(settings.redis_url, table, health_check_interval=settings.redis_health_check_interval)


def build_announcements(settings: Settings, reloads: Reloads) -> Announcements | None:
    """What instances tell each other, if they share a Redis. Raises InvalidRedisUrl."""
    if not settings.redis_url:
        return None
    return Announcements(build_event_log(settings.data_dir, settings.redis_url), reloads)


def build_tracing(settings: Settings) -> Tracing | None:
    """Traces, where there is somebody to send them to. Raises InvalidSetting without the extra `otel`."""
    if not settings.otel_exporter_otlp_endpoint:
        return None
    from serving.telemetry.tracing import Tracing

    try:
        return Tracing(settings.otel_exporter_otlp_endpoint, settings.otel_service_name)
    except ImportError:
        raise InvalidSetting("OTEL_EXPORTER_OTLP_ENDPOINT needs `pip install forkserve[otel]`") from None
