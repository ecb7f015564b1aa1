"""Own code in a running service: a reload takes a version's own, and code that breaks harms nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from harness.admin import ask_admin
from harness.jobs import call
from harness.project import DUMP, SCALER, Project
from harness.reloading import settles_on
from harness.service import ADMIN_TOKEN, Service

BODY = b'{"instances": [[5.0, 0.0]]}'


def add(project: Project, code: str) -> None:
    """The next version, whose code has the same names as that of the others."""
    project.write({"utils.py": code})
    project.run(f"from utils import Scaler\n{DUMP}")
    project.add()


def predictions(service: Service, *versions: str) -> list[Any]:
    paths = [f"/v1/models/own{version and f'/versions/{version}'}:predict" for version in versions]
    found = [call(service, "POST", path, BODY, Content_Type="application/json").json for path in paths]
    assert all("predictions" in answer for answer in found), found
    return [answer["predictions"][0] for answer in found]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with a version that doubles; its source is gone."""
    made = Project(tmp_path_factory.mktemp("project"))
    add(made, f"FACTOR = 2\n{SCALER}")
    (made.directory / "utils.py").unlink()
    return made


@pytest.fixture(scope="module")
def service(project: Project) -> Iterator[Service]:
    settings = {"MODEL_DIR": str(project.models), "MAX_REQUESTS": "0", "WATCH_MODELS": "false"}
    with Service(settings | {"ADMIN_TOKEN": ADMIN_TOKEN}) as service:
        yield service


def test_reload_takes_new_code_and_versions_with_different_code_answer_side_by_side(
    service: Service, project: Project
) -> None:
    assert predictions(service, "", "1") == [10, 10]
    add(project, f"FACTOR = 3\n{SCALER}")
    status, answer = ask_admin(service, "models:reload")
    assert (status, answer["added"]) == (200, ["own/2"])
    assert settles_on(service, "own", "2")
    assert predictions(service, "", "1", "2") == [15, 10, 15]


HARM = {
    "raise ValueError('the well is dry')": "model.joblib: does not load: ValueError: the well is dry",
    "import sys; sys.exit(3)": "model.joblib: does not load: SystemExit: 3",
    "import os; os._exit(3)": "its process exited with status 3",
    "print('x' * 100_000_000)": "prints more than 10 MB",
    "import os, time; os.fork() or time.sleep(600)": "starts processes",
    "import threading, time; threading.Thread(target=time.sleep, args=(600,), daemon=True).start()": "starts threads: ",
}


@pytest.mark.parametrize("line", HARM)
def test_code_that_breaks_is_refused_and_the_service_goes_on(service: Service, project: Project, line: str) -> None:
    before, trigger = predictions(service, "", "1"), project.directory / "trigger"
    trigger.unlink(missing_ok=True)
    add(project, f"from pathlib import Path\nif Path({str(trigger)!r}).exists():\n    {line}\nFACTOR = 4\n{SCALER}")
    newest = max((project.models / "own").iterdir(), key=lambda path: int(path.name))
    trigger.touch()
    status, problem = ask_admin(service, "models:reload")
    assert (status, HARM[line] in problem["detail"]) == (409, True), problem
    assert predictions(service, "", "1") == before
    shutil.rmtree(newest)
