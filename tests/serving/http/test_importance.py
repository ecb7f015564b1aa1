"""The importance of features over HTTP: of the background, and of a client's rows as a job."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import httpx
import jsonschema
import numpy as np
import pandas as pd
import pytest
from sklearn.cluster import KMeans

from harness.apps import ask_app
from registry.store.add import add_version
from serving.app import build, build_alerts
from serving.settings import Settings

PATH = "/v1/models/wine/importance"


@pytest.mark.parametrize("model", ["breast-cancer", "diabetes", "mortgage", "wine"])
def test_importance_is_that_of_the_manifest_and_fits_the_document(client: httpx.Client, model: str) -> None:
    answer = client.get(f"/v1/models/{model}/importance")
    assert answer.status_code == 200, answer.text
    found = answer.json()
    shown = client.get(f"/v1/models/{model}").json()
    assert found["importance"] == pytest.approx(shown["importance"])
    assert found["space"] == shown["explainer"]["space"]
    operation = client.get("/openapi.json").json()["paths"]["/v1/models/{model}/importance"]["get"]
    jsonschema.validate(found, operation["responses"]["200"]["content"]["application/json"]["schema"])
    assert client.get(f"/v1/models/{model}/versions/1/importance").json() == found


def test_a_client_that_has_it_is_sent_nothing(client: httpx.Client) -> None:
    first = client.get(PATH)
    assert first.headers["cache-control"] == "private, no-cache"
    again = client.get(PATH, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_it_is_drawn_as_bars(client: httpx.Client) -> None:
    answer = client.get(PATH, params={"top": 3}, headers={"Accept": "image/svg+xml"})
    assert answer.headers["content-type"] == "image/svg+xml"
    said = [
        "".join(text.itertext())
        for text in ElementTree.fromstring(answer.content).iter("{http://www.w3.org/2000/svg}text")
    ]
    assert "other features" in said
    first = next(iter(client.get(PATH).json()["importance"]))
    assert first in said


def test_classes_spaces_and_top_are_chosen_in_the_query(client: httpx.Client) -> None:
    names = client.get("/v1/models/wine").json()["classes"]
    found = client.get(PATH, params={"classes": names[:2], "top": 2, "space": "probability"}).json()
    assert [output["class"] for output in found["outputs"]] == list(map(str, names[:2]))
    assert found["space"] == "probability"
    assert [len(output["importance"]) for output in found["outputs"]] == [3, 3]


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("top=0", "top must be at least 1"),
        ("top=many", "top must be a whole number"),
        ("top=" + "9" * 5000, "top must be a whole number"),
        ("classes=none", "classes must be"),
        ("space=value", "space must be one of"),
    ],
)
def test_what_the_model_cannot_show_is_refused(client: httpx.Client, query: str, reason: str) -> None:
    refused = client.get(f"{PATH}?{query}")
    assert refused.status_code == 422
    assert refused.headers["content-type"] == "application/problem+json"
    assert reason in refused.json()["detail"]


def test_other_models_and_methods_are_refused(client: httpx.Client) -> None:
    assert client.get("/v1/models/none/importance").status_code == 404
    assert client.get("/v1/models/wine/versions/9/importance").status_code == 404
    refused = client.post(PATH)
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD, OPTIONS")


def test_a_model_that_is_not_explained_is_refused_as_explain_refuses_it(tmp_path: Path) -> None:
    table = pd.DataFrame({"x": np.linspace(0.0, 1.0, 40), "y": np.linspace(1.0, 5.0, 40)})
    add_version(tmp_path / "models", "clusters", KMeans(2, n_init=1, random_state=0).fit(table), table)
    settings = Settings(model_dir=tmp_path / "models", data_dir=tmp_path)
    app = build(settings, build_alerts(settings))
    explained = ask_app(app, "POST", "/v1/models/clusters:explain", json={"instances": [{"x": 0.5, "y": 2.0}]})
    summed = ask_app(app, "GET", "/v1/models/clusters/importance")
    assert summed.status_code == explained.status_code == 422
    assert summed.json()["detail"] == explained.json()["detail"]


def test_hidden_examples_hide_points_and_dependences(models: Path, tmp_path: Path) -> None:
    settings = Settings(model_dir=models, data_dir=tmp_path, show_examples=False)
    app = build(settings, build_alerts(settings))
    for model in app.service.registry.live():
        found = ask_app(app, "GET", f"/v1/models/{model.name}/importance").json()
        assert found["outputs"]
        for output in found["outputs"]:
            assert not output.keys() & {"points", "dependence"}
