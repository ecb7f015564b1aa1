"""Platforms: by their variables alone the service listens where they ask for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.errors import InvalidSetting
from serving.settings import PLATFORMS, Settings
from tests.conftest import Run


@pytest.mark.parametrize(
    ("environ", "port"),
    [
        ({"AIP_HTTP_PORT": "7080"}, 7080),
        ({"AIP_HTTP_PORT": " 7080 ", "AIP_PREDICT_ROUTE": "/predict"}, 7080),
        ({"AIP_PREDICT_ROUTE": "/predict"}, 8080),
        ({"SAGEMAKER_BIND_TO_PORT": "7081"}, 7081),
        ({"SAGEMAKER_CONTAINER_LOG_LEVEL": "20"}, 8080),
        ({"AZUREML_MODEL_DIR": "/var/azureml-app/models"}, 5001),
        ({"K_SERVICE": "churn", "PORT": "7082"}, 7082),
        ({"K_SERVICE": "churn"}, 8080),
    ],
)
def test_a_platform_is_listened_to_on_all_interfaces_at_its_port(environ: dict[str, str], port: int) -> None:
    settings = Settings.from_env(environ)
    assert (settings.host, settings.port) == ("0.0.0.0", port)


def test_host_and_port_of_our_own_win() -> None:
    platforms = {"AIP_HTTP_PORT": "7080", "SAGEMAKER_BIND_TO_PORT": "7081", "K_SERVICE": "x", "AZUREML_MODEL_DIR": "/x"}
    settings = Settings.from_env(platforms | {"HOST": "::1", "PORT": "9000"})
    assert (settings.host, settings.port) == ("::1", 9000)


@pytest.mark.parametrize("port", ["x", "-1", "65536", "80.5"])
@pytest.mark.parametrize("name", ["AIP_HTTP_PORT", "SAGEMAKER_BIND_TO_PORT"])
def test_a_port_that_cannot_be_is_refused_by_the_name_of_its_variable(name: str, port: str) -> None:
    with pytest.raises(InvalidSetting, match=f"^{name} must be"):
        Settings.from_env({name: port})


def test_without_a_platform_the_service_listens_on_loopback_alone() -> None:
    variables = [mark for platform in PLATFORMS for mark in platform.marks]
    assert Settings.from_env(dict.fromkeys(variables, "")) == Settings()


def test_check_names_a_default_model_that_is_not_there(run: Run, few_models: Path) -> None:
    for environ, reason in (
        ({"DEFAULT_MODEL": "nothing"}, "DEFAULT_MODEL must be one of the models: diabetes, wine"),
        ({"AIP_PREDICT_ROUTE": "/predict"}, "DEFAULT_MODEL must name the model of AIP_PREDICT_ROUTE: diabetes, wine"),
    ):
        found = run("check", MODEL_DIR=str(few_models), **environ)
        assert found.returncode == 1
        assert reason in found.stdout + found.stderr
    assert run("check", MODEL_DIR=str(few_models), DEFAULT_MODEL="wine").returncode == 0


@pytest.mark.parametrize(
    ("environ", "is_asked_for"),
    [
        ({"AIP_HTTP_PORT": "7080"}, False),
        ({"SAGEMAKER_BIND_TO_PORT": "7081"}, False),
        ({"K_SERVICE": "churn"}, True),
        ({"HOST": "0.0.0.0"}, True),
    ],
)
def test_check_asks_for_keys_where_others_than_the_platform_may_connect(
    run: Run, environ: dict[str, str], is_asked_for: object
) -> None:
    found = run("check", **environ)
    assert ("anybody may use the service" in found.stdout + found.stderr) is is_asked_for
