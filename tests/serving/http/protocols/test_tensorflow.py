"""Clients of TensorFlow Serving and of KServe's first protocol, at the paths that we have anyway."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import httpx
import pytest

from harness.service import ROOT

MODELS = ["diabetes", "wine", "mortgage"]
PREDICT = "/v1/models/{}:predict"


def example(client: httpx.Client, model: str) -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"/v1/models/{model}").json()["example"]
    return found


def columns(instance: dict[str, Any], count: int) -> dict[str, list[Any]]:
    return {name: [value] * count for name, value in reversed(instance.items())}


@pytest.mark.parametrize("model", MODELS)
def test_inputs_by_column_are_answered_by_outputs(client: httpx.Client, model: str) -> None:
    instance = example(client, model)
    expected = client.post(PREDICT.format(model), json={"instances": [instance] * 3}).json()["predictions"]
    for path in (PREDICT.format(model), f"/v1/models/{model}/versions/1:predict"):
        answer = client.post(path, json={"inputs": columns(instance, 3), "signature_name": "serving_default"})
        assert answer.status_code == 200, answer.text
        assert answer.json() == {"outputs": expected}
    tensors = {name: [[value] for value in column] for name, column in columns(instance, 3).items()}
    assert client.post(PREDICT.format(model), json={"inputs": tensors}).json() == {"outputs": expected}
    rows = [list(instance.values())] * 3
    assert client.post(PREDICT.format(model), json={"inputs": rows}).json() == {"outputs": expected}


def test_many_inputs_are_read_in_pieces(client: httpx.Client) -> None:
    instance = example(client, "wine")
    answer = client.post(PREDICT.format("wine"), json={"inputs": columns(instance, 1000)})
    assert len(answer.json()["outputs"]) == 1000
    refused = client.post(PREDICT.format("wine"), json={"inputs": columns(instance, 1001)})
    assert refused.status_code == 413
    assert refused.json()["error"] == refused.json()["detail"]


def test_a_name_of_a_signature_changes_nothing(client: httpx.Client) -> None:
    body = {"instances": [example(client, "wine")]}
    expected = client.post(PREDICT.format("wine"), json=body).json()
    for name in ("serving_default", "", None):
        assert client.post(PREDICT.format("wine"), json=body | {"signature_name": name}).json() == expected
    large = {"signature_name": "serving_default", "instances": body["instances"] * 500}
    assert len(client.post(PREDICT.format("wine"), json=large).json()["predictions"]) == 500


def test_a_missing_value_may_be_nan(client: httpx.Client) -> None:
    schema = client.get("/v1/models/mortgage").json()["schema"]["properties"]
    gap = next(name for name, kind in schema.items() if kind.get("type") == ["number", "null"])
    instance = example(client, "mortgage")
    expected = client.post(PREDICT.format("mortgage"), json={"instances": [instance | {gap: None}]}).json()
    content = json.dumps({"inputs": columns(instance | {gap: math.nan}, 1)}).encode()
    answer = client.post(PREDICT.format("mortgage"), content=content, headers={"content-type": "application/json"})
    assert answer.json()["outputs"] == expected["predictions"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"inputs": {}}, "missing"),
        ({"inputs": 5}, "inputs must be an array of rows, or an object"),
        ({"inputs": {"alcohol": 1.5}}, "missing"),
        ({"inputs": []}, "do not fit"),
        ({"inputs": [[1]]}, "do not fit"),
        ({"inputs": [[1]], "instances": [[1]]}, "there is no member `inputs`"),
        ({"instances": [[1]], "signature_name": 5}, "signature_name must be a string"),
        ({"instances": [[1]], "signature_name": "x"}, "do not fit"),
        ({"inputs": [[1]], "outputs": 5}, "there is no member `outputs`"),
        ({"inputs": [[1]], "signature_name": 5}, "signature_name must be a string"),
    ],
)
def test_a_refusal_has_the_member_that_these_clients_read(client: httpx.Client, body: Any, reason: str) -> None:
    answer = client.post(PREDICT.format("wine"), json=body)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert reason in answer.json()["error"]
    assert answer.json()["error"] == answer.json()["detail"]


def test_other_clients_get_no_such_member(client: httpx.Client) -> None:
    assert "error" not in client.post(PREDICT.format("wine"), json={"instances": [[1]]}).json()
    assert client.post("/v1/models/wine:explain", json={"inputs": [[1]]}).status_code == 422


def test_a_model_is_ready_and_its_versions_are_available(client: httpx.Client) -> None:
    for found in (client.get("/v1/models/wine").json(), client.get("/v1/models/wine/versions/1").json()):
        assert (found["name"], found["ready"]) == ("wine", True)
        assert found["model_version_status"] == [
            {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
        ]
    assert all(model["ready"] is True and model["name"] for model in client.get("/v1/models").json()["models"])


def test_the_curl_lines_of_the_guide_work(client: httpx.Client) -> None:
    _, section = (ROOT / "GUIDE.md").read_text().split("### MLflow, TensorFlow Serving and the platforms")
    lines = re.findall(r"curl -s http://[^/]+(\S+) -H 'Content-Type: application/json' -d '([^']+)'", section)
    found = [client.post(path, content=body, headers={"content-type": "application/json"}) for path, body in lines[:2]]
    assert [list(answer.json()) for answer in found] == [["predictions"], ["outputs"]]


@pytest.mark.parametrize("accept", ["*/*", "application/json", ""])
def test_the_service_says_that_it_is_alive_unless_a_page_is_asked_for(client: httpx.Client, accept: str) -> None:
    answer = client.get("/", headers={"accept": accept})
    assert (answer.status_code, answer.json()) == (200, {"status": "alive"})


def test_metadata_names_a_tensor_for_each_feature(client: httpx.Client) -> None:
    for path in ("/v1/models/mortgage/metadata", "/v1/models/mortgage/versions/1/metadata"):
        found = client.get(path).json()
        assert found["model_spec"] == {"name": "mortgage", "signature_name": "", "version": "1"}
        signature = found["metadata"]["signature_def"]["signature_def"]["serving_default"]
        model = client.get("/v1/models/mortgage").json()
        assert list(signature["inputs"]) == model["features"]
        assert {"DT_STRING", "DT_DOUBLE"} <= {tensor["dtype"] for tensor in signature["inputs"].values()}
        assert [one["size"] for one in signature["outputs"]["probabilities"]["tensor_shape"]["dim"]] == [
            "-1",
            str(len(model["classes"])),
        ]
    refused = client.get("/v1/models/none/metadata")
    assert (refused.status_code, refused.json()["error"]) == (404, refused.json()["detail"])
