"""A service over models that would harm it: they are left out and named, and can be removed while it runs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import joblib
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression

from harness.estimators import CrashingRegressor, EndingRegressor, HangingRegressor, HarmfulRegressor, ThreadedRegressor
from harness.jobs import Answer, call
from harness.processes import DIABETES, PATIENCE, eventually
from harness.service import ADMIN_TOKEN, FORKSERVE, Service
from registry.store.add import add_version
from serving.process.kernel import thread_names
from tests.conftest import FEW_MODELS

HARMFUL: dict[str, tuple[type[HarmfulRegressor], str]] = {
    "crashing": (CrashingRegressor, "its process was ended by signal 11, Segmentation fault"),
    "ending": (EndingRegressor, "its process exited with status 3"),
    "hanging": (HangingRegressor, "takes longer than 5 s"),
    "threaded": (ThreadedRegressor, "starts threads: trial, trial"),
}


@pytest.fixture(scope="module")
def harmful(few_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two good models, and some that do harm when they are loaded."""
    root = Path(shutil.copytree(few_models, tmp_path_factory.mktemp("degraded") / "models"))
    trigger = root.with_name("trigger")
    table = pd.DataFrame({"seconds": [0.0, 0.0, 0.0]})
    for name, (kind, _) in HARMFUL.items():
        add_version(root, name, kind(str(trigger)).fit(table.to_numpy(), None), table)
    trigger.touch()
    joblib.dump(LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0]), root.with_name("line.joblib"))
    root.with_name("line.csv").write_text("x\n0.5\n1.5\n")
    return root


def environment(harmful: Path) -> dict[str, str]:
    return {
        "MODEL_DIR": str(harmful),
        "ADMIN_TOKEN": ADMIN_TOKEN,
        "RELOAD_TIMEOUT_SECONDS": "5",
        "ROLES": "web",
    }


@pytest.fixture(scope="module")
def degraded(harmful: Path) -> Iterator[Service]:
    with Service(environment(harmful)) as service:
        yield service


def predict(service: Service, name: str, body: bytes) -> Answer:
    return call(service, "POST", f"/v1/models/{name}:predict", body, Content_Type="application/json")


def forkserve(service: Service, harmful: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    own = os.environ | environment(harmful) | {"PORT": service.address.rpartition(":")[2]} | environ
    command = [str(FORKSERVE), *arguments]
    return subprocess.run(command, cwd=harmful.parent, env=own, capture_output=True, text=True, check=False)


def test_models_that_would_harm_the_service_are_left_out_and_the_others_serve(degraded: Service) -> None:
    health = degraded.get("/health")
    assert (health["status"], health["models"]) == ("degraded", len(FEW_MODELS))
    assert health["refused"] == [f"{name}/1: {reason}" for name, (_, reason) in HARMFUL.items()]
    assert [line["reason"] for line in degraded.events("Version left out")] == health["refused"]
    assert degraded.get("/v1/models")["status"] == "degraded"
    assert predict(degraded, "diabetes", DIABETES).status == 200
    for name in HARMFUL:
        answer = predict(degraded, name, b'{"instances":[[0]]}')
        assert (answer.status, answer.json["detail"]) == (
            503,
            f"the model {name} could not be loaded; /health says why",
        )
    assert len(thread_names(degraded.master)) == 1
    metrics = call(degraded, "GET", "/metrics", Authorization=f"Bearer {ADMIN_TOKEN}").body.decode()
    assert 'forkserve_registry_errors{model="hanging"} 1.0' in metrics
    assert 'forkserve_registry_errors{model="wine"} 0.0' in metrics


def test_strict_models_and_check_name_each_of_them(harmful: Path) -> None:
    service = Service(environment(harmful) | {"STRICT_MODELS": "true"})
    assert service.process.wait(PATIENCE) != 0
    service.stop()
    assert "Traceback" not in service.log()
    strict = [line.removeprefix("forkserve: ") for line in service.log().splitlines() if str(harmful) in line]
    assert strict == [f"{harmful}/{name}/1: {reason}" for name, (_, reason) in HARMFUL.items()]
    command = [str(FORKSERVE), "check"]
    own = os.environ | environment(harmful)
    checked = subprocess.run(command, cwd=harmful.parent, env=own, capture_output=True, text=True, check=False)
    assert checked.returncode == 1
    assert [line.removeprefix("forkserve: ") for line in checked.stderr.splitlines()] == strict


def test_add_and_remove_change_what_a_running_service_serves(degraded: Service, harmful: Path) -> None:
    arguments = ("add", str(harmful.with_name("line.joblib")), "--name", "line")
    data = ("--data", str(harmful.with_name("line.csv")), "--reload")
    added = forkserve(degraded, harmful, *arguments, *data)
    assert (added.returncode, added.stderr) == (0, "")
    assert added.stdout.splitlines()[-1] == f"line version 1 is served at {degraded.address}; live"
    assert predict(degraded, "line", b'{"instances":[[1]]}').status == 200
    removed = forkserve(degraded, harmful, "remove", "line")
    assert removed.stdout.startswith("removed line with 1 version\n")
    for name in HARMFUL:
        assert forkserve(degraded, harmful, "remove", name, "1").returncode == 0
    assert eventually(lambda: degraded.get("/health")["status"] == "ok")

    def listed() -> list[str]:
        return [model["name"] for model in degraded.get("/v1/models")["models"]]

    assert eventually(lambda: listed() == FEW_MODELS)  # workers from before the removal are being replaced
    assert eventually(lambda: predict(degraded, "line", b'{"instances":[[1]]}').status == 404)
