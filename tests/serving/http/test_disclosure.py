"""What a service shows of its models' data and of other clients: made-up examples, and headers that can be hidden."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from harness.apps import ask_app
from registry.model import LoadedModel
from serving.app import Application, build, build_alerts
from serving.cli.client import make_instance
from serving.settings import Settings

Ask = Callable[..., httpx.Response]
TIMING = {"x-cache", "server-timing"}


def app(models: Path, data: Path, **options: Any) -> Application:
    settings = Settings(model_dir=models, data_dir=data, **options)
    return build(settings, build_alerts(settings))


@pytest.fixture(scope="module")
def shown(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Application:
    return app(models, tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def hidden(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Application:
    return app(models, tmp_path_factory.mktemp("data"), show_examples=False, show_timing=False)


def _is_of_somebody(model: LoadedModel, instance: dict[str, Any]) -> bool:
    return list(instance.values()) in [list(row) for row in model.manifest.background]


def test_examples_fit_and_are_answered_and_are_nobodys_row(shown: Application) -> None:
    for model in shown.service.registry:
        example = ask_app(shown, "GET", f"/v1/models/{model.name}").json()["example"]
        jsonschema.validate(example, model.instance_schema)
        assert not _is_of_somebody(model, example), model.name
        assert _is_of_somebody(model, model.manifest.example), "that one is for trials"
        assert len(model.predict(model.schema.rows([example]))) == 1


def test_every_example_of_the_document_is_the_made_up_one(shown: Application) -> None:
    document = ask_app(shown, "GET", "/openapi.json").json()
    found = list(_members(document, "example"))
    assert len(found) > 4
    made_up = [{"instances": [model.example]} for model in shown.service.registry]
    assert [example for example in found if example not in made_up] == []


def test_hidden_examples_are_nowhere(hidden: Application) -> None:
    for model in hidden.service.registry:
        for path in (f"/v1/models/{model.name}", f"/v1/models/{model.name}/versions/{model.version}"):
            assert ask_app(hidden, "GET", path).json()["example"] is None
    assert list(_members(ask_app(hidden, "GET", "/openapi.json").json(), "example")) == []


def test_distributions_are_shares_of_many_rows(hidden: Application) -> None:
    for model in hidden.service.registry:
        found = ask_app(hidden, "GET", f"/v1/models/{model.name}").json()["distributions"]
        assert set(found["features"]) == set(model.schema.names)
        for one in (*found["features"].values(), found["output"]):
            shares = sum(one["shares"]) + one.get("missing", 0.0) + one.get("other", 0.0)
            assert shares == pytest.approx(1.0, abs=0.01)
            assert len(one["values"] if "values" in one else one["edges"][1:]) == len(one["shares"])
        for feature in model.manifest.features:
            if feature.kind == "category":
                assert set(found["features"][feature.name]["values"]) <= set(feature.categories)
        if model.labels.classes:
            assert set(found["output"]["values"]) <= set(model.labels.classes)


def test_commands_make_an_instance_up_where_examples_are_hidden(hidden: Application) -> None:
    for model in hidden.service.registry:
        instance = make_instance(ask_app(hidden, "GET", f"/v1/models/{model.name}").json()["schema"])
        assert len(model.schema.rows([instance])) == 1


@pytest.mark.parametrize("path", ["/v1/models/wine:predict", "/v1/models/wine:explain"])
def test_headers_that_tell_of_other_clients_can_be_hidden(shown: Application, hidden: Application, path: str) -> None:
    body = {"instances": [hidden.service.registry.get("wine").example]}
    assert ask_app(shown, "POST", path, json=body).headers.keys() >= TIMING
    for _ in range(2):
        answer = ask_app(hidden, "POST", path, json=body)
        assert (answer.status_code, answer.headers.keys() & TIMING) == (200, set())


def test_they_are_hidden_of_entities_too(shown: Application, hidden: Application) -> None:
    model = next(model for model in shown.service.registry if model.manifest.entities)
    for one, expected in ((shown, TIMING), (hidden, set())):
        assert ask_app(one, "POST", "/v1/entities/e/records", json={"values": model.example}).status_code == 201
        answer = ask_app(one, "GET", f"/v1/entities/e/predictions?models={model.name}")
        assert (answer.status_code, answer.headers.keys() & TIMING) == (200, expected)


def _members(value: Any, name: str) -> Any:
    """Every member of this name, at any depth."""
    if isinstance(value, list):
        for inner in value:
            yield from _members(inner, name)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key == "properties":  # of schemas, where names are those of members
                yield from _members(list(inner.values()), name)
                continue
            if key == name:
                yield inner
            yield from _members(inner, name)
