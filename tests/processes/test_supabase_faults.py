"""Supabase killed, hung, slow or with a wrong key: entities say so, and everything else goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import wire
from harness.entities import ask, columns, import_market, post, send_outcomes, send_record
from harness.jobs import Answer
from harness.processes import eventually
from harness.service import Service
from harness.supabase import SupabaseServer, token
from serving.entities.supabase import SupabaseEntityStore

BACK_SECONDS = 10.0
PAUSE_SECONDS = 1.0


def environ(models: Path, server: SupabaseServer, key: str) -> dict[str, str]:
    return {
        "MODEL_DIR": str(models),
        "WEB_CONCURRENCY": "1",
        "MAX_REQUESTS": "0",
        "SUPABASE_URL": server.url,
        "SUPABASE_SERVICE_ROLE_KEY": key,
    }


@pytest.fixture
def served(models: Path, own_supabase: SupabaseServer) -> Iterator[Service]:
    """One worker over a Supabase of its own that holds the market."""
    import_market(SupabaseEntityStore(own_supabase.url, own_supabase.key, keep_records=1000, keep_outcomes=1000))
    with Service(environ(models, own_supabase, own_supabase.key)) as service:
        yield service


def predict(service: Service) -> float:
    """Seconds of a prediction, which must be answered."""
    example = service.get("/v1/models/wine")["example"]
    started = time.perf_counter()
    assert post(service, "/v1/models/wine:predict", {"instances": [example]}).status == 200
    return time.perf_counter() - started


def outcome_of(service: Service) -> dict[str, Any]:
    return {"instances": [service.get("/v1/models/diabetes")["example"]], "outcomes": [100], "request_id": "late"}


def check_that_only_entities_are_away(service: Service) -> None:
    """After AAPL has been asked for, and IBM has not."""
    remembered = ask(service, "AAPL")
    assert (remembered.status, remembered.headers["X-Records"], remembered.json["stale"]) == (200, "stale", True)
    assert len(remembered.json["records"]) == 10
    refused = (
        ask(service, "IBM"),
        send_record(service, "IBM", values=columns(1)),
        send_outcomes(service, "diabetes", outcome_of(service)),
    )
    for answer in refused:
        assert answer.status == 503, answer.body
        assert answer.headers["Retry-After"]
        assert b"127.0.0.1" not in answer.body
    assert predict(service) < 2.0
    assert eventually(lambda: service.get("/health")["breakers"]["supabase"] in ("open", "half-open"))
    assert eventually(lambda: service.get("/health")["records"] == "unavailable")
    assert service.get("/health")["status"] == "degraded"
    started = time.perf_counter()
    assert ask(service, "IBM").status == 503
    assert time.perf_counter() - started < 5  # a probe, at the worst


def check_that_all_is_well_again(service: Service) -> None:
    started = time.monotonic()
    assert eventually(lambda: ask(service, "IBM").status == 200)
    assert time.monotonic() - started < BACK_SECONDS
    assert "X-Records" not in ask(service, "AAPL").headers
    assert eventually(lambda: service.get("/health")["records"] == "ok")
    assert service.get("/health")["breakers"]["supabase"] == "closed"


def test_a_killed_server_costs_entities_only_and_comes_back(served: Service, own_supabase: SupabaseServer) -> None:
    before = ask(served, "AAPL")
    assert before.status == 200
    own_supabase.kill()
    check_that_only_entities_are_away(served)
    late = send_outcomes(served, "diabetes", outcome_of(served), Prefer="respond-async")
    assert late.status == 202
    own_supabase.start()
    check_that_all_is_well_again(served)
    assert ask(served, "AAPL").json["models"] == before.json["models"]
    assert eventually(lambda: len(own_supabase.ask("model_outcomes?select=id")) > len("[]"))
    assert [one["reason"] for one in served.events("Supabase is unavailable")]
    assert len(served.events("Supabase is back")) == 1


def test_a_hung_server_costs_entities_only_and_comes_back(served: Service, own_supabase: SupabaseServer) -> None:
    assert ask(served, "AAPL").status == 200
    own_supabase.pause()
    try:
        check_that_only_entities_are_away(served)
    finally:
        own_supabase.resume()
    check_that_all_is_well_again(served)


def test_clients_that_do_not_wait_take_no_connection_with_them(served: Service, own_supabase: SupabaseServer) -> None:
    assert ask(served, "AAPL").status == 200
    own_supabase.pause()
    impatient = [threading.Thread(target=leave_early, args=(served,)) for _ in range(30)]
    for thread in impatient:
        thread.start()
    for thread in impatient:
        thread.join()
    own_supabase.resume()
    check_that_all_is_well_again(served)


def leave_early(service: Service) -> None:
    """Ask and hang up before there can be an answer."""
    with wire.Connection(service) as connection:
        connection.send(b"GET /v1/entities/IBM/predictions HTTP/1.1\r\nhost: x\r\n\r\n")


def test_a_slow_server_is_waited_for_as_long_as_it_may_take(served: Service, own_supabase: SupabaseServer) -> None:
    assert ask(served, "AAPL").status == 200
    answers: list[Answer] = []
    asking = threading.Thread(target=lambda: answers.append(ask(served, "IBM")))
    own_supabase.pause()
    resuming = threading.Timer(PAUSE_SECONDS, own_supabase.resume)
    resuming.start()
    asking.start()
    seconds = predict(served)
    asking.join()
    resuming.join()
    assert (answers[0].status, answers[0].json["stale"]) == (200, False)
    assert seconds < PAUSE_SECONDS


@pytest.mark.parametrize("role", ["service_role of another project", "anon", "nonsense"])
def test_a_wrong_key_starts_and_costs_entities_only(models: Path, shared_supabase: SupabaseServer, role: str) -> None:
    key = {
        "service_role of another project": token("service_role", "another-key-which-is-as-long-as-it-has-to-be"),
        "anon": token("anon"),
        "nonsense": "nonsense",
    }[role]
    with Service(environ(models, shared_supabase, key)) as service:
        answer = send_record(service, "AAPL", values=columns(1))
        assert answer.status == 503
        assert key not in answer.body.decode()
        assert predict(service) < 2.0
        assert key not in service.log()


def test_a_project_without_a_key_refuses_the_start(models: Path) -> None:
    service = Service({"MODEL_DIR": str(models), "SUPABASE_URL": "http://127.0.0.1:1"})
    assert service.process.wait(30) != 0
    service.stop()
    assert "forkserve: SUPABASE_SERVICE_KEY or SUPABASE_SERVICE_ROLE_KEY must be set" in service.log()
