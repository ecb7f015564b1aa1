"""The settings: one frozen value, parsed once from the environment; an invalid variable is refused by name."""

from __future__ import annotations

import dataclasses
import difflib
import ipaddress
import typing
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import structlog

from registry.store.options import LoadOptions
from serving.errors import InvalidSetting
from serving.monitoring.predictions.policy import LogPolicy
from serving.shared.rate_table import parse_rate

TRUE, FALSE = frozenset({"true", "1", "yes", "on"}), frozenset({"false", "0", "no", "off", ""})
ROLES = frozenset({"web", "worker", "scheduler"})

HTTP_SCHEMES = ("http://", "https://")
MIN_TOKEN_CHARACTERS, MAX_TOKEN_CHARACTERS = 16, 256

SIMILAR = 0.86
"""The share of characters that a misspelt name has in common with the right one: two letters of twelve may be wrong."""

MIN_NAME_CHARACTERS = 8
"""Shorter names, such as PORT or COMPILE, are too likely to resemble a variable of somebody else."""

ALL_INTERFACES = "0.0.0.0"  # noqa: S104 - only in containers, which cannot be reached otherwise

FOREIGN = ("OTEL_", "DASK_")
"""Prefixes of variables that other programs read as well."""

log = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Platform:
    """One platform. A process runs on it if any of its `marks` is set, and listens on all interfaces then."""

    name: str
    marks: tuple[str, ...]
    """Variables that it sets and others do not."""
    port_variable: str = "PORT"
    default_port: str = "8080"
    is_private: bool = True
    """Whether only the platform itself reaches the server, and has checked before who asks."""

    def port(self, environ: Mapping[str, str]) -> str:
        """The port to listen on."""
        return environ.get(self.port_variable, "").strip() or self.default_port


PLATFORMS = (
    Platform("Vertex AI", ("AIP_HTTP_PORT", "AIP_PREDICT_ROUTE", "AIP_HEALTH_ROUTE"), "AIP_HTTP_PORT"),
    Platform("SageMaker", ("SAGEMAKER_BIND_TO_PORT", "SAGEMAKER_CONTAINER_LOG_LEVEL"), "SAGEMAKER_BIND_TO_PORT"),
    Platform("Azure ML", ("AZUREML_MODEL_DIR",), default_port="5001"),
    # anybody may reach it, if it is configured so
    Platform("Cloud Run or Knative", ("K_SERVICE",), is_private=False),
)


def find_platform(environ: Mapping[str, str]) -> Platform | None:
    """The platform that this process runs on, if it is one of PLATFORMS."""
    return next((one for one in PLATFORMS if any(environ.get(mark) for mark in one.marks)), None)


def setting(
    default: Any,
    meaning: str,
    *,
    low: float | None = None,
    high: float | None = None,
    secret: bool = False,
    schemes: tuple[str, ...] = (),
) -> Any:
    """A field of Settings. `low` and `high` are the smallest and largest values, `schemes` the beginnings of a URL.

    A secret stays out of `repr`.
    """
    metadata = {"meaning": meaning, "low": low, "high": high, "schemes": schemes}
    return dataclasses.field(default=default, repr=not secret, metadata=metadata)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One field per variable: MAX_REQUESTS sets `max_requests`. Times are in seconds, sizes in bytes."""

    host: str = setting("127.0.0.1", "address to listen on; `0.0.0.0` for all interfaces")
    port: int = setting(8000, "port to listen on", low=0, high=65535)
    web_concurrency: int = setting(2, "number of web workers", low=1)
    timeout_seconds: float = setting(120, "seconds without a heartbeat after which a worker is killed", low=1)
    graceful_timeout_seconds: float = setting(30, "seconds a stopping worker has to finish its requests", low=1)
    keepalive_seconds: float = setting(65, "seconds to keep an idle connection open; more than the proxy does", low=1)
    max_requests: int = setting(1000, "requests after which a worker is replaced; 0 for never", low=0)
    max_requests_jitter: int = setting(50, "largest random addition to it, so that workers end one by one", low=0)
    min_worker_seconds: float = setting(
        30, "age below which no worker is replaced for its requests: that is against leaks, which take time", low=0
    )
    preload: bool = setting(True, "load the models once, before the fork; `false` only for comparison")
    preload_modules: tuple[str, ...] = setting((), "further modules to import before the fork, separated by commas")
    read_timeout_seconds: float = setting(20, "seconds a request may take to arrive; a slower one gets 408", low=0.1)
    max_body_bytes: int = setting(4 * 1024 * 1024, "largest request body; a larger one gets 413", low=1)
    max_instances: int = setting(1000, "instances in one request; more get 413", low=1)
    trusted_proxy_count: int = setting(
        0, "proxies in front that append the client's address to `X-Forwarded-For`", low=0
    )
    rate_limit: str = setting("", "requests allowed per client address, such as `600/minute`; empty for no limit")
    rate_limit_burst: int = setting(0, "how many of them may come at once; 0 for all", low=0)
    cors_origins: tuple[str, ...] = setting(
        (), "origins whose pages may call, such as `https://app.example`, separated by commas"
    )
    show_examples: bool = setting(True, "show an example of each model's input, made of medians and commonest values")
    show_timing: bool = setting(
        True, "answer with `X-Cache` and `Server-Timing`, which tell whether somebody has asked the same"
    )
    inference_timeout_seconds: float = setting(30, "seconds a prediction may take; a slower one gets 504", low=0.01)
    use_background_inference: bool = setting(False, "turn a request that takes longer into a job and answer 202")
    inference_threads: int = setting(2, "threads per worker that run models", low=1)
    queue_seconds: float = setting(
        0.1,
        "seconds to wait for a thread, in proportion above 5 ms a row; a longer wait gets 503",
        low=0,
    )
    shap_max_batch_size: int = setting(500, "instances in one request for explanations; more get 413", low=1)
    shap_max_evals: int = setting(500, "coalitions of features to evaluate per explanation by sampling", low=1)
    executor_processes: int = setting(1, "processes per worker for explanations that must not run in a thread", low=1)
    executor_memory_bytes: int = setting(256 * 1024 * 1024, "memory that each of them may allocate", low=1)
    cache_max_items: int = setting(10_000, "predictions that each worker caches in memory; 0 for none", low=0)
    cache_max_bytes: int = setting(10 * 1024 * 1024, "memory that they may take, overhead included", low=0)
    cache_ttl_seconds: float = setting(300, "seconds a prediction stays cached, in memory and in Redis", low=0.001)
    redis_url: str = setting(
        "",
        "Redis for cache, jobs, events and schedules, `redis://` or `rediss://`; empty for one box alone",
        secret=True,
    )
    redis_health_check_interval: float = setting(
        30, "seconds after which an idle Redis connection is checked before use", low=0
    )
    data_dir: Path = setting(
        Path("data"),
        "directory of jobs, events and schedules without `REDIS_URL`, of records, outcomes and logged predictions "
        "without `SUPABASE_URL`",
    )
    supabase_url: str = setting(
        "",
        "Supabase project for records, outcomes and logged predictions; empty for files in `DATA_DIR`",
        schemes=("https://", "http://"),
    )
    supabase_service_key: str = setting("", "its service role key", secret=True)
    supabase_service_role_key: str = setting("", "another name for `SUPABASE_SERVICE_KEY`", secret=True)
    max_limit_checkins: int = setting(10, "newest records of an entity to predict in one request", low=1)
    max_records_per_entity: int = setting(1000, "newest records to keep of each entity", low=1)
    max_records: int = setting(1_000_000, "records to keep in all; more entities get 507", low=1)
    max_outcomes_per_model: int = setting(100_000, "newest outcomes to keep of each model", low=1)
    max_streams: int = setting(1000, "open event streams per worker; one more gets 503", low=1)
    max_streams_per_address: int = setting(50, "how many one client address may open at all workers; 0 for all", low=0)
    max_streams_per_key: int = setting(500, "how many one key may open at all workers; 0 for all", low=0)
    stream_heartbeat_seconds: float = setting(15, "seconds between heartbeats on an idle event stream", low=0.1)
    feeds: str = setting("", "feeds of records, a JSON array; see GUIDE.md", secret=True)
    roles: tuple[str, ...] = setting(
        ("web", "worker", "scheduler"), "roles of this service: `web`, `worker`, `scheduler`"
    )
    job_runners: int = setting(1, "number of processes that run jobs", low=1)
    job_max_queued: int = setting(100, "jobs that may wait; one more gets 429", low=1)
    job_max_queued_per_key: int = setting(
        50, "how many of them one key may have waiting, or one address where there are no keys; 0 for all", low=0
    )
    job_max_queued_bytes: int = setting(
        512 * 1024 * 1024, "bytes of the rows of unfinished jobs, 8 a number; more get 429", low=1
    )
    job_max_queued_bytes_per_key: int = setting(
        256 * 1024 * 1024, "how many of them one key, or address, may have; a job of more gets 413; 0 for all", low=0
    )
    job_max_rows: int = setting(100_000, "rows in one job; more get 413", low=1)
    job_max_body_bytes: int = setting(64 * 1024 * 1024, "largest CSV of a job; a larger one gets 413", low=1)
    job_lease_seconds: float = setting(
        30, "seconds without a heartbeat after which another runner takes over a job", low=0.5
    )
    job_timeout_seconds: float = setting(120, "seconds one call of a job to its model may take", low=0.01)
    job_memory_bytes: int = setting(512 * 1024 * 1024, "memory that such a call may allocate", low=1)
    job_keep_seconds: float = setting(86_400, "seconds to keep finished jobs and events", low=1)
    job_keep: int = setting(1000, "finished jobs to keep", low=0)
    job_keep_bytes: int = setting(
        2 * 1024 * 1024 * 1024,
        "bytes of their results to keep; of whoever has the most, the oldest go first",
        low=1,
    )
    schedules: str = setting("", "scheduled actions, `name: 0 3 * * *: action`, separated by semicolons; see GUIDE.md")
    schedule_grace_seconds: float = setting(
        60, "seconds a firing may be late; a later one is skipped", low=1, high=604_800
    )
    dask_scheduler: str = setting(
        "", "Dask cluster that computes jobs, `tcp://` or `tls://`; empty for none", schemes=("tcp://", "tls://")
    )
    dask_chunks: int = setting(8, "chunks of a job that each runner sends to the cluster at once", low=1)
    train_timeout_seconds: float = setting(3600, "seconds a training may take", low=0.01)
    train_memory_bytes: int = setting(1024 * 1024 * 1024, "memory that a training may allocate", low=1)
    quality_tolerance: float = setting(
        0.1,
        "how much worse than in training live predictions may be before an alert: by amount, errors by share",
        low=0,
    )
    train_tolerance: float = setting(
        0.02, "how much worse a retrained version may be: by amount for a score, by share for an error", low=0
    )
    train_min_agreement: float = setting(
        0,
        "share of logged predictions with which a retrained version must agree, such as `0.98`; 0 for none",
        low=0,
        high=1,
    )
    model_dir: Path = setting(Path("models"), "directory of the models, `{name}/{version}/`")
    compile: bool = setting(True, "use compiled models, which answer bit by bit the same; `false` only for comparison")
    default_model: str = setting("", "model for requests that name none, as `/invocations`; empty for the only one")
    aip_health_route: str = setting("", "further path of the health check; Vertex AI sets it", schemes=("/",))
    aip_predict_route: str = setting("", "further path of predictions; Vertex AI sets it", schemes=("/",))
    labels_as_text: bool = setting(False, "answer labels as strings, also 0, 1.5 and true, as earlier releases did")
    serve_versions: Literal["all", "live"] = setting("all", "versions to load: `all`, or `live` and previous ones")
    watch_models: bool = setting(True, "reload when a version is added, promoted, rolled back or removed")
    reload_timeout_seconds: float = setting(60, "seconds a version may take to load at a reload", low=1)
    strict_models: bool = setting(False, "refuse to start when a version cannot be loaded, as `forkserve check` does")
    model_fallback: bool = setting(False, "serve a minimal model in place of one that does not load")
    max_memory_mb: int = setting(0, "MB that all processes together may use; 0 for the limit of the cgroup", low=0)
    max_worker_memory_mb: int = setting(0, "MB of private memory per worker; 0 for an equal share", low=0)
    secret_key: tuple[str, ...] = setting(
        (), "secret that signs values in Redis; after a comma, older ones that are still accepted", secret=True
    )
    api_key: str = setting(
        "", "one key for everything but `/api/admin/` and `/metrics`, at least 16 characters", secret=True
    )
    api_keys: str = setting("", "entries of keys, `name:sha256:scopes`, separated by spaces; see Keys", secret=True)
    api_keys_file: str = setting("", "file of such entries, one a line, which is watched")
    require_keys: bool = setting(False, "refuse to start without any of these keys")
    admin_token: str = setting(
        "", "token for `/api/admin/` and `/metrics`, at least 16 characters; empty closes them", secret=True
    )
    admin_token_in_query: bool = setting(False, "accept `?admin_token=` too, which proxies may log")
    alert_webhook_url: str = setting(
        "", "webhook for alerts that need attention at once", secret=True, schemes=HTTP_SCHEMES
    )
    alert_form: Literal["auto", "discord", "slack"] = setting(
        "auto", "format of alerts: `discord`, `slack`, or `auto` to tell by the URL"
    )
    drift_window: tuple[str, ...] = setting(
        ("1h", "1d"), "times over which drift is measured, such as `1h,1d`; empty to count no rows"
    )
    drift_alert: float = setting(
        0.2, "population stability index of a feature or of the output above which an alert is sent; 0 for none", low=0
    )
    log_level: Literal["debug", "info", "warning", "error"] = setting("info", "`debug`, `info`, `warning` or `error`")
    log_format: Literal["auto", "json", "console"] = setting(
        "auto", "`json`, `console` for people, or `auto`: for people on a terminal"
    )
    access_log: bool = setting(True, "log every request and prediction")
    pages: bool = setting(True, "serve web pages for people beside the API")
    pages_patterns: bool = setting(
        False, "serve `/pages/patterns`, every part of the pages in every state; for development"
    )
    log_predictions: str = setting(
        "off", "requests whose rows and answers are logged: `off`, `all`, or a share such as `0.1`"
    )
    log_predictions_keep: str = setting("1000000 90d", "rows to keep of them, and days")
    log_predictions_redact: tuple[str, ...] = setting((), "columns that are not logged, separated by commas")
    otel_exporter_otlp_endpoint: str = setting(
        "", "OpenTelemetry collector, such as `http://host:4318`; empty for none"
    )
    otel_service_name: str = setting("forkserve", "name of this service in traces")
    greeting: bool = setting(False, "print the address and a curl command when ready; `forkserve serve` sets it")

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Settings:
        """Parse the variables that are set; the platform says what it listens on if none of ours does.

        Raises InvalidSetting.
        """
        platform = find_platform(environ)
        types = typing.get_type_hints(cls)
        values: dict[str, Any] = {
            field.name: _parse(field, types[field.name], environ[field.name.upper()].strip())
            for field in dataclasses.fields(cls)
            if field.name.upper() in environ
        }
        if platform is not None:
            values.setdefault("host", ALL_INTERFACES)
            if "port" not in values:
                values["port"] = _parse_port(platform.port_variable, platform.port(environ))
        settings = cls(**values)
        _check(settings)
        return settings

    @property
    def load_options(self) -> LoadOptions:
        """The options for loading versions, wherever they are loaded."""
        return LoadOptions(
            compiled=self.compile, shap_evaluations=self.shap_max_evals, labels_as_text=self.labels_as_text
        )

    @property
    def has_keys(self) -> bool:
        """Whether the routes of clients need a key."""
        return bool(self.api_key or self.api_keys or self.api_keys_file)

    @property
    def is_exposed(self) -> bool:
        """Whether anybody on the network may use everything but the admin's routes."""
        return "web" in self.roles and not self.has_keys and not is_loopback(self.host)

    @property
    def supabase_key(self) -> str:
        """The service role key, whichever of its two names was used."""
        return self.supabase_service_key or self.supabase_service_role_key


def find_misspelt(environ: Iterable[str]) -> dict[str, str]:
    """Variables that are not settings but look like one, each with the setting that it resembles.

    A name resembles a setting if it is almost the same (MAX_REQEST) or lacks its end (CACHE_TTL).
    """
    settings = [field.name.upper() for field in dataclasses.fields(Settings)]
    candidates = [name for name in settings if len(name) >= MIN_NAME_CHARACTERS]
    found = {}
    for name in environ:
        if name in settings or len(name) < MIN_NAME_CHARACTERS or name.startswith(FOREIGN):
            continue
        longer = [setting for setting in candidates if "_" in name and setting.startswith(f"{name}_")]
        similar = longer or difflib.get_close_matches(name, candidates, n=1, cutoff=SIMILAR)
        if similar:
            found[name] = similar[0]
    return found


def warn_of_misspelt(environ: Iterable[str]) -> None:
    """Log a warning for each variable that looks like a setting but is none."""
    for name, similar in find_misspelt(environ).items():
        log.warning("Unknown setting", name=name, similar=similar)


def in_url(host: str) -> str:
    """A host as URLs write it: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to an address that is listened on."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"


def _check(settings: Settings) -> None:
    """Check everything that the type of a single variable cannot express. Raises InvalidSetting."""
    if settings.supabase_url and not settings.supabase_key:
        raise InvalidSetting("SUPABASE_SERVICE_KEY or SUPABASE_SERVICE_ROLE_KEY must be set beside SUPABASE_URL")
    if not settings.roles or not ROLES.issuperset(settings.roles):
        raise InvalidSetting("ROLES must be some of web, worker, scheduler, separated by commas")
    _check_keys(settings)
    try:
        LogPolicy.parse(settings.log_predictions, settings.log_predictions_keep)
    except ValueError as error:
        raise InvalidSetting(str(error)) from None
    if settings.rate_limit:
        _check_parsed("RATE_LIMIT", partial(parse_rate, settings.rate_limit, settings.rate_limit_burst))
    if settings.feeds:
        from serving.entities.feeds import parse_feeds  # not at the top: it imports an HTTP client

        _check_parsed("FEEDS", partial(parse_feeds, settings.feeds))
    if settings.drift_window:
        from serving.monitoring.windows import parse_windows  # not at the top: it imports numpy

        _check_parsed("DRIFT_WINDOW", partial(parse_windows, settings.drift_window))
    if settings.cors_origins:
        from serving.http.cors import is_origin  # not at the top: it imports the HTTP layer

        if not all(map(is_origin, settings.cors_origins)):
            raise InvalidSetting("CORS_ORIGINS must be origins such as https://app.example, separated by commas")


def _check_parsed(name: str, parse: Callable[[], object]) -> None:
    try:
        parse()
    except ValueError as error:
        raise InvalidSetting(f"{name} {error}") from None


def _check_keys(settings: Settings) -> None:
    for name, token in (("ADMIN_TOKEN", settings.admin_token), ("API_KEY", settings.api_key)):
        if token and not (token.isprintable() and MIN_TOKEN_CHARACTERS <= len(token) <= MAX_TOKEN_CHARACTERS):
            raise InvalidSetting(
                f"{name} must have {MIN_TOKEN_CHARACTERS} to {MAX_TOKEN_CHARACTERS} characters, all of them printable"
            )
    if any(len(secret) < MIN_TOKEN_CHARACTERS for secret in settings.secret_key):
        raise InvalidSetting(f"each secret of SECRET_KEY must have at least {MIN_TOKEN_CHARACTERS} characters")
    if settings.api_key and settings.api_key == settings.admin_token:
        raise InvalidSetting("API_KEY must not be the ADMIN_TOKEN")
    if settings.api_keys:
        from serving.http.keys import parse_entries  # not at the top: it imports the HTTP layer

        _check_parsed("API_KEYS", partial(parse_entries, settings.api_keys))
    if settings.require_keys and "web" in settings.roles and not settings.has_keys:
        raise InvalidSetting("REQUIRE_KEYS is true, but none of API_KEY, API_KEYS and API_KEYS_FILE is set")


def _parse_port(name: str, text: str) -> int:
    """The port that a platform's variable names."""
    (field,) = (field for field in dataclasses.fields(Settings) if field.name == "port")
    return int(_parse_number(name, int, text, field.metadata))


def _parse(field: dataclasses.Field[Any], kind: Any, text: str) -> Any:
    name = field.name.upper()
    if kind is bool:
        return _choose(name, text.lower(), TRUE | FALSE, ("true", "false")) in TRUE
    if kind in (int, float):
        return _parse_number(name, kind, text, field.metadata)
    if typing.get_origin(kind) is Literal:
        return _choose(name, text, typing.get_args(kind), typing.get_args(kind))
    if kind == tuple[str, ...]:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if kind is Path:
        if not text:
            raise InvalidSetting(f"{name} must name a directory")
        return Path(text)
    schemes = field.metadata["schemes"]
    if text and schemes and not text.startswith(schemes):
        raise InvalidSetting(f"{name} must begin with {_either(schemes)}")
    return text


def _choose(name: str, text: str, accepted: Iterable[str], shown: tuple[str, ...]) -> str:
    if text not in accepted:
        raise InvalidSetting(f"{name} must be {_either(shown)}")
    return text


def _either(words: tuple[str, ...]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]


def _parse_number(name: str, kind: type[int | float], text: str, limits: Mapping[str, Any]) -> int | float:
    try:
        number = kind(text)
    except ValueError:
        raise InvalidSetting(f"{name} must be a {'whole ' if kind is int else ''}number") from None
    # written so that NaN is refused too
    if not limits["low"] <= number < float("inf"):
        raise InvalidSetting(f"{name} must be at least {limits['low']:g}")
    if limits["high"] is not None and number > limits["high"]:
        raise InvalidSetting(f"{name} must be at most {limits['high']:g}")
    return number
