"""How a service starts, and what keeps it from starting."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression

from harness.jobs import call, ended, send
from harness.processes import DIABETES, PATIENCE, eventually
from harness.service import COMMAND, FORKSERVE, ROOT, Service
from registry.store.add import add_version
from serving.cli.client import post


def test_a_library_that_starts_a_thread_before_the_fork_is_found_out(few_models: Path) -> None:
    refused = refusal({"MODEL_DIR": str(few_models), "PRELOAD_MODULES": "tests.processes.thread_at_import"})
    assert "forkserve: 2 threads at the fork, expected one" in refused


def test_a_module_that_is_not_there_refuses_the_start(few_models: Path) -> None:
    refused = refusal({"MODEL_DIR": str(few_models), "PRELOAD_MODULES": "no_such_module"})
    assert "forkserve: cannot import no_such_module" in refused


def test_a_wrong_setting_refuses_the_start_and_names_the_variable(few_models: Path) -> None:
    assert refusal({"MODEL_DIR": str(few_models), "MAX_REQUESTS": "many"}) == (
        "forkserve: MAX_REQUESTS must be a whole number"
    )


def test_an_empty_model_directory_refuses_the_start_and_says_what_to_do(tmp_path: Path) -> None:
    refused = refusal({"MODEL_DIR": str(tmp_path)})
    assert refused == (
        f"forkserve: {tmp_path}: contains no model; create one with `forkserve train` or `forkserve add`"
    )


READ_ONLY = """
set -e
mount --bind "$DATA_DIR" "$DATA_DIR"
if [ "$1" = read-only ]; then mount -t tmpfs -o ro none /dev/shm; fi
for place in / /tmp /var/tmp; do
    if mountpoint -q $place; then mount -o remount,bind,ro $place; fi
done
shift
exec "$@"
"""
"""Makes everything read-only but DATA_DIR and, unless told so, /dev/shm."""


@pytest.mark.parametrize("shared_memory", ["writable", "read-only"])
def test_a_service_needs_no_writable_directory_but_its_own(tmp_path: Path, shared_memory: str) -> None:
    """As root in a namespace of mounts; elsewhere nothing can be made read-only."""
    sample = pd.DataFrame({"x": [0.0, 1.0, 2.0]})
    add_version(tmp_path / "models", "line", LinearRegression().fit(sample.to_numpy(), sample["x"]), sample)
    command = ["unshare", "-Urm", "sh", "-c", READ_ONLY, "sh", shared_memory, *COMMAND]
    environ = {"MODEL_DIR": str(tmp_path / "models"), "PYTHONDONTWRITEBYTECODE": "1"}
    service = Service(environ, command)
    try:
        service.__enter__()
    except RuntimeError:
        if any(word in service.log() for word in ("unshare: ", "mount: ")):
            pytest.skip("no namespaces here")
        raise
    with service:
        root = Path(f"/proc/{service.master}/root")
        assert not os.access(root / "tmp", os.W_OK)
        assert os.access(root / "dev/shm", os.W_OK) == (shared_memory == "writable")
        body = b'{"instances": [[0.5]]}'
        explained = call(service, "POST", "/v1/models/line:explain", body, Content_Type="application/json")
        assert explained.status == 200
        job = ended(service, send(service, "predict", "line", [[0.5], [1.0]]))
        assert job["state"] == "done"
        assert service.events("Worker died") == []


def refusal(environ: dict[str, str]) -> str:
    """What a service that does not start says last."""
    service = Service(environ)
    assert service.process.wait(PATIENCE) != 0
    service.stop()
    assert "Traceback" not in service.log()
    return service.log().strip().splitlines()[-1]


def test_uvicorn_alone_serves_for_development(few_models: Path) -> None:
    environ = os.environ | {"MODEL_DIR": str(few_models), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "uvicorn", "main:app", "--port", "0", "--log-level", "info"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert process.stdout is not None
        address = next(found[1] for line in process.stdout if (found := re.search(r"running on http://([^ ]+)", line)))
        host, _, port = address.partition(":")
        with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
            connection.sendall(post(f"http://{address}/v1/models/diabetes:predict", DIABETES))
            assert b"200 OK" in connection.recv(65536)
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE)


OURS = ("main", "cache", "registry", "serving", "harness", "forkserve")
"""Modules that a project may have, too; some are ours, some will be."""

ESTIMATOR = """
import os, time
import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin

if "SLOWLY" in os.environ:
    open("importing", "w").close()
    time.sleep(float(os.environ["SLOWLY"]))

class Sum(RegressorMixin, BaseEstimator):
    def fit(self, rows, y=None):
        self.n_features_in_ = 2
        return self

    def predict(self, rows):
        return np.asarray(rows).sum(axis=1)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's directory: modules with our names that break whoever imports them, and one that an artefact needs."""
    for name in OURS:
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a module of the start directory was imported')")
    (tmp_path / "my_estimators.py").write_text(ESTIMATOR)
    (tmp_path / "table.csv").write_text("a,b\n1,2\n3,4\n5,6\n")
    dump = "import joblib, my_estimators; joblib.dump(my_estimators.Sum().fit([]), 'sum.joblib')"
    subprocess.run([sys.executable, "-c", dump], cwd=tmp_path, env=os.environ | {"PYTHONPATH": ""}, check=True)
    done = forkserve(tmp_path, "add", "sum.joblib", "--name", "sum", "--data", "table.csv")
    assert "added sum version 1" in done.stdout, done.stderr
    return tmp_path


def environment(project: Path) -> dict[str, str]:
    return {"MODEL_DIR": str(project / "models"), "DATA_DIR": str(project / "data"), "PORT": "0"}


def forkserve(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = os.environ | environment(project)
    return subprocess.run(
        [FORKSERVE, *arguments], cwd=project, env=environ, capture_output=True, text=True, check=False
    )


def test_commands_work_in_a_directory_with_modules_of_the_same_names(project: Path) -> None:
    for arguments, said in ((["models"], "sum "), (["check"], "ready to serve"), (["worker", "--once"], "initialized")):
        done = forkserve(project, *arguments)
        assert (done.returncode, said in done.stdout) == (0, True), done.stderr


@pytest.mark.parametrize("command", [(str(FORKSERVE),), (sys.executable, str(ROOT / "main.py"))])
def test_the_service_starts_and_reloads_in_such_a_directory(project: Path, command: tuple[str, ...]) -> None:
    with Service(environment(project) | {"ROLES": "web"}, (*command, "serve"), project) as service:
        (model,) = service.get("/v1/models")["models"]
        assert model["name"] == "sum"
        os.kill(service.master, signal.SIGHUP)
        assert eventually(lambda: len(service.events("Models reloaded")) == 1)
        assert eventually(lambda: len(service.events("Worker started")) == 4)
        assert service.get("/health")["status"] == "ok"


@pytest.mark.parametrize("module", ["main", "forkserve"])
def test_python_m_works_beside_modules_of_other_names(project: Path, module: str) -> None:
    (project / f"{module}.py").unlink()  # that one would be what was asked for
    command = [sys.executable, "-m", module, "models"]
    environ = os.environ | environment(project)
    done = subprocess.run(command, cwd=project, env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()[:2]) == (0, ["sum", "1"]), done.stderr


def test_gunicorn_cmd_args_override_the_settings(few_models: Path) -> None:
    environ = {"MODEL_DIR": str(few_models), "GUNICORN_CMD_ARGS": "--workers 1 --bind 127.0.0.1:0", "PORT": "1"}
    with Service(environ | {"WEB_CONCURRENCY": "1", "ROLES": "web"}, (str(FORKSERVE), "serve")) as service:
        assert len(service.workers) == 1
        assert service.address.startswith("http://127.0.0.1:")


def test_usr2_starts_a_second_master_that_takes_over(project: Path) -> None:
    with Service(environment(project) | {"ROLES": "web"}, (str(FORKSERVE), "serve"), project) as service:
        os.kill(service.master, signal.SIGUSR2)
        assert eventually(lambda: len(service.events("Worker started")) == 4)
        os.kill(service.master, signal.SIGTERM)
        assert service.process.wait(PATIENCE) == 0
        assert service.get("/health")["status"] == "ok"
        assert eventually(lambda: bool(service.events("Master has been promoted")))
        second = int(re.findall(r"Listening at: \S+ \((\d+)\)", service.log())[-1])
        os.kill(second, signal.SIGTERM)
        assert eventually(lambda: service.log().count("forkserve stopped") == 2)


def test_ctrl_c_while_models_are_loaded_is_one_line(project: Path) -> None:
    process = subprocess.Popen(
        [FORKSERVE, "serve"],
        cwd=project,
        env=os.environ | environment(project) | {"ADMIN_TOKEN": "x" * 16, "SLOWLY": "60"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert eventually((project / "importing").exists), "what a version prints while it is tried is dropped"
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE)
    assert (process.returncode, said) == (130, "forkserve: interrupted\n")
