"""The cache behind HTTP, alone and with a real Redis: the same bytes from wherever they come."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from harness.processes import eventually, sleep_body
from harness.servers import RedisServer, redis_server
from harness.service import Service

ROW = [59.0, 2.0, 32.1, 101.0, 157.0, 93.2, 38.0, 4.0, 4.8598, 87.0]


def predict(service: Service, *rows: list[float], model: str = "diabetes") -> httpx.Response:
    answer = httpx.post(f"{service.address}/v1/models/{model}:predict", json={"instances": list(rows)}, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer


def aged(years: float) -> list[float]:
    return [years, *ROW[1:]]


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture(scope="module")
def alone(few_models: Path) -> Iterator[Service]:
    with Service({"MODEL_DIR": str(few_models), "WEB_CONCURRENCY": "1", "MAX_REQUESTS": "0"}) as service:
        yield service


def sharing(models: Path, redis: RedisServer, **environ: str) -> Service:
    return Service({"MODEL_DIR": str(models), "WEB_CONCURRENCY": "1", "REDIS_URL": redis.url} | environ)


def test_second_identical_row_is_answered_from_memory_with_the_same_bytes(alone: Service) -> None:
    first, second = predict(alone, aged(50)), predict(alone, aged(50))
    assert (first.headers["x-cache"], second.headers["x-cache"]) == ("miss", "hit-memory")
    assert first.content == second.content


def test_rows_by_name_and_by_position_are_the_same_row(alone: Service) -> None:
    names = alone.get("/v1/models/diabetes")["features"]
    predict(alone, aged(51))
    named = httpx.post(
        f"{alone.address}/v1/models/diabetes:predict",
        json={"instances": [dict(zip(reversed(names), reversed(aged(51)), strict=True))]},
    )
    assert named.headers["x-cache"] == "hit-memory"


def test_a_batch_computes_only_the_rows_that_are_not_known(alone: Service) -> None:
    known = predict(alone, aged(52)).json()["predictions"]
    mixed = predict(alone, aged(52), aged(53))
    assert mixed.headers["x-cache"] == "mixed"
    assert mixed.json()["predictions"][0] == known[0]
    assert mixed.json()["predictions"][1] == predict(alone, aged(53)).json()["predictions"][0]


def test_models_do_not_share_answers_of_equal_rows(alone: Service) -> None:
    wine = [13.2, 1.78, 2.14, 11.2, 100, 2.65, 2.76, 0.26, 1.28, 4.38, 1.05, 3.4, 1050]
    first = predict(alone, wine, model="wine").json()
    assert predict(alone, wine, model="wine").headers["x-cache"] == "hit-memory"
    assert first["model"] == "wine"
    assert predict(alone, ROW).json()["model"] == "diabetes"


def test_server_timing_tells_where_the_time_went(alone: Service) -> None:
    timing = predict(alone, aged(54)).headers["server-timing"]
    assert [part.split(";")[0] for part in timing.split(", ")] == ["decode", "cache", "queue", "model", "total"]


def test_equal_rows_in_flight_are_computed_once(sleeper: Path) -> None:
    with Service({"MODEL_DIR": str(sleeper), "WEB_CONCURRENCY": "1"}) as service:

        async def ask_together() -> list[httpx.Response]:
            async with httpx.AsyncClient(timeout=60) as client:
                url = f"{service.address}/v1/models/sleeper:predict"
                headers = {"Content-Type": "application/json"}
                requests = (client.post(url, content=sleep_body(1.5), headers=headers) for _ in range(8))
                return await asyncio.gather(*requests)

        answers = asyncio.run(ask_together())
    sources = sorted(answer.headers["x-cache"] for answer in answers)
    assert sources == ["coalesced"] * 7 + ["miss"]
    assert len({answer.content for answer in answers}) == 1


def test_the_cache_says_hit_and_miss_in_the_log(alone: Service) -> None:
    predict(alone, aged(55))
    predict(alone, aged(55))

    def said() -> set[str]:
        return {line["event"].rpartition(", ")[2] for line in alone.events("Request completed")}

    assert eventually(lambda: {"Cache HIT", "Cache MISS"} <= said())
    assert len(alone.events("Redis caching disabled")) == 1


@pytest.fixture(scope="module")
def pair(few_models: Path, redis: RedisServer) -> Iterator[tuple[Service, Service]]:
    """Two instances over one Redis."""
    with sharing(few_models, redis) as first, sharing(few_models, redis) as second:
        yield first, second


def test_another_instance_answers_from_redis_with_the_same_bytes(pair: tuple[Service, Service]) -> None:
    first, second = pair
    computed = predict(first, aged(40), aged(41))
    assert computed.headers["x-cache"] == "miss"

    def found_by_the_other() -> bool:
        answer = predict(second, aged(40), aged(41))
        assert answer.content == computed.content
        return answer.headers["x-cache"].startswith("hit")

    assert eventually(found_by_the_other)
    assert first.events("Redis connection established")
    assert first.get("/health")["redis"] == "ok"


def test_predictions_go_on_when_redis_is_killed(few_models: Path) -> None:
    with redis_server() as server, sharing(few_models, server) as service:
        predict(service, aged(42))
        server.kill()
        answers = [predict(service, aged(43 + turn / 10)) for turn in range(10)]
        assert {answer.headers["x-cache"] for answer in answers} == {"miss"}
        assert service.get("/health")["redis"] == "away"
        assert service.get("/health/ready") == {"status": "ok"}
        assert eventually(lambda: service.get("/health")["status"] == "degraded"), "jobs are kept in Redis, too"


def test_a_redis_that_is_not_there_does_not_keep_the_service_from_starting(few_models: Path) -> None:
    with Service({"MODEL_DIR": str(few_models), "REDIS_URL": "redis://127.0.0.1:1/0"}) as service:
        assert predict(service, aged(60)).headers["x-cache"] == "miss"


def test_an_answer_that_somebody_planted_in_redis_is_not_believed(
    pair: tuple[Service, Service], redis: RedisServer
) -> None:
    import redis as client

    first, second = pair
    with client.Redis.from_url(redis.url) as planter:

        def answers() -> set[bytes]:
            return {key for key in planter.scan_iter(b"forkserve:*") if not key.startswith(b"forkserve:{")}

        before = answers()
        honest = predict(first, aged(44)).json()
        assert eventually(lambda: before < answers())
        for key in answers() - before:
            planter.set(key, b"\x80\x04\x95" + b"666")
    answer = predict(second, aged(44))
    assert answer.headers["x-cache"] == "miss"
    assert answer.json() == honest


def test_a_worker_whose_threads_are_all_stuck_is_replaced(sleeper: Path) -> None:
    environ = {
        "MODEL_DIR": str(sleeper),
        "WEB_CONCURRENCY": "1",
        "INFERENCE_THREADS": "1",
        "INFERENCE_TIMEOUT_SECONDS": "1",
        "GRACEFUL_TIMEOUT_SECONDS": "4",
    }
    with Service(environ) as service:
        (old,) = service.workers
        url = f"{service.address}/v1/models/sleeper:predict"
        headers = {"Content-Type": "application/json"}
        assert httpx.post(url, content=sleep_body(600), headers=headers).status_code == 504
        assert eventually(lambda: len(service.events("Worker started")) == 2)
        assert "stuck" in service.events("Worker draining")[0]["reason"]
        assert eventually(lambda: old not in service.workers)
        assert httpx.post(url, content=sleep_body(0), headers=headers).status_code == 200


def test_too_many_requests_for_a_slow_model_are_refused_at_once_and_told_when_to_come_back(sleeper: Path) -> None:
    environ = {"MODEL_DIR": str(sleeper), "WEB_CONCURRENCY": "1", "INFERENCE_THREADS": "1", "QUEUE_SECONDS": "0.01"}
    with Service(environ) as service:
        url = f"{service.address}/v1/models/sleeper:predict"
        headers = {"Content-Type": "application/json"}
        httpx.post(url, content=sleep_body(0.2), headers=headers)  # so that it is known how slow the model is

        async def ask_together() -> list[httpx.Response]:
            limits = httpx.Limits(max_connections=40)
            async with httpx.AsyncClient(timeout=60, limits=limits) as client:
                bodies = (sleep_body(0.2 + turn / 1e6) for turn in range(40))
                return await asyncio.gather(*(client.post(url, content=body, headers=headers) for body in bodies))

        answers = asyncio.run(ask_together())
    refused = [answer for answer in answers if answer.status_code == 503]
    served = [answer for answer in answers if answer.status_code == 200]
    assert len(refused) + len(served) == 40
    assert served
    assert refused
    problem: dict[str, Any] = json.loads(refused[0].content)
    assert problem["title"] == "Service Unavailable"
    assert refused[0].headers["retry-after"] == "1"
