"""`forkserve check`: every fault that would keep a service from working as it should."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from harness.estimators import ExplainShyRegressor, ForkShyRegressor
from harness.service import ROOT
from registry.store.add import add_version
from tests.conftest import Run
from tests.serving.cli.conftest import add_churn


def test_check_names_every_fault_on_a_line_of_its_own(run: Run, churn: Path) -> None:
    add_churn(churn, "churn", 2)
    add_churn(churn, "good", 1)
    with (churn / "models/churn/1/model.joblib").open("ab") as artefact:
        artefact.write(b"!")
    (churn / "models/churn/2/manifest.json").write_text("{}")
    checked = run("check")
    assert checked.returncode == 1
    first, second = checked.stderr.splitlines()
    assert "churn/1/model.joblib: has sha256" in first
    assert "churn/2/manifest.json: is not a manifest" in second


def test_check_names_what_schedules_and_redis_cannot_do(run: Run, churn: Path) -> None:
    add_churn(churn, "churn", 1)
    checked = run("check", SCHEDULES="a: every 1h: train nope; b: every 1h: train churn; c: every 1h: reload")
    assert checked.returncode == 1
    first, second = checked.stderr.splitlines()
    assert first.startswith("forkserve: SCHEDULES: 'a': there is no model 'nope'")
    assert second.startswith("forkserve: SCHEDULES: 'b': churn/1 has no training function")
    checked = run("check", REDIS_URL="redis://user:secret@there/zero")
    assert checked.returncode == 1
    assert checked.stderr.startswith("forkserve: REDIS_URL 'redis://there' is not valid")


@pytest.mark.parametrize("kind", [ForkShyRegressor, ExplainShyRegressor])
def test_check_finds_a_model_that_fails_only_after_the_fork(
    tmp_path: Path, run: Run, kind: type[ForkShyRegressor]
) -> None:
    sample = pd.DataFrame({"seconds": [0.0, 0.001, 0.002], "others": [0.0, 0.001, 0.0]})
    estimator = kind().fit(sample.to_numpy(), None)
    add_version(tmp_path / "models", "shy", estimator, sample)
    checked = run("check", PYTHONPATH=str(ROOT))
    assert checked.returncode == 1
    assert checked.stderr.splitlines()[-1].endswith("models/shy/1: RuntimeError: this is another process")


@pytest.mark.usefixtures("churn")
def test_a_wrong_setting_is_named(run: Run) -> None:
    refused = run("models", PORT="-1")
    assert (refused.returncode, refused.stderr) == (1, "forkserve: PORT must be at least 0\n")


@pytest.mark.usefixtures("two_versions")
def test_check_names_a_variable_that_is_almost_a_setting(run: Run) -> None:
    checked = run("check", MAX_REQEUSTS="7")
    assert checked.returncode == 1
    assert checked.stderr == "forkserve: MAX_REQEUSTS is not a setting; did you mean MAX_REQUESTS?\n"


def test_check_without_models_says_what_to_do(run: Run) -> None:
    assert "forkserve train" in run("check").stderr


def test_check_refuses_a_service_that_is_open_to_the_network(run: Run, churn: Path) -> None:
    run("add", "churn.joblib", "--name", "churn", "--data", "churn.csv")
    for host, environ, status in (
        ("127.0.0.1", {}, 0),
        ("::1", {}, 0),
        ("0.0.0.0", {}, 1),
        ("0.0.0.0", {"ROLES": "worker"}, 0),
        ("0.0.0.0", {"API_KEY": "a-key-of-enough-characters"}, 0),
        ("0.0.0.0", {"API_KEYS_FILE": "nowhere"}, 1),
        ("127.0.0.1", {"REQUIRE_KEYS": "true"}, 1),
    ):
        assert run("check", HOST=host, **environ).returncode == status, (host, environ)
