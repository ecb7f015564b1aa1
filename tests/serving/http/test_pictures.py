"""Pictures over HTTP: asked for by `Accept`, of one instance."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import httpx
import pytest

SVG = "image/svg+xml"


def draw(client: httpx.Client, model: str, count: int = 1, accept: str = SVG, **parameters: Any) -> httpx.Response:
    example = client.get(f"/v1/models/{model}").json()["example"]
    body = {"instances": [example] * count, "parameters": parameters}
    return client.post(f"/v1/models/{model}:explain", json=body, headers={"Accept": accept})


@pytest.mark.parametrize("model", ["breast-cancer", "diabetes", "wine", "mortgage"])
def test_an_explanation_is_drawn(client: httpx.Client, model: str) -> None:
    answer = draw(client, model)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == SVG
    said = "".join(ElementTree.fromstring(answer.content).itertext())
    assert f"{model} 1" in said
    numbers = draw(client, model, accept="application/json").json()["explanations"][0]
    largest = max(numbers["values"], key=lambda name: abs(numbers["values"][name]))
    assert numbers.get("labels", {}).get(largest, largest)[:12] in said


def test_an_explanation_is_drawn_where_json_and_streams_are_less_welcome(client: httpx.Client) -> None:
    answer = draw(client, "wine", accept="text/html, image/svg+xml;q=0.9, application/json;q=0.5")
    assert answer.headers["content-type"] == SVG
    assert draw(client, "wine", accept="*/*").headers["content-type"] == "application/json"
    body = {"instances": [client.get("/v1/models/wine").json()["example"]]}
    predicted = client.post("/v1/models/wine:predict", json=body, headers={"Accept": SVG})
    assert predicted.headers["content-type"] == "application/json"


def test_a_picture_shows_the_top_and_the_classes_that_are_asked_for(client: httpx.Client) -> None:
    said = "".join(ElementTree.fromstring(draw(client, "wine", top=2, classes="all").content).itertext())
    classes = client.get("/v1/models/wine").json()["classes"]
    assert all(f"wine 1: {name}" in said for name in classes)
    assert said.count("other features") >= len(classes)


@pytest.mark.parametrize(
    ("count", "parameters", "reason"),
    [
        (2, {}, "shows one instance"),
        (1, {"top": 31}, "at most 30 features"),
        (1, {"top": 0}, "top must be at least 1"),
        (1, {"space": "value"}, "space must be one of"),
    ],
)
def test_what_one_picture_cannot_show_is_refused(
    client: httpx.Client, count: int, parameters: dict[str, Any], reason: str
) -> None:
    refused = draw(client, "wine", count, **parameters)
    assert refused.status_code == 422
    assert refused.headers["content-type"] == "application/problem+json"
    assert reason in refused.json()["detail"]
