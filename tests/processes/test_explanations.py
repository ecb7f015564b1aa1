"""Explanations that no thread may run: in processes that are killed at the deadline, on a real service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
from sklearn.svm import SVR

from harness.estimators import GreedyRegressor, PonderingRegressor, SleepingRegressor
from harness.processes import eventually
from harness.servers import redis_server
from harness.service import Service
from registry.store.add import add_version
from serving.process.kernel import child_pids, descendants


@pytest.fixture(scope="module")
def isolated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One worker; models that sleep for as many seconds as they are told, eat so many megabytes, or are just slow."""
    root = tmp_path_factory.mktemp("isolated")
    for name, estimator in (
        ("sleeper", SleepingRegressor()),
        ("greedy", GreedyRegressor()),
        ("ponderer", PonderingRegressor()),
    ):
        sample = pd.DataFrame({"amount": np.linspace(0.0, 0.001, 5), "other": np.arange(5.0)})
        add_version(root, name, estimator.fit(sample.to_numpy(), None), sample, margin=1e6)
    environ = {
        "MODEL_DIR": str(root),
        "WEB_CONCURRENCY": "1",
        "MAX_REQUESTS": "0",
        "INFERENCE_TIMEOUT_SECONDS": "2",
        "EXECUTOR_MEMORY_BYTES": str(64 << 20),
    }
    with Service(environ) as running:
        yield running


def ask(service: Service, model: str, verb: str, *rows: list[float]) -> httpx.Response:
    return httpx.post(f"{service.address}/v1/models/{model}:{verb}", json={"instances": list(rows)}, timeout=60)


def test_any_model_is_explained_by_sampling(isolated: Service) -> None:
    answer = ask(isolated, "sleeper", "explain", [0.001, 2.0], [0.0, 1.0])
    assert answer.status_code == 200, answer.text
    items: list[dict[str, Any]] = answer.json()["explanations"]
    assert [item["method"] for item in items] == ["exact", "exact"]
    assert [item["output"] for item in items] == [0.001, 0.0]
    for item in items:
        assert item["base_value"] + sum(item["values"].values()) == pytest.approx(item["output"], abs=1e-9)
        assert item["values"]["other"] == pytest.approx(0)


def test_model_that_is_too_slow_for_a_request_says_so(isolated: Service) -> None:
    answer = ask(isolated, "ponderer", "explain", [0.0, 1.0])
    assert answer.status_code == 422
    assert "too long" in answer.json()["detail"]
    assert isolated.get("/v1/models/ponderer")["explainer"]["jobs_only"]
    assert "/v1/models/ponderer:explain" not in isolated.get("/openapi.json")["paths"]
    assert ask(isolated, "ponderer", "predict", [0.0, 1.0]).status_code == 200


def test_explanation_that_hangs_is_killed_at_its_deadline_and_the_worker_lives_on(isolated: Service) -> None:
    workers = isolated.workers
    answer = ask(isolated, "sleeper", "explain", [600.0, 2.0])
    assert answer.status_code == 504
    assert ask(isolated, "sleeper", "explain", [0.0005, 2.0]).status_code == 200
    assert ask(isolated, "sleeper", "predict", [0.0005, 2.0]).status_code == 200
    assert isolated.workers == workers
    assert "stuck" not in isolated.log()


def test_explanation_that_eats_memory_is_refused_and_the_worker_lives_on(isolated: Service) -> None:
    workers = isolated.workers
    answer = ask(isolated, "greedy", "explain", [1000.0, 2.0])
    assert answer.status_code == 413
    assert "memory" in answer.json()["detail"]
    assert ask(isolated, "greedy", "explain", [1.0, 2.0]).status_code == 200
    assert isolated.workers == workers


def test_explanations_by_another_budget_are_not_taken_from_the_cache(tmp_path: Path) -> None:
    columns = [f"x{index}" for index in range(8)]
    sample = pd.DataFrame(np.random.default_rng(0).normal(size=(30, 8)), columns=columns)
    target = sample.product(axis=1) + sample["x0"]
    add_version(tmp_path, "curved", SVR().fit(sample.to_numpy(), target), sample)
    row = sample.iloc[0].tolist()
    with redis_server() as redis:

        def answer_of(evaluations: int) -> httpx.Response:
            environ = {"MODEL_DIR": str(tmp_path), "WEB_CONCURRENCY": "1", "REDIS_URL": redis.url}
            with Service(environ | {"SHAP_MAX_EVALS": str(evaluations)}) as service:
                return ask(service, "curved", "explain", row)

        computed = answer_of(50)
        assert computed.headers["x-cache"] == "miss"

        def is_found_again() -> bool:
            again = answer_of(50)
            assert again.content == computed.content
            return again.headers["x-cache"] == "hit-redis"

        assert eventually(is_found_again), "not at once: a Redis that does not answer soon is not waited for"
        by_another = answer_of(100)
    assert by_another.headers["x-cache"] == "miss"
    assert by_another.content != computed.content


def test_processes_of_explanations_end_with_the_service(isolated: Service) -> None:
    ask(isolated, "sleeper", "explain", [0.0007, 2.0])
    (worker,) = isolated.workers
    (zygote,) = child_pids(worker)
    children = child_pids(zygote)
    assert children
    isolated.stop()
    assert eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in (worker, zygote, *children)))


def test_models_whose_explanations_are_quick_cost_no_process(service: Service) -> None:
    before = {pid for worker in service.workers for pid in descendants(worker)}
    example = service.get("/v1/models/wine")["example"]
    answer = httpx.post(f"{service.address}/v1/models/wine:explain", json={"instances": [example]}, timeout=30)
    assert answer.status_code == 200
    assert {pid for worker in service.workers for pid in descendants(worker)} <= before
