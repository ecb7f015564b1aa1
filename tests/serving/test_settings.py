"""Settings: parsed once, refused by name, secrets kept to themselves."""

from __future__ import annotations

import dataclasses
from itertools import product
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from serving.errors import InvalidSetting
from serving.settings import Settings, find_misspelt, in_url, warn_of_misspelt
from tests.cases import cases

SECRET = "a-secret-of-enough-characters"
FIELDS = dataclasses.fields(Settings)


def test_defaults_are_used_when_nothing_is_set() -> None:
    settings = Settings.from_env({})
    assert settings == Settings()
    assert (settings.host, settings.port, settings.web_concurrency) == ("127.0.0.1", 8000, 2)
    assert (settings.model_dir, settings.model_fallback, settings.admin_token) == (Path("models"), False, "")


def test_every_variable_sets_its_field() -> None:
    settings = Settings.from_env(
        {
            "PORT": "9000",
            "READ_TIMEOUT_SECONDS": " 1.5 ",
            "MODEL_DIR": "/srv/models",
            "MODEL_FALLBACK": "Yes",
            "ACCESS_LOG": "0",
            "PRELOAD_MODULES": "json, shap ,",
            "ADMIN_TOKEN": SECRET,
            "LOG_LEVEL": "warning",
            "UNKNOWN": "is not ours",
        }
    )
    assert (settings.port, settings.read_timeout_seconds, settings.model_dir) == (9000, 1.5, Path("/srv/models"))
    assert (settings.model_fallback, settings.access_log) == (True, False)
    assert (settings.preload_modules, settings.admin_token) == (("json", "shap"), SECRET)


def check_refusals(kinds: set[str], values: list[str], reason: str) -> None:
    """Check that every setting of these kinds refuses each of the values by its name and in few words."""
    names = [field.name.upper() for field in FIELDS if field.type in kinds]
    assert len(names) > 3
    with cases() as case:
        for name, value in product(names, values):
            with case((name, value)):
                with pytest.raises(InvalidSetting, match=f"^{name} must be {reason}") as refusal:
                    Settings.from_env({name: value})
                assert len(str(refusal.value)) < 100


def test_number_that_cannot_be_is_refused_by_name() -> None:
    check_refusals({"int", "float"}, ["", "x", "-1", "nan", "inf", "1e999", "0x10", "1,5", "9" * 5000], "")


def test_fraction_is_no_whole_number() -> None:
    check_refusals({"int"}, ["1.5"], "a whole number")


def test_truth_that_is_none_is_refused_by_name() -> None:
    check_refusals({"bool"}, ["maybe", "2", "tru", "yes please"], "true or false")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "65536"),
        ("WEB_CONCURRENCY", "0"),
        ("LOG_LEVEL", "loud"),
        ("LOG_LEVEL", ""),
        ("ADMIN_TOKEN", "short"),
        ("ADMIN_TOKEN", "\udcff" * 20),
        ("API_KEY", "short"),
        ("API_KEYS", ";"),
        ("API_KEYS", f"name:{SECRET}:predict"),
        ("API_KEYS", f"name:{'0' * 64}:cook"),
        ("API_KEYS", f"name:{'0' * 64}:predict:fast"),
        ("API_KEYS", f"name:{'0' * 64}:predict:1/day::soon"),
        ("API_KEYS", f"name:{'0' * 64}:predict other:{'0' * 64}:write"),
        ("INFERENCE_THREADS", "0"),
        ("MAX_BODY_BYTES", "0"),
        ("MODEL_DIR", ""),
        ("SERVE_VERSIONS", "newest"),
        ("DATA_DIR", ""),
        ("ROLES", ""),
        ("ROLES", "web,cook"),
        ("DASK_SCHEDULER", "scheduler:8786"),
        ("LOG_PREDICTIONS", "some"),
        ("LOG_PREDICTIONS", "1.5"),
        ("LOG_PREDICTIONS", "-0.1"),
        ("LOG_PREDICTIONS_KEEP", "90d 1000000"),
        ("LOG_PREDICTIONS_KEEP", "many 90d"),
        ("LOG_PREDICTIONS_KEEP", "0 0d"),
    ],
)
def test_value_out_of_range_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(InvalidSetting, match=f"^{name} ") as refusal:
        Settings.from_env({name: value})
    assert value not in str(refusal.value) or value in ("", "0")


def test_secret_stays_out_of_what_is_printed() -> None:
    settings = Settings.from_env({"ADMIN_TOKEN": SECRET})
    assert SECRET not in repr(settings)
    assert SECRET not in str(settings)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().port = 1  # type: ignore[misc]


def test_every_setting_says_what_it_means() -> None:
    assert all(field.metadata["meaning"] for field in FIELDS)


@pytest.mark.parametrize("rate", ["600", "x/minute", "1001/second", "0/minute"])
def test_a_rate_that_cannot_be_is_refused(rate: str) -> None:
    with pytest.raises(InvalidSetting, match=r"^RATE_LIMIT "):
        Settings.from_env({"RATE_LIMIT": rate})


@pytest.mark.parametrize("origin", ["*", "null", "https://app.example/", "app.example", "https://APP.example"])
def test_a_list_of_origins_that_would_open_more_than_it_says_is_refused(origin: str) -> None:
    with pytest.raises(InvalidSetting, match=r"^CORS_ORIGINS must be origins such as"):
        Settings.from_env({"CORS_ORIGINS": f"https://app.example,{origin}"})


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("MAX_REQEST", "MAX_REQUESTS"),
        ("CACHE_TTL_SECOND", "CACHE_TTL_SECONDS"),
        ("CACHE_TTL", "CACHE_TTL_SECONDS"),
        ("MODELS_DIR", "MODEL_DIR"),
        ("REDISURL", "REDIS_URL"),
        ("WEB_CONCURENCY", "WEB_CONCURRENCY"),
        ("SUPABASE_SERVICE_ROLE", "SUPABASE_SERVICE_ROLE_KEY"),
    ],
)
def test_a_misspelt_setting_is_found_with_the_one_that_was_meant(name: str, meant: str) -> None:
    assert find_misspelt({name: "1", meant: "1"}) == {name: meant}


@pytest.mark.parametrize(
    "name",
    [
        "REDIS_VERSION",
        "REDIS_HOST",
        "REDIS_PORT",
        "PORTS",
        "HOSTNAME",
        "COMPILER",
        "XDG_DATA_DIRS",
        "HOME",
        "PATH",
        "LANG",
        "PYTHONPATH",
        "JOB_NAME",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        "OTEL_SERVICE_NAMESPACE",
        "DASK_SCHEDULERS",
        "RENDER_SERVICE_NAME",
        "SUPABASE_ANON_KEY",
        "KUBERNETES_SERVICE_PORT",
        "GUNICORN_CMD_ARGS",
        "LOG_FORMAT",
        "TIMEOUT",
    ],
)
def test_a_variable_of_somebody_else_is_no_misspelt_setting(name: str) -> None:
    assert find_misspelt([name]) == {}


def test_misspelt_settings_are_warned_of() -> None:
    with capture_logs() as lines:
        warn_of_misspelt({"MAX_REQEST": "5", "MAX_REQUESTS": "5", "HOME": "/"})
    assert lines == [
        {"event": "Unknown setting", "log_level": "warning", "name": "MAX_REQEST", "similar": "MAX_REQUESTS"}
    ]


@pytest.mark.parametrize(("host", "written"), [("::1", "[::1]"), ("::", "[::]"), ("127.0.0.1", "127.0.0.1")])
def test_ipv6_is_in_brackets_where_an_address_is_printed(host: str, written: str) -> None:
    assert in_url(host) == written
