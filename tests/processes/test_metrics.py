"""Figures over all workers: none is lost when workers come and go, and no request makes a series."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from harness.admin import admin_figures
from harness.entities import ask as ask_entity
from harness.entities import columns, send_record
from harness.processes import DIABETES, eventually, hammer, load
from harness.promql import faults, queries
from harness.service import ADMIN_TOKEN, ROOT, Service
from harness.wire import Connection, ask, check_refusal, request
from serving.cli.client import post
from serving.monitoring.drift import ALERT_ROWS
from serving.monitoring.quality import MIN_OUTCOMES
from tests.conftest import DEMO_MODELS

QUERY_TOKEN = "a-token-that-is-in-no-log"


def figures(service: Service) -> Any:
    """The admin's metrics from any worker; each worker reuses its last snapshot for half a second."""
    now = datetime.now(UTC)
    found: dict[str, Any] = {}

    def fresh() -> bool:
        found.update(admin_figures(service))
        return datetime.fromisoformat(found["time"]) >= now

    assert eventually(fresh)
    return found


def refusals(service: Service) -> dict[str, int]:
    """All answers but the good ones, by status."""
    counted: dict[str, int] = figures(service)["totals"]["responses"]
    return {status: count for status, count in counted.items() if not status.startswith("2")}


def scrape(service: Service) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """The metrics as Prometheus' own parser reads them: a number for each series."""
    answer = ask(service, request("/metrics", method="GET", x_admin_token=ADMIN_TOKEN))
    assert (answer.status, answer.headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    series = {}
    for family in text_string_to_metric_families(answer.body.decode()):
        assert family.documentation, family.name
        assert family.type != "unknown", family.name
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in series
            series[key] = sample.value
    return series


def value(service: Service, name: str, **labels: str) -> float:
    return scrape(service)[name, frozenset(labels.items())]


@pytest.fixture(scope="module")
def measured(models: Path) -> Iterator[Service]:
    environ = {
        "MODEL_DIR": str(models),
        "MAX_REQUESTS": "0",
        "ADMIN_TOKEN": ADMIN_TOKEN,
        "ACCESS_LOG": "false",
        "LOG_PREDICTIONS": "all",
        "GRACEFUL_TIMEOUT_SECONDS": "4",
        "READ_TIMEOUT_SECONDS": "2",
    }
    with Service(environ) as service:
        yield service


def test_no_answer_is_forgotten_when_workers_end_are_killed_or_reload(measured: Service) -> None:
    before = figures(measured)["models"]["diabetes"]["predict"]["requests"]
    rows_before = measured.get("/v1/models/diabetes/drift")["rows"]
    load(measured, requests=40, connections=8)
    # a turn of the event loop ends after its answers are sent
    assert eventually(lambda: measured.get("/v1/models/diabetes/drift")["rows"] == rows_before + 40)
    old = measured.workers
    os.kill(old[0], signal.SIGKILL)
    assert eventually(lambda: len(measured.workers) == 2 and old[0] not in measured.workers)
    load(measured, requests=30, connections=4)
    measured.process.send_signal(signal.SIGHUP)
    assert eventually(lambda: len(measured.workers) == 2 and not set(old) & set(measured.workers))
    assert load(measured, requests=20, connections=4).failed == 0
    found = figures(measured)
    assert found["models"]["diabetes"]["predict"]["requests"] == before + 90
    drift = measured.get("/v1/models/diabetes/drift")
    assert (drift["rows"], drift["output"]["rows"]) == (rows_before + 90, rows_before + 90)
    assert found["drift"]["diabetes"]["windows"]["1h"]["rows"] == rows_before + 90
    assert found["models"]["diabetes"]["predict"]["seconds"]["p99"] > 0
    assert found["totals"]["processes_ended"]["web"] >= 3
    assert {worker["pid"] for worker in found["workers"]} == set(measured.workers)
    assert sum(worker["requests"] for worker in found["workers"]) < found["requests"]
    # this scrape's own snapshot may be half a second old
    assert eventually(
        lambda: value(measured, "forkserve_model_seconds_count", model="diabetes", operation="predict") == before + 90
    )
    assert value(measured, "forkserve_processes", process="web") == 2


def test_random_names_and_paths_make_no_series(measured: Service) -> None:
    scrape(measured)
    paths = [
        "/v1/models/{}:predict",
        "/v1/models/diabetes/versions/{}:explain",
        "/{}",
        "/v1/jobs/{}",
        "/v1/models/{}",
        "/api/admin/models/{}:rollback",
    ]
    messages = [post(measured.address + paths[n % len(paths)].format(f"x{n:x}%0a"), DIABETES) for n in range(3000)]
    before = set(scrape(measured))
    asyncio.run(hammer(measured.address, messages, requests=len(messages), connections=8))
    refusals = figures(measured)["totals"]["responses"]
    assert sum(refusals[status] for status in ("401", "404", "405")) >= 3000
    assert set(scrape(measured)) == before
    models = {dict(labels)["model"] for _, labels in before if "model" in dict(labels)}
    assert models == set(DEMO_MODELS)


def test_refusals_rows_and_cache_are_told_by_model(measured: Service) -> None:
    path = "/v1/models/diabetes:predict"
    row = [41.0, 2.0, 32.125, 101.0, 157.0, 93.2, 38.0, 4.0, 4.8598, 87.0]
    before = figures(measured)["models"]["diabetes"]["predict"]
    assert ask(measured, request(path, json.dumps({"instances": [[1.0]]}).encode())).status == 422
    assert ask(measured, request(path, json.dumps({"instances": [row, row, row]}).encode())).status == 200

    def told() -> bool:
        after = figures(measured)["models"]["diabetes"]["predict"]
        rows = {source: n - before["rows"][source] for source, n in after["rows"].items()}
        refused = after["refused"].get("422", 0) - before["refused"].get("422", 0)
        return refused == 1 and rows == {"miss": 1, "coalesced": 2, "hit-memory": 0, "hit-redis": 0}

    assert eventually(told)


def test_answers_of_entities_are_in_the_figures_of_their_models(measured: Service) -> None:
    def answered() -> Any:
        return figures(measured)["models"]["market-range"]["predict"]["requests"]

    before = answered()
    send_record(measured, "counted", values=columns(1))
    assert len(ask_entity(measured, "counted").json["models"]) == 5
    # once for who asked, once for who follows the entity
    assert eventually(lambda: answered() == before + 2)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"POST /v1/models/wine:predict HTTP/1.1\r\nhost:", 408),
        (request("/v1/models/wine:predict", b"{}").replace(b"ength: 2", b"ength: 3"), 408),
        (b"GET /health HTTP/1.1\r\nx: " + b"x" * 200_000, 431),
        (b"EHLO there\r\n\r\n", 400),
    ],
    ids=["half a head", "half a body", "large head", "not HTTP"],
)
def test_what_the_server_refuses_for_the_app_is_counted_once(measured: Service, data: bytes, status: int) -> None:
    before = refusals(measured)
    with Connection(measured) as connection:
        connection.send(data)
        answer = connection.answer()
    assert answer is not None
    check_refusal(answer, status)
    counted = before | {str(status): before[str(status)] + 1}
    assert eventually(lambda: refusals(measured) == counted)


def test_a_body_that_does_not_come_in_time_is_in_the_figures_of_its_model(measured: Service) -> None:
    def late() -> Any:
        return figures(measured)["models"]["wine"]["predict"]["refused"].get("408", 0)

    before = late()
    with Connection(measured) as connection:
        connection.send(request("/v1/models/wine:predict", b"{}").replace(b"ength: 2", b"ength: 3"))
        answer = connection.answer()
    assert answer is not None
    check_refusal(answer, 408)
    assert eventually(lambda: late() == before + 1)


def test_the_dashboard_and_the_alerts_ask_for_series_that_are_there(measured: Service) -> None:
    """Each of them; and each has its row in the documents."""
    instance = measured.get("/v1/models/wine")["example"]
    for verb, rows in (("predict", ALERT_ROWS), ("explain", 1)):
        body = json.dumps({"instances": [instance] * rows}).encode()
        assert ask(measured, request(f"/v1/models/wine:{verb}", body)).status == 200
    for name, outcomes in (("wine", ["class_0", "class_1", "class_2"] * MIN_OUTCOMES), ("diabetes", [100.0, 200.0])):
        examples = [measured.get(f"/v1/models/{name}")["example"]] * len(outcomes)
        body = json.dumps({"instances": examples, "outcomes": outcomes}).encode()
        assert ask(measured, request(f"/v1/models/{name}/outcomes", body)).status in (200, 201)

    def series() -> dict[str, list[dict[str, str]]]:
        found: dict[str, list[dict[str, str]]] = {}
        for name, labels in scrape(measured):
            found.setdefault(name, []).append(dict(labels))
        return found

    def wrong() -> dict[str, list[str]]:
        known = series()
        return {query.place: found for query in queries() if (found := faults(query, known))}

    assert eventually(lambda: not wrong()), wrong()
    documented = re.findall(r"`(forkserve_\w+)", (ROOT / "DEPLOYMENT.md").read_text())
    ends = re.compile("_(?:bucket|count|sum)")
    assert {name for name in series() if not {name, ends.sub("", name)} & set(documented)} == set()


def test_metrics_need_the_token(measured: Service) -> None:
    for path in ("/metrics", "/api/admin/metrics", f"/metrics?admin_token={ADMIN_TOKEN}"):
        check_refusal(ask(measured, request(path, method="GET")), 401)
    check_refusal(ask(measured, request("/metrics", method="GET", authorization="Bearer \xff\xfe")), 401)


def test_a_token_in_the_query_works_where_it_is_allowed_and_is_never_logged(few_models: Path) -> None:
    environ = {
        "MODEL_DIR": str(few_models),
        "WEB_CONCURRENCY": "1",
        "ADMIN_TOKEN": QUERY_TOKEN,
        "ADMIN_TOKEN_IN_QUERY": "true",
        "LOG_LEVEL": "debug",
    }
    with Service(environ) as service:
        assert ask(service, request(f"/metrics?admin_token={QUERY_TOKEN}", method="GET")).status == 200
        check_refusal(ask(service, request("/metrics?admin_token=%ff%00", method="GET")), 401)
        check_refusal(ask(service, request(f"/nothing?admin_token={QUERY_TOKEN}", method="GET")), 404)
        assert service.stop() == 0
        assert len(service.events("Request completed")) == 3
        assert QUERY_TOKEN not in service.log()
