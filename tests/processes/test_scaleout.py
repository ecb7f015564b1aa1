"""Jobs on a real Dask cluster over TCP: the same bits as here, whatever becomes of its workers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.cluster import DaskCluster
from harness.estimators import FragileRegressor, SleepingRegressor
from harness.jobs import call, ended, send, until, varied
from harness.processes import eventually
from harness.servers import free_port
from harness.service import Service
from registry.store.add import add_version

ENVIRON = {"WEB_CONCURRENCY": "1", "MAX_REQUESTS": "0", "JOB_LEASE_SECONDS": "5"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[DaskCluster]:
    with DaskCluster(2) as running:
        yield running


@pytest.fixture(scope="module")
def scaled(models: Path, cluster: DaskCluster) -> Iterator[Service]:
    environ = {"MODEL_DIR": str(models), "DASK_SCHEDULER": cluster.address, "SHAP_MAX_BATCH_SIZE": "7"}
    with Service(ENVIRON | environ) as service:
        yield service
    assert service.events("Runner stopped")
    assert service.events("Runner died") == []
    assert "Traceback" not in service.log()


@pytest.fixture(scope="module")
def odd_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models that sleep or break as their row says."""
    root = tmp_path_factory.mktemp("odd")
    sample = pd.DataFrame({"value": np.linspace(0.0, 0.001, 5)})
    for name, estimator in {"sleepy": SleepingRegressor(), "fragile": FragileRegressor()}.items():
        add_version(root, name, estimator.fit(sample.to_numpy(), None), sample, margin=1e6)
    return root


@pytest.fixture(scope="module")
def odd(odd_models: Path, cluster: DaskCluster) -> Iterator[Service]:
    environ = {"MODEL_DIR": str(odd_models), "DASK_SCHEDULER": cluster.address, "SHAP_MAX_BATCH_SIZE": "2"}
    with Service(ENVIRON | environ) as service:
        yield service


def check_both_operations(service: Service, model: str) -> None:
    """A job gives what requests give, chunk by chunk."""
    instances = varied(service, model, 40)
    for verb, name in (("predict", "predictions"), ("explain", "explanations")):
        job = ended(service, send(service, verb, model, instances))
        assert (job["state"], job["chunks_done"], job["attempts"]) == ("done", 6, 1)
        direct: list[Any] = []
        for first in range(0, 40, 7):
            body = json.dumps({"instances": instances[first : first + 7]}).encode()
            path = f"/v1/models/{model}:{verb}"
            direct += call(service, "POST", path, body, Content_Type="application/json").json[name]
        assert call(service, "GET", job["result"]).json[name] == direct


@pytest.mark.parametrize("model", ["mortgage", "wine"])
def test_jobs_on_a_cluster_give_what_requests_give(scaled: Service, model: str) -> None:
    check_both_operations(scaled, model)
    assert scaled.events("Cluster connected")
    assert scaled.events("Cluster is out") == scaled.events("Cluster failed") == []


def test_a_worker_killed_on_the_way_loses_no_chunk_and_no_attempt(odd: Service, cluster: DaskCluster) -> None:
    values = [0.05 + number * 1e-4 for number in range(80)]
    location = send(odd, "predict", "sleepy", [[value] for value in values]).headers["Location"]
    assert eventually(lambda: odd.get(location)["chunks_done"] >= 4)
    cluster.kill_worker()
    job = until(odd, location, state="done")
    assert (job["state"], job["chunks_done"], job["attempts"]) == ("done", 40, 1)
    assert call(odd, "GET", job["result"]).json["predictions"] == values
    assert odd.events("Cluster is out") == []


def test_a_row_that_breaks_its_model_on_a_cluster_is_named(odd: Service) -> None:
    job = ended(odd, send(odd, "predict", "fragile", [[0.0]] * 9 + [[1.5]] + [[0.0]] * 9))
    assert (job["state"], job["error"]) == ("failed", "the model failed on instance 9")
    assert FragileRegressor.SECRET in odd.events("Row failed")[-1]["error"]


def test_a_call_that_takes_too_long_on_a_cluster_fails_the_attempt(odd_models: Path, cluster: DaskCluster) -> None:
    environ = {"MODEL_DIR": str(odd_models), "DASK_SCHEDULER": cluster.address, "JOB_TIMEOUT_SECONDS": "2"}
    with Service(ENVIRON | environ) as service:
        location = send(service, "predict", "sleepy", [[4.0]]).headers["Location"]
        job = until(service, location, state="queued", attempts=1)
        assert job["error"] == "instances 0 to 0 took longer than 2 s"
        assert call(service, "DELETE", location).json["state"] == "cancelled"


def test_a_cluster_that_is_not_there_leaves_jobs_to_the_runner(few_models: Path) -> None:
    environ = {
        "MODEL_DIR": str(few_models),
        "DASK_SCHEDULER": f"tcp://127.0.0.1:{free_port()}",
        "SHAP_MAX_BATCH_SIZE": "7",
    }
    with Service(ENVIRON | environ) as service:
        check_both_operations(service, "wine")
        assert service.events("Cluster unavailable, computing here")
        status = service.stop()
    assert status == 0
