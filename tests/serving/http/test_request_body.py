"""What can be read: models, versions, health, the admin's figures; and the refusals that all routes share."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from examples.train import DEMOS
from harness.service import ADMIN_TOKEN, Service


def test_models_are_listed_by_name(client: httpx.Client) -> None:
    models = client.get("/v1/models").json()["models"]
    assert [model["name"] for model in models] == sorted(demo.name for demo in DEMOS)
    assert models[-1] == {
        "name": "wine",
        "version": "1",
        "ready": True,
        "live": "1",
        "previous": None,
        "versions": ["1"],
        "task": "classification",
        "estimator": "StandardScaler | LogisticRegression",
        "compiled": True,
        "python_steps": [],
        "reason": "",
        "fallback": False,
        "forced": "",
        "entities": False,
        "kind": None,
        "explainer": {
            "method": "linear",
            "space": "margin",
            "jobs_only": False,
            "spaces": ["margin", "probability"],
        },
    }


def test_model_tells_what_it_takes_and_where_it_comes_from(client: httpx.Client, models: Path) -> None:
    wine = client.get("/v1/models/wine").json()
    assert wine["classes"] == ["class_0", "class_1", "class_2"]
    assert wine["features"] == list(wine["example"]) == list(wine["schema"]["properties"])
    assert wine["schema"]["required"] == wine["features"]
    assert len(wine["sha256"]) == 64
    assert wine["metrics"]["accuracy"] > 0.9
    assert "CC BY 4.0" in wine["source"]
    assert {"python", "scikit-learn"} <= wine["libraries"].keys()
    assert str(models) not in str(wine)


def test_model_tells_how_it_is_explained_and_which_features_matter(client: httpx.Client) -> None:
    mortgage = client.get("/v1/models/mortgage").json()
    assert mortgage["explainer"] == {
        "method": "tree-path-dependent",
        "space": "margin",
        "jobs_only": False,
        "spaces": ["margin", "probability"],
    }
    assert mortgage["not_explained"] == ""
    assert list(mortgage["importance"]) == mortgage["features"]
    assert max(mortgage["importance"], key=mortgage["importance"].get) == "meets_guidelines"


def test_version_is_shown_like_the_model_when_it_is_the_newest(client: httpx.Client) -> None:
    assert client.get("/v1/models/wine/versions/1").json() == client.get("/v1/models/wine").json()


@pytest.mark.parametrize(
    "path",
    ["/v1/models/none", "/v1/models/wine/versions/2", "/v1/models/none/versions/1", "/v1", "/v3", "/v1/models/"],
)
def test_what_is_not_there_is_a_problem(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["type"], problem["title"], problem["status"]) == ("about:blank", "Not Found", 404)
    assert problem["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/models/wine", "/health", "/health/live", "/health/ready", "/openapi.json"]
)
@pytest.mark.parametrize("method", ["DELETE", "QUERY"])
def test_what_can_only_be_read_refuses_other_methods(client: httpx.Client, path: str, method: str) -> None:
    answer = client.request(method, path)
    assert answer.status_code == 405
    assert "GET" in answer.headers["allow"]
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


def test_prediction_by_get_is_refused(client: httpx.Client) -> None:
    answer = client.get("/v1/models/wine:predict")
    assert (answer.status_code, answer.headers["allow"]) == (405, "OPTIONS, POST")


def test_health_is_good_and_counts_models(client: httpx.Client, service: Service) -> None:
    answer = client.get("/health")
    assert answer.status_code == 200
    assert (answer.json()["status"], answer.json()["models"], answer.json()["fallbacks"]) == ("ok", len(DEMOS), [])
    worker = answer.json()["worker"]
    assert worker["pid"] in service.workers
    assert worker["rss_bytes"] > 1024 * 1024
    assert worker["age_seconds"] >= 0


@pytest.mark.parametrize("path", ["/health/live", "/health/ready"])
def test_probes_are_answered(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {ADMIN_TOKEN}"},
        {"Authorization": f"bearer {ADMIN_TOKEN}"},
        {"X-Admin-Token": ADMIN_TOKEN},
    ],
)
def test_admin_sees_the_figures_of_all_processes(
    client: httpx.Client, service: Service, headers: dict[str, str]
) -> None:
    answer = client.get("/api/admin/metrics", headers=headers)
    assert answer.status_code == 200
    assert {worker["pid"] for worker in answer.json()["workers"]} == set(service.workers)
    assert answer.json()["master"]["pid"] == service.master
    assert answer.json()["pss_bytes"] > 0


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": ADMIN_TOKEN},
        {"Authorization": f"Basic {ADMIN_TOKEN}"},
        {"Authorization": f"Bearer {ADMIN_TOKEN[:-1]}"},
        {"Authorization": f"Bearer {ADMIN_TOKEN}x"},
        {"Authorization": f"Bearer {ADMIN_TOKEN.upper()}"},
        {"Authorization": f"Bearer {ADMIN_TOKEN[0]}"},
        {"Authorization": b"Bearer \xff\xfe\xe2\x80\xae"},
        {"Authorization": b"\xff"},
        {"X-Admin-Token": b"\xc3\xa9" * 20},
        {"X-Admin-Token": "x" * 10_000},
        {"Cookie": f"admin_token={ADMIN_TOKEN}"},
    ],
)
def test_admin_is_refused_without_the_token(client: httpx.Client, headers: dict[str, str]) -> None:
    answer = client.get("/api/admin/metrics", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert ADMIN_TOKEN not in answer.text


def test_token_in_the_address_is_refused_and_not_logged(client: httpx.Client, service: Service) -> None:
    for name in ("token", "admin_token", "access_token"):
        assert client.get("/api/admin/metrics", params={name: ADMIN_TOKEN}).status_code == 401
    assert ADMIN_TOKEN not in service.log()
