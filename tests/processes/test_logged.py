"""The log of predictions on the real service: no answered row is lost or doubled, whoever is killed or replaced."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from harness.admin import admin_figures
from harness.processes import eventually
from harness.service import ADMIN_TOKEN, Service
from registry.store.add import add_version
from serving.process.kernel import RECORDER, child_pids, name_of

BETWEEN = 40
"""Requests between two things that happen; a worker has answered so many after two."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    flowers, kinds = load_iris(return_X_y=True, as_frame=True)
    add_version(root, "iris", LogisticRegression(max_iter=500).fit(flowers, kinds), flowers)
    return root


@pytest.fixture(scope="module")
def service(root: Path) -> Iterator[Service]:
    environ = {
        "MODEL_DIR": str(root),
        "LOG_PREDICTIONS": "all",
        "MAX_REQUESTS": str(BETWEEN),
        "MAX_REQUESTS_JITTER": "0",
        "ADMIN_TOKEN": ADMIN_TOKEN,
    }
    with Service(environ) as running:
        yield running


def recorders(service: Service) -> list[int]:
    return [pid for pid in child_pids(service.master) if name_of(pid) == RECORDER]


def predict(service: Service, sent: list[str], body: bytes) -> None:
    """Some requests, one after the other, each on a connection of its own."""
    for _ in range(BETWEEN):
        request_id = f"request-{len(sent)}"
        headers = {"Content-Type": "application/json", "X-Request-Id": request_id}
        request = urllib.request.Request(f"{service.address}/v1/models/iris:predict", body, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert answer.status == 200
        sent.append(request_id)


def queued(service: Service) -> int:
    """Rows that workers have noted, those of workers that are gone too."""
    return int(admin_figures(service)["totals"]["logged_predictions"]["queued"])


def stored(data: str) -> Counter[str]:
    """How often each request is in the log."""
    with closing(sqlite3.connect(f"file:{data}/predictions.db?mode=ro", uri=True)) as connection:
        return Counter(request_id for (request_id,) in connection.execute("select request_id from predictions"))


def test_no_row_is_lost_or_doubled_whoever_is_killed_or_replaced(service: Service, root: Path) -> None:
    example = service.get("/v1/models/iris")["example"]
    body = json.dumps({"instances": [example]}).encode()
    sent: list[str] = []
    predict(service, sent, body)
    (recorder,) = recorders(service)
    os.kill(recorder, signal.SIGSTOP)  # everything waits in the rings
    predict(service, sent, body)
    assert eventually(lambda: queued(service) == len(sent))
    os.kill(service.workers[0], signal.SIGKILL)
    predict(service, sent, body)
    os.kill(recorder, signal.SIGKILL)
    predict(service, sent, body)
    assert eventually(lambda: recorders(service) not in ([], [recorder]))
    flowers, kinds = load_iris(return_X_y=True, as_frame=True)
    renamed = flowers.rename(columns=dict(zip(flowers.columns, "abcd", strict=True)))
    add_version(root, "other", LogisticRegression(max_iter=500).fit(renamed, kinds), renamed)
    assert eventually(lambda: len(service.get("/v1/models")["models"]) == 2)
    predict(service, sent, body)
    assert eventually(lambda: stored(service.data) == Counter(sent))
    assert service.events("Recorder died")[0]["code"] == -signal.SIGKILL
    assert service.events("Worker started")[3:], "workers are replaced meanwhile"


def test_the_end_of_the_service_loses_no_row(root: Path, tmp_path: Path) -> None:
    environ = {"MODEL_DIR": str(root), "LOG_PREDICTIONS": "all", "DATA_DIR": str(tmp_path)}
    with Service(environ) as service:
        body = json.dumps({"instances": [service.get("/v1/models/iris")["example"]] * 100}).encode()
        sent: list[str] = []
        predict(service, sent, body)
    assert stored(str(tmp_path)) == Counter(sent * 100)
