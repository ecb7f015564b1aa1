"""The Render blueprints: valid by the published schema, and right where the schema would let a mistake pass."""

from __future__ import annotations

import dataclasses
import json
import shlex
from typing import Any

import jsonschema
import pytest
import yaml

from harness.service import ROOT
from serving.cli.parser import parser
from serving.settings import Settings

Service = dict[str, Any]

DOCUMENTS = {path.name: yaml.safe_load(path.read_text()) for path in ROOT.glob("render*.yaml")}
BLUEPRINTS = {name: document["services"] for name, document in DOCUMENTS.items()}
GROUPS = {
    group["name"]: group["envVars"] for document in DOCUMENTS.values() for group in document.get("envVarGroups", [])
}
SERVICES = {f"{name}-{service['name']}": service for name, inside in BLUEPRINTS.items() for service in inside}
OURS = {field.name.upper() for field in dataclasses.fields(Settings)}


def variables(service: Service) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for variable in service.get("envVars", []):
        found |= {one["key"]: one for one in GROUPS.get(variable.get("fromGroup"), [variable])}
    return found


def values(service: Service) -> dict[str, str]:
    """The variables whose values are known before the deploy."""
    return {key: variable["value"] for key, variable in variables(service).items() if "value" in variable}


def of_type(*types: str) -> list[Any]:
    return [pytest.param(service, id=name) for name, service in SERVICES.items() if service["type"] in types]


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_a_blueprint_is_valid_by_the_published_schema(name: str) -> None:
    schema = json.loads((ROOT / "tests/specs/render-blueprint.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(DOCUMENTS[name])


def test_render_yaml_names_every_setting_and_the_group_changes_no_default() -> None:
    web = next(service for service in BLUEPRINTS["render.yaml"] if service["type"] == "web")
    # Render sets PORT itself, only Vertex AI sets its routes, and the key of Supabase has two names
    elsewhere = {"PORT", "AIP_HEALTH_ROUTE", "AIP_PREDICT_ROUTE", "SUPABASE_SERVICE_ROLE_KEY"}
    assert OURS - variables(web).keys() == elsewhere
    (group,) = GROUPS.values()
    assert Settings.from_env({variable["key"]: variable["value"] for variable in group}) == Settings()
    own = [variable["key"] for variable in web["envVars"] if "key" in variable]
    assert not {variable["key"] for variable in group} & set(own), "what stands twice is easily changed in vain"


def test_render_yaml_leaves_room_on_its_plan_for_a_job_and_a_training() -> None:
    web = next(service for service in BLUEPRINTS["render.yaml"] if service["type"] == "web")
    settings = Settings.from_env(values(web))
    assert web["plan"] == "starter"
    assert settings.job_memory_bytes == settings.train_memory_bytes == 128 * 1024 * 1024


@pytest.mark.parametrize("service", of_type("web"))
def test_a_web_service_is_reached_watched_and_drained(service: Service) -> None:
    settings = Settings.from_env(values(service))
    assert service["startCommand"] == "gunicorn -c serving/master/gunicorn_conf.py main:app"
    assert service["preDeployCommand"] == "forkserve check"
    assert service["healthCheckPath"] == "/health"
    assert settings.host == "0.0.0.0"
    assert service["maxShutdownDelaySeconds"] > settings.graceful_timeout_seconds
    # Render's own value would override gunicorn_conf.py
    assert values(service)["GUNICORN_CMD_ARGS"] == "--name=forkserve"
    assert variables(service)["ADMIN_TOKEN"]["generateValue"] is True


@pytest.mark.parametrize("service", of_type("web"))
def test_each_client_of_a_web_service_is_limited(service: Service) -> None:
    settings = Settings.from_env(values(service))
    assert settings.rate_limit
    assert settings.max_streams_per_address > 0
    assert settings.trusted_proxy_count == 2, "without it all clients would share one limit"


@pytest.mark.parametrize("service", of_type("worker", "cron"))
def test_what_answers_no_requests_has_no_health_check(service: Service) -> None:
    assert "healthCheckPath" not in service  # the schema allows it for a worker, Render does not
    assert "HOST" not in variables(service)


@pytest.mark.parametrize("service", of_type("web", "worker", "cron"))
def test_settings_are_ones_that_are_there_and_are_taken(service: Service) -> None:
    Settings.from_env(values(service))
    assert set(variables(service)) - OURS - {"GUNICORN_CMD_ARGS", "FORKSERVE"} == set()


@pytest.mark.parametrize("service", of_type("web", "worker", "cron"))
def test_no_secret_is_written_down(service: Service) -> None:
    secret = {field.name.upper() for field in dataclasses.fields(Settings) if not field.repr}
    assert "ADMIN_TOKEN" in secret
    assert secret & set(values(service)) == set()


@pytest.mark.parametrize("service", of_type("web", "worker", "cron"))
def test_commands_are_ones_that_are_there(service: Service) -> None:
    for command in (service["startCommand"], service.get("preDeployCommand", "forkserve check")):
        program, *arguments = shlex.split(command)
        assert program in ("forkserve", "gunicorn")
        if program == "forkserve":
            parser().parse_args(arguments)


@pytest.mark.parametrize("service", of_type("web", "worker", "cron"))
def test_dependencies_are_installed_with_their_hashes(service: Service) -> None:
    assert service["buildCommand"].startswith("pip install --require-hashes -r requirements.txt && ")


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_services_refer_to_services_that_are_there(name: str) -> None:
    there = {(service["type"], service["name"]) for service in BLUEPRINTS[name]}
    referred = {
        (variable["fromService"]["type"], variable["fromService"]["name"])
        for service in BLUEPRINTS[name]
        for variable in service.get("envVars", [])
        if "fromService" in variable
    }
    assert {
        variable["fromGroup"]
        for service in BLUEPRINTS[name]
        for variable in service.get("envVars", [])
        if "fromGroup" in variable
    } <= {group["name"] for group in DOCUMENTS[name].get("envVarGroups", [])}
    assert referred
    assert referred - there == set()


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_somebody_runs_jobs_and_only_one_kind_of_service_answers_requests(name: str) -> None:
    roles = [
        role
        for service in BLUEPRINTS[name]
        if service["type"] in ("web", "worker")
        for role in values(service)["ROLES"].split(",")
    ]
    assert roles.count("web") == roles.count("worker") == 1


@pytest.mark.parametrize("service", of_type("keyvalue"))
def test_the_key_value_forgets_what_the_cache_keeps_and_no_jobs(service: Service) -> None:
    assert service["maxmemoryPolicy"] == "volatile-lru"
    assert service["ipAllowList"] == []
    assert service["persistenceMode"] != "off"
