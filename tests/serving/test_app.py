"""The service is built from its settings once, and closed in reverse order."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

import serving.app
from harness.apps import ask_app, client_of
from registry.store.loader import load_version
from serving.app import Application, build, build_alerts, renew
from serving.errors import CannotServe
from serving.settings import Settings
from serving.storage.redis import RedisClient

REDIS = "redis://127.0.0.1:1"


@pytest.fixture(scope="module")
def root(sleeper: Path) -> Path:
    """A directory with one small model."""
    return sleeper


def build_app(root: Path, data: Path, **options: Any) -> Application:
    settings = Settings(model_dir=root, data_dir=data, **options)
    return build(settings, build_alerts(settings))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the stores that are built."""
    built: list[str] = []

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            built.append(name)
            return function(*arguments)

        return call

    for name in ("build_job_store", "build_event_log", "build_entity_store"):
        monkeypatch.setattr(serving.app, name, counted(name, getattr(serving.app, name)))
    return built


def test_each_store_is_built_once_and_outlives_reloads(root: Path, tmp_path: Path, calls: list[str]) -> None:
    app = build_app(root, tmp_path)
    successor, refused = renew(app)
    assert sorted(calls) == ["build_entity_store", "build_event_log", "build_job_store"]
    assert refused == ()
    assert successor.service is not app.service
    assert successor.service.shared is app.service.shared


def test_a_rate_limit_counts_on_over_a_reload(root: Path, tmp_path: Path) -> None:
    app = build_app(root, tmp_path, rate_limit="2/hour")

    async def ask(app: Application) -> int:
        async with client_of(app) as client:
            return (await client.get("/v1/models")).status_code

    assert asyncio.run(ask(app)) == 200
    successor, _ = renew(app)
    assert [asyncio.run(ask(successor)) for _ in range(2)] == [200, 429]


def test_the_health_check_interval_reaches_every_redis_client(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    intervals: list[Any] = []
    original = RedisClient.__init__

    def note(self: RedisClient, url: str, **options: Any) -> None:
        intervals.append(options.get("health_check_interval"))
        original(self, url, **options)

    monkeypatch.setattr(RedisClient, "__init__", note)
    build_app(root, tmp_path, redis_url=REDIS, redis_health_check_interval=7.5, rate_limit="5/minute")
    assert len(intervals) >= 4, "cache, jobs, events, rate limits"
    assert set(intervals) == {7.5}


@pytest.mark.anyio
async def test_a_service_is_closed_in_the_reverse_order_even_if_a_part_fails(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = build_app(root, tmp_path).service
    closed: list[str] = []

    def fail() -> None:
        closed.append("metrics")
        raise RuntimeError("a part that fails")

    async def close_entities() -> None:
        closed.append("entities")

    monkeypatch.setattr(type(service.metrics), "publish", lambda _self: fail())
    monkeypatch.setattr(type(service.shared.entities), "close", lambda _self: close_entities())
    monkeypatch.setattr(type(service.batcher), "stop", lambda _self: closed.append("batcher"))
    monkeypatch.setattr(type(service.batcher), "start", lambda _self: None)
    monkeypatch.setattr(type(service.executor), "stop", lambda _self: closed.append("executor"))
    monkeypatch.setattr(type(service.executor), "start", lambda _self: None)
    closing = AsyncExitStack()
    await service.open(closing)
    with pytest.raises(RuntimeError, match="a part that fails"):
        await closing.aclose()
    assert closed == ["metrics", "entities", "batcher", "batcher", "executor", "executor"]


@pytest.fixture
def one_of_two(root: Path, tmp_path: Path) -> Path:
    """A directory with a model that serves and one whose artefact is cut short."""
    models = Path(shutil.copytree(root, tmp_path / "models"))
    (name,) = (path.name for path in models.iterdir())
    broken = models / "broken" / "1"
    shutil.copytree(models / name / "1", broken)
    manifest = broken / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"name": "{name}"', '"name": "broken"'))
    (broken / "model.joblib").write_bytes(b"")
    return models


def answers_of(app: Application, *paths: str) -> list[httpx.Response]:
    async def ask() -> list[httpx.Response]:
        async with client_of(app) as client:
            return [
                await (client.post(path, json={}) if path.endswith(":predict") else client.get(path)) for path in paths
            ]

    async def run() -> list[httpx.Response]:
        async with app._running():
            return await ask()

    return asyncio.run(run())


def test_a_model_that_does_not_load_is_left_out_and_named(one_of_two: Path, tmp_path: Path) -> None:
    app = build_app(one_of_two, tmp_path)
    paths = ("/health", "/health/ready", "/v1/models", "/v1/models/broken", "/v1/models/broken/versions/1:predict")
    health, ready, models, *refused = answers_of(app, *paths)
    (line,) = health.json()["refused"]
    assert line.startswith("broken/1/model.joblib: has sha256")
    assert (health.status_code, health.json()["status"], health.json()["models"]) == (200, "degraded", 1)
    assert (ready.status_code, ready.json()) == (200, {"status": "degraded"})
    assert models.json()["status"] == "degraded"
    assert models.json()["refused"] == [{"model": "broken", "version": "1", "reason": line}]
    assert len(models.json()["models"]) == 1
    details = ["the model broken could not be loaded", "version 1 of the model broken could not be loaded"]
    assert [(answer.status_code, answer.json()["detail"].split(";")[0]) for answer in refused] == [
        (503, detail) for detail in details
    ]


def test_strict_models_refuse_the_start_naming_the_file(one_of_two: Path, tmp_path: Path) -> None:
    with pytest.raises(CannotServe, match=f"^{one_of_two}/broken/1/model.joblib: has sha256[^\n]*$"):
        build_app(one_of_two, tmp_path, strict_models=True)


def test_without_any_model_that_loads_nothing_starts_and_each_is_named(one_of_two: Path, tmp_path: Path) -> None:
    for artefact in one_of_two.rglob("model.joblib"):
        artefact.write_bytes(b"")
    with pytest.raises(CannotServe, match=r"broken/1/model.joblib: [^\n]*\n[^\n]*/1/model.joblib: [^\n]*$"):
        build_app(one_of_two, tmp_path)


def test_a_fallback_goes_on_in_place_of_a_model_that_does_not_load(one_of_two: Path, tmp_path: Path) -> None:
    app = build_app(one_of_two, tmp_path, model_fallback=True, strict_models=True)
    (health,) = answers_of(app, "/health")
    assert (health.json()["fallbacks"], health.json()["refused"]) == (["broken/1"], [])


def test_a_model_that_ends_its_process_is_left_out(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = os.getpid()

    def load(*arguments: Any, **options: Any) -> Any:
        if os.getpid() != home:
            os.kill(os.getpid(), signal.SIGSEGV)
        return load_version(*arguments, **options)

    monkeypatch.setattr(serving.app, "load_version", load)
    monkeypatch.setattr(serving.app, "can_try", lambda: True)
    with pytest.raises(CannotServe, match="/1: its process was ended by signal 11"):
        build_app(root, tmp_path)


@pytest.mark.parametrize("kind", ["application/vnd.apache.parquet", "application/vnd.apache.arrow.stream"])
def test_without_the_library_a_table_is_refused_with_the_remedy(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(serving.app, "has_arrow", lambda: False)
    app = build_app(root, tmp_path)
    for path in ("/v1/models/sleeper:predict", "/v1/jobs?operation=predict&model=sleeper"):
        answer = ask_app(app, "POST", path, content=b"PAR1", headers={"content-type": kind})
        assert answer.status_code == 415
        assert "pip install 'forkserve[arrow]'" in answer.json()["detail"]
