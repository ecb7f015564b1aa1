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


HTML = {"Accept": "text/html"}


def test_a_dependence_is_coloured_by_another_feature(client: httpx.Client) -> None:
    asked = {"feature": "proline", "by": "flavanoids", "classes": "class_0"}
    (output,) = client.get(PATH, params=asked).json()["outputs"]
    found = output["dependence_by"]
    means = [mean for group in found["groups"] for mean in group["mean"] if mean is not None]
    assert len(found["groups"]) == 2
    assert means
    page = client.get("/models/wine/importance", params=asked | {"class": "class_0"}, headers=HTML).text
    assert page.count('<circle class="r0"') > 0
    assert '<option value="flavanoids" selected>' in page
    for mean in means:
        assert f'value="{mean}"' in page, "the table behind the chart has every point"
    refused = client.get(PATH, params={"feature": "proline", "by": "nothing"})
    assert refused.status_code == 422
    assert "features of the model" in refused.json()["detail"]


def test_pairs_of_features_are_there_for_those_who_ask(client: httpx.Client) -> None:
    found = client.get("/v1/models/mortgage/importance", params={"interactions": "true"}).json()
    assert "interactions" not in client.get("/v1/models/mortgage/importance").json()["outputs"][0]
    largest = found["outputs"][0]["interactions"][0]
    page = client.get("/models/mortgage/importance", params={"interactions": "true"}, headers=HTML).text
    assert f'value="{largest["mean"]}"' in page
    assert client.get(PATH, params={"interactions": "perhaps"}).status_code == 422
    assert "What features do together" not in client.get("/models/mortgage/importance", headers=HTML).text


def test_the_page_shows_the_rows_of_a_job(client: httpx.Client) -> None:
    described = client.get("/v1/models/wine").json()
    rows = [described["example"] | {"proline": 400.0 + 10 * number} for number in range(40)]
    sent = {"operation": "importance", "model": "wine", "instances": rows}
    job = client.post("/v1/jobs", json=sent).json()["id"]
    with client.stream("GET", f"/v1/jobs/{job}/events") as events:
        for _ in events.iter_lines():
            pass
    shown = client.get(
        "/models/wine/importance", params={"job": job, "feature": "proline", "by": "alcohol"}, headers=HTML
    )
    assert shown.status_code == 200, shown.text
    assert "A point for each row" in shown.text
    assert "40</data> rows" in shown.text
    assert f"/v1/jobs/{job}/result" in shown.text
    assert f"/models/wine/importance?job={job}" in client.get(f"/jobs/{job}", headers=HTML).text
    assert client.get("/models/diabetes/importance", params={"job": job}, headers=HTML).status_code == 404
    assert client.get("/models/wine/importance", params={"job": "none"}, headers=HTML).status_code == 404
