"""A canary in all workers of a real service: begun, given up under load, begun again, ended; and a shadow."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sklearn.linear_model import LinearRegression

from harness.estimators import FragileRegressor
from harness.jobs import call
from harness.processes import eventually, hammer_while
from harness.service import ADMIN_TOKEN, FORKSERVE, Service
from registry.store.add import add_version
from registry.store.aliases import Canary, current, promote

BEARER = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
BROKEN = json.dumps({"instances": [[1.5]]}).encode()
"""What version 2 breaks on."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("canary") / "models"
    sample = pd.DataFrame({"value": np.linspace(0.0, 1.0, 40)})
    add_version(root, "line", LinearRegression().fit(sample, sample["value"]), sample, margin=1e6)
    add_version(root, "line", FragileRegressor().fit(sample.to_numpy(), None), sample, margin=1e6)
    promote(root / "line", "1")
    return root


@pytest.fixture(scope="module")
def service(root: Path) -> Iterator[Service]:
    environ = {"MODEL_DIR": str(root), "MAX_REQUESTS": "0", "ADMIN_TOKEN": ADMIN_TOKEN, "SERVE_VERSIONS": "live"}
    with Service({**environ, "ROLES": "web"}) as running:
        yield running


def begin(service: Service, percent: float) -> int:
    """Have version 2 answer a share of the requests; the status of the answer."""
    return ask(service, "canary", {"percent": percent})


def ask(service: Service, what: str, body: Any) -> int:
    path = f"/api/admin/models/line/versions/2:{what}"
    return call(service, "POST", path, json.dumps(body).encode(), Content_Type="application/json", **BEARER).status


def state(root: Path) -> Canary:
    canary = current(root / "line").canary
    assert canary is not None
    return canary


def shown(service: Service) -> Any:
    return call(service, "GET", "/v1/models/line/canary", None, **BEARER).json


def series(service: Service) -> list[tuple[str, str]]:
    """Name and labels of every series of canaries."""
    text = call(service, "GET", "/metrics", None, **BEARER).body.decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return [(one.name, json.dumps(one.labels, sort_keys=True)) for one in samples if "canary" in one.name]


def test_canary_that_fails_goes_back_in_all_workers_and_no_request_is_lost(service: Service, root: Path) -> None:
    def give_up() -> bool:
        status = begin(service, 50.0)
        return status == 200 and eventually(lambda: bool(state(root).ended))

    tally, given_up = asyncio.run(hammer_while(service, give_up, "line", BROKEN))
    assert (tally.failed, given_up) == (0, True)
    assert eventually(lambda: not shown(service)["is_on"])
    assert len(service.events("Canary has gone back")) == 1


def test_canary_that_begins_again_is_counted_anew(service: Service, root: Path) -> None:
    assert begin(service, 10.0) == 200
    assert state(root).percent == 10.0
    assert eventually(lambda: len(service.workers) == 2)
    answers = [
        call(service, "POST", "/v1/models/line:predict", body, Content_Type="application/json").json["version"]
        for body in (json.dumps({"instances": [[index / 400]]}).encode() for index in range(400))
    ]
    assert 15 <= answers.count("2") <= 75
    assert shown(service)["is_on"]
    counted = shown(service)["versions"]
    assert counted["2"]["predict"] == {**counted["2"]["predict"], "answered": answers.count("2"), "failed": 0}
    found = series(service)
    assert found
    assert len(set(found)) == len(found), "the counts of the canary before are gone"


def test_canary_is_ended_on_the_command_line(service: Service, root: Path) -> None:
    environ = os.environ | {"MODEL_DIR": str(root)}

    def forkserve(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [FORKSERVE, "canary", "line", *arguments], env=environ, check=False, capture_output=True, text=True
        )

    assert "say which share" in forkserve("2").stderr
    assert forkserve("1", "10%").stderr.startswith("forkserve: version 1 of line is live")
    assert forkserve("2", "20%").stdout.startswith("line: version 2 answers 20% of the requests, version 1 the others")
    assert state(root).percent == 20.0
    assert forkserve("off").returncode == 0
    assert current(root / "line").canary is None
    assert eventually(lambda: service.get("/v1/models/line").get("canary") is None)


def test_shadow_sees_what_all_workers_answer(service: Service, root: Path) -> None:
    def answer() -> Any:
        return call(service, "GET", "/v1/models/line/shadow", None, **BEARER)

    assert ask(service, "shadow", {"on": True}) == 200
    assert eventually(lambda: len(service.workers) == 2 and answer().status == 200)
    bodies = [json.dumps({"instances": [[index / 40 + 0.01]]}).encode() for index in range(38)]
    answers = [
        call(service, "POST", "/v1/models/line:predict", body, Content_Type="application/json").json for body in bodies
    ]
    assert {one["version"] for one in answers} == {"1"}

    def rows() -> Any:
        return answer().json["rows"]

    assert eventually(lambda: sum(rows().values()) == len(bodies))
    assert rows()["agreed"] + rows()["dropped"] == len(bodies)
    assert ask(service, "shadow", {"on": "yes"}) == 422
    assert ask(service, "shadow", {"on": False}) == 200
    assert current(root / "line").shadow is None
