"""Interactions over HTTP: in answers, streams and jobs, and apart from explanations without them in the cache."""

from __future__ import annotations

import json
from typing import Any

import httpx
import numpy as np
import pytest

from harness.jobs import call, ended
from harness.service import Service
from harness.sse import Stream
from tests.serving.http.test_explain import variants

PATH = "/v1/models/breast-cancer:explain"
PARAMETERS = {"interactions": True}


@pytest.fixture(scope="module")
def instances(client: httpx.Client) -> list[Any]:
    return variants(client, "breast-cancer", 5)


@pytest.fixture(scope="module")
def explained(client: httpx.Client, instances: list[Any]) -> list[dict[str, Any]]:
    plain = client.post(PATH, json={"instances": instances}).json()["explanations"]
    answer = client.post(PATH, json={"instances": instances, "parameters": PARAMETERS})
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["explanations"]
    assert [{name: value for name, value in one.items() if name != "interactions"} for one in found] == plain
    return found


def test_rows_add_up_to_the_values(explained: list[dict[str, Any]]) -> None:
    for one in explained:
        sums = {name: sum(row.values()) for name, row in one["interactions"].items()}
        assert sums == pytest.approx(one["values"], abs=1e-12)
        matrix = np.array([list(row.values()) for row in one["interactions"].values()])
        assert np.abs(matrix - np.diag(np.diag(matrix))).max() > 0


@pytest.mark.anyio
async def test_streams_have_them(service: Service, instances: list[Any], explained: list[dict[str, Any]]) -> None:
    body = json.dumps({"instances": instances, "parameters": PARAMETERS}).encode()
    async with Stream(service.address, PATH, method="POST", body=body) as answer:
        frames = [frame async for frame in answer]
    assert [json.loads(frame["data"]) for frame in frames[:-1]] == explained


def test_jobs_have_them(service: Service, instances: list[Any], explained: list[dict[str, Any]]) -> None:
    body = {"operation": "explain", "model": "breast-cancer", "instances": instances, "parameters": PARAMETERS}
    job = ended(service, call(service, "POST", "/v1/jobs", json.dumps(body).encode(), Content_Type="application/json"))
    assert job["state"] == "done"
    assert call(service, "GET", job["result"]).json["explanations"] == explained
    table = call(service, "GET", job["result"], Accept="text/csv").body.decode().splitlines()
    assert len(table) == len(instances) + 1


def test_models_without_them_and_importance_refuse(client: httpx.Client, instances: list[Any]) -> None:
    example = client.get("/v1/models/wine").json()["example"]
    for verb in ("explain", "predict"):
        body = {"instances": [example], "parameters": PARAMETERS}
        refused = client.post(f"/v1/models/wine:{verb}", json=body)
        assert refused.status_code == 422
        assert "interactions are those of compiled trees" in refused.json()["detail"]
    body = {"operation": "importance", "model": "breast-cancer", "instances": instances, "parameters": PARAMETERS}
    refused = client.post("/v1/jobs", json=body)
    assert (refused.status_code, refused.json()["detail"]) == (422, "interactions are a parameter of explanations")
