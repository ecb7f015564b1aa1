"""The settings: one frozen value, parsed once from the environment, refused at start naming the variable."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from registry.store.options import LoadOptions
from serving.errors import InvalidSetting
from serving.http.cors import is_origin
from serving.shared.rate_table import parse_rate

TRUE, FALSE = frozenset({"true", "1", "yes", "on"}), frozenset({"false", "0", "no", "off", ""})
ROLES = frozenset({"web", "worker", "scheduler"})


def setting(
    default: Any, meaning: str, *, low: float | None = None, high: float | None = None, secret: bool = False
) -> Any:
    """A field of Settings. `low` and `high` are the values that are just allowed; a secret stays out of `repr`."""
    metadata = {"meaning": meaning, "low": low, "high": high}
    return dataclasses.field(default=default, repr=not secret, metadata=metadata)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One field per variable: MAX_REQUESTS sets `max_requests`. Times are in seconds, sizes in bytes."""

    host: str = setting("127.0.0.1", "address to listen on; `0.0.0.0` for all")
    port: int = setting(8000, "port to listen on", low=0, high=65535)
    web_concurrency: int = setting(2, "web workers", low=1)
    timeout_seconds: float = setting(120, "a worker that is silent for longer is killed", low=1)
    graceful_timeout_seconds: float = setting(30, "a worker that ends has this long to finish its requests", low=1)
    keepalive_seconds: float = setting(65, "an idle connection is kept this long; more than the proxy's", low=1)
    max_requests: int = setting(1000, "requests after which a worker is replaced; 0 for never", low=0)
    max_requests_jitter: int = setting(50, "up to so many requests more, so that workers do not end together", low=0)
    preload: bool = setting(True, "load the models once, before the fork; false only to compare")
    preload_modules: tuple[str, ...] = setting((), "modules to import before the fork besides our own, with commas")
    read_timeout_seconds: float = setting(20, "a request that does not arrive within this is answered 408", low=0.1)
    max_body_bytes: int = setting(4 * 1024 * 1024, "a larger body is answered 413", low=1)
    max_instances: int = setting(1000, "more instances in one request are answered 413", low=1)
    trusted_proxy_count: int = setting(0, "proxies in front that add the client's address to `X-Forwarded-For`", low=0)
    rate_limit: str = setting("", "requests of one client address, as in `600/minute`; empty for any number")
    rate_limit_burst: int = setting(0, "of these, how many at once; 0 for all", low=0)
    cors_origins: tuple[str, ...] = setting((), "origins whose pages may call, as `https://app.example`, with commas")
    inference_timeout_seconds: float = setting(30, "a prediction that takes longer is answered 504", low=0.01)
    use_background_inference: bool = setting(False, "what takes longer goes on as a job, answered 202")
    inference_threads: int = setting(2, "threads of each worker that run models", low=1)
    queue_seconds: float = setting(0.1, "a request that would wait longer for a thread is answered 503", low=0)
    shap_max_batch_size: int = setting(500, "more instances in one request for explanations are answered 413", low=1)
    shap_max_evals: int = setting(500, "coalitions of features asked of a model that only sampling explains", low=1)
    executor_processes: int = setting(1, "processes of each worker for explanations that no thread may run", low=1)
    executor_memory_bytes: int = setting(256 * 1024 * 1024, "what each of them may allocate", low=1)
    cache_max_items: int = setting(10_000, "predictions that each worker keeps in memory; 0 for none", low=0)
    cache_max_bytes: int = setting(10 * 1024 * 1024, "what they may take, overhead included", low=0)
    cache_ttl_seconds: float = setting(300, "how long a prediction is kept, in memory and in Redis", low=0.001)
    redis_url: str = setting(
        "",
        "shared cache, jobs, events and schedules, `redis://` or `rediss://`; empty for this box alone",
        secret=True,
    )
    redis_health_check_interval: float = setting(30, "a connection idle for longer is checked before use", low=0)
    data_dir: Path = setting(
        Path("data"),
        "directory of jobs, events and schedules without `REDIS_URL`, of records and outcomes without `SUPABASE_URL`",
    )
    supabase_url: str = setting("", "where records and outcomes are kept; empty for a file below `DATA_DIR`")
    supabase_service_key: str = setting("", "the service role's key for it", secret=True)
    supabase_service_role_key: str = setting("", "the same, by the other name that it goes by", secret=True)
    max_limit_checkins: int = setting(10, "records of an entity that are predicted at once, the newest", low=1)
    max_records_per_entity: int = setting(1000, "records that are kept of each entity, the newest", low=1)
    max_records: int = setting(1_000_000, "records that the file keeps in all, the last that came", low=1)
    max_outcomes_per_model: int = setting(100_000, "outcomes that are kept of each model, the last", low=1)
    max_streams: int = setting(1000, "event streams that each worker may have open; more are answered 503", low=1)
    max_streams_per_address: int = setting(50, "of these, from one client address; 0 for any number", low=0)
    stream_heartbeat_seconds: float = setting(15, "a stream that is silent for so long says that it lives", low=0.1)
    feeds: str = setting("", "feeds of records as a JSON array; see GUIDE.md", secret=True)
    roles: tuple[str, ...] = setting(
        ("web", "worker", "scheduler"), "what this service runs: `web`, `worker`, `scheduler`"
    )
    job_runners: int = setting(1, "processes that run jobs", low=1)
    job_max_queued: int = setting(100, "when so many jobs wait, the next is answered 429", low=1)
    job_max_rows: int = setting(100_000, "more rows in one job are answered 413", low=1)
    job_max_body_bytes: int = setting(64 * 1024 * 1024, "a larger CSV for a job is answered 413", low=1)
    job_lease_seconds: float = setting(30, "a job whose runner is silent for longer is given to another", low=0.5)
    job_timeout_seconds: float = setting(120, "a call of a job to its model is killed after this", low=0.01)
    job_memory_bytes: int = setting(512 * 1024 * 1024, "what such a call may allocate", low=1)
    job_keep_seconds: float = setting(86_400, "finished jobs and events are kept this long", low=1)
    job_keep: int = setting(1000, "so many finished jobs are kept", low=0)
    schedules: str = setting("", "what is done when, `name: 0 3 * * *: action`, with semicolons; see GUIDE.md")
    schedule_grace_seconds: float = setting(
        60, "a firing that comes later is not done, where its schedule does not say", low=1, high=604_800
    )
    dask_scheduler: str = setting("", "a Dask cluster that computes jobs, `tcp://` or `tls://`; empty for none")
    dask_chunks: int = setting(8, "chunks of a job that are sent there at once, by each runner", low=1)
    train_timeout_seconds: float = setting(3600, "a training that takes longer is killed", low=0.01)
    train_memory_bytes: int = setting(1024 * 1024 * 1024, "what a training may allocate", low=1)
    train_tolerance: float = setting(
        0.02, "how much worse a retrained version may be: a score by so much, an error by that share", low=0
    )
    model_dir: Path = setting(Path("models"), "directory of the models, `{name}/{version}/`")
    compile: bool = setting(True, "answer with compiled models where they are bit-identical; false only to compare")
    serve_versions: Literal["all", "live"] = setting("all", "versions to load: `all`, or `live` and previous ones only")
    watch_models: bool = setting(True, "reload when a version is added, promoted, rolled back or removed")
    reload_timeout_seconds: float = setting(60, "a version that takes longer to load at a reload is refused", low=1)
    model_fallback: bool = setting(False, "let a minimal model stand in for one that does not load")
    max_memory_mb: int = setting(0, "MB that all processes together may use; 0: what the cgroup allows", low=0)
    max_worker_memory_mb: int = setting(0, "MB that one may have for itself; 0: an equal share of what is left", low=0)
    admin_token: str = setting(
        "", "opens `/api/admin/` and `/metrics`, 16 characters or more; empty keeps them closed", secret=True
    )
    admin_token_in_query: bool = setting(False, "take it from `?admin_token=`, too; proxies may log that")
    alert_webhook_url: str = setting("", "webhook that is told what somebody has to know at once", secret=True)
    alert_form: Literal["auto", "discord", "slack"] = setting(
        "auto", "what it takes: `discord`, `slack`; `auto` goes by its address"
    )
    log_level: str = setting("info", "`debug`, `info`, `warning` or `error`")
    access_log: bool = setting(True, "log a line for every request and prediction")
    otel_exporter_otlp_endpoint: str = setting("", "OpenTelemetry collector, `http://host:4318`; empty for no traces")
    otel_service_name: str = setting("forkserve", "what traces call this service")
    greeting: bool = setting(False, "print the address and a curl line when ready; `forkserve serve` sets it")

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Settings:
        """Parse the variables that are there. Raises InvalidSetting."""
        types = typing.get_type_hints(cls)
        given = {
            field.name: _parse(field, types[field.name], environ[field.name.upper()])
            for field in dataclasses.fields(cls)
            if field.name.upper() in environ
        }
        settings = cls(**given)
        if settings.serve_versions not in ("all", "live"):
            raise InvalidSetting("SERVE_VERSIONS must be all or live")
        if settings.log_level not in ("debug", "info", "warning", "error"):
            raise InvalidSetting("LOG_LEVEL must be debug, info, warning or error")
        if settings.supabase_url and not settings.supabase_url.startswith(("https://", "http://")):
            raise InvalidSetting("SUPABASE_URL must begin with https:// or http://")
        if settings.supabase_url and not settings.supabase_key:
            raise InvalidSetting("SUPABASE_SERVICE_KEY or SUPABASE_SERVICE_ROLE_KEY must be set beside SUPABASE_URL")
        if not settings.roles or not ROLES.issuperset(settings.roles):
            raise InvalidSetting("ROLES must be some of web, worker, scheduler, with commas")
        if settings.dask_scheduler and not settings.dask_scheduler.startswith(("tcp://", "tls://")):
            raise InvalidSetting("DASK_SCHEDULER must begin with tcp:// or tls://")
        if settings.admin_token and (len(settings.admin_token) < 16 or not settings.admin_token.isprintable()):
            raise InvalidSetting("ADMIN_TOKEN must have at least 16 characters, all of them printable")
        if settings.alert_form not in ("auto", "discord", "slack"):
            raise InvalidSetting("ALERT_FORM must be auto, discord or slack")
        if settings.alert_webhook_url and not settings.alert_webhook_url.startswith(("http://", "https://")):
            raise InvalidSetting("ALERT_WEBHOOK_URL must begin with http:// or https://")
        _check_edge(settings)
        return settings

    @property
    def load_options(self) -> LoadOptions:
        """How versions are loaded wherever they are loaded."""
        return LoadOptions(compiled=self.compile, shap_evaluations=self.shap_max_evals)

    @property
    def supabase_key(self) -> str:
        """The service role's key, by whichever name it was given."""
        return self.supabase_service_key or self.supabase_service_role_key


def _check_edge(settings: Settings) -> None:
    if settings.rate_limit:
        try:
            parse_rate(settings.rate_limit, settings.rate_limit_burst)
        except ValueError as error:
            raise InvalidSetting(f"RATE_LIMIT {error}") from None
    if settings.feeds:
        from serving.entities.feeds import parse_feeds  # here: it imports what fetches them

        try:
            parse_feeds(settings.feeds)
        except ValueError as error:
            raise InvalidSetting(f"FEEDS {error}") from None
    if not all(map(is_origin, settings.cors_origins)):
        raise InvalidSetting("CORS_ORIGINS must be origins such as https://app.example, with commas")


def _parse(field: dataclasses.Field[Any], kind: Any, text: str) -> Any:
    name, text = field.name.upper(), text.strip()
    if kind is bool:
        if text.lower() not in TRUE | FALSE:
            raise InvalidSetting(f"{name} must be true or false")
        return text.lower() in TRUE
    if kind == tuple[str, ...]:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if kind is Path and not text:
        raise InvalidSetting(f"{name} must name a directory")
    if kind is Path:
        return Path(text)
    if kind not in (int, float):
        return text
    try:
        number = kind(text)
    except ValueError:
        raise InvalidSetting(f"{name} must be a {'whole ' if kind is int else ''}number") from None
    low, high = field.metadata["low"], field.metadata["high"]
    # written so that NaN is refused too
    if not low <= number < float("inf"):
        raise InvalidSetting(f"{name} must be at least {low:g}")
    if high is not None and number > high:
        raise InvalidSetting(f"{name} must be at most {high:g}")
    return number
