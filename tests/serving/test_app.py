"""The service is built from its settings once, and closed in reverse order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

import serving.app
from serving.app import Application, build, build_alerts, renew
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
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
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
    assert closed == ["metrics", "entities", "batcher", "executor"]
