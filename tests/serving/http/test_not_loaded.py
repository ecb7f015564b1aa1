"""Models that were added after the service had loaded its models: a 404 names them, and what loads them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from harness.apps import ask_app
from serving.app import Application, build, build_alerts, renew
from serving.settings import Settings


def detail(app: Application, method: str, path: str) -> tuple[int, str]:
    outcomes = {"outcomes": [1]} if path.endswith("outcomes") else {}
    answer = ask_app(app, method, path, json={"instances": [{}]} | outcomes)
    return answer.status_code, answer.json()["detail"]


@pytest.mark.parametrize(
    ("method", "path"), [("GET", ""), ("POST", ":predict"), ("POST", ":explain"), ("POST", "/outcomes")]
)
def test_what_was_added_is_named_with_what_loads_it(few_models: Path, tmp_path: Path, method: str, path: str) -> None:
    root = tmp_path / "models"
    shutil.copytree(few_models / "wine", root / "wine")
    settings = Settings(model_dir=root, data_dir=tmp_path / "data")
    app = build(settings, build_alerts(settings))
    assert detail(app, method, f"/v1/models/diabetes{path}") == (
        404,
        "there is no model of that name; GET /v1/models lists all",
    )
    shutil.copytree(few_models / "diabetes", root / "diabetes")
    (root / "wine/2").mkdir()
    assert detail(app, method, f"/v1/models/diabetes{path}") == (
        404,
        "the model diabetes is there but not loaded; a reload does it: POST /api/admin/models:reload",
    )
    if path != "/outcomes":
        of_version = detail(app, method, f"/v1/models/diabetes/versions/1{path}")[1]
        assert of_version.startswith("version 1 of the model diabetes is there but not loaded")
        unfinished = detail(app, method, f"/v1/models/wine/versions/2{path}")
        assert unfinished == (404, "the model has no such version; GET /v1/models lists all")
    successor, _ = renew(app)
    assert successor.service.registry.get("diabetes").version == "1"


@pytest.mark.parametrize("name", ["..", "%2e%2e", "../models", "wine/../diabetes", "a" * 300, "\0"])
def test_no_name_leads_out_of_the_model_directory(few_models: Path, tmp_path: Path, name: str) -> None:
    settings = Settings(model_dir=few_models, data_dir=tmp_path)
    app = build(settings, build_alerts(settings))
    registry = app.service.registry
    assert not registry._is_on_disk(name, None)
    assert not registry._is_on_disk("wine", name)
