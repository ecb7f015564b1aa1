"""Logged predictions replayed on another version: by a job, on the command line, and before a promotion."""

from __future__ import annotations

import asyncio
import re
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
from sklearn.tree import DecisionTreeClassifier

from harness.apps import ask_app
from harness.processes import eventually
from registry.registry import load_one
from registry.store.add import add_trained, add_version
from registry.store.aliases import current, promote
from registry.store.options import LoadOptions
from registry.training.candidates import candidate_root, write_held_out
from registry.training.script import Trained, live_manifest
from serving.app import Application, build, build_alerts
from serving.entities.sqlite import SQLiteEntityStore
from serving.jobs.sqlite import SQLiteJobStore
from serving.monitoring.predictions.sqlite import SQLitePredictionStore
from serving.monitoring.predictions.store import LoggedPrediction, Wanted, make_id
from serving.settings import Settings
from serving.training.steps import Steps
from tests.conftest import Run

ROWS = 2500
NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
TOKEN = "only-for-these-tests"


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1, which is live, says `high` above 0.5, version 2 above 0.6; and version 1's answers are logged."""
    root = tmp_path_factory.mktemp("trees")
    sample = pd.DataFrame({"value": np.linspace(0.0, 1.0, 101)})
    for limit in (0.5, 0.6):
        labels = np.where(sample["value"] > limit, "high", "low")
        add_version(root / "models", "tree", DecisionTreeClassifier(max_depth=1).fit(sample, labels), sample)
    promote(root / "models" / "tree", "1")
    values = np.random.default_rng(0).uniform(size=ROWS)
    answers = load_one(root / "models", "tree", "1").predict(values[:, None])
    rows = [
        logged(place, value, answer) for place, (value, answer) in enumerate(zip(values.tolist(), answers, strict=True))
    ]

    async def keep() -> None:
        store = SQLitePredictionStore(root / "data")
        await store.add(rows)
        await store.close()

    asyncio.run(keep())
    return root


def logged(place: int, value: float, answer: Any) -> LoggedPrediction:
    """The row of a minute, the first one being that of NOW."""
    moment = NOW + timedelta(minutes=place)
    return LoggedPrediction(
        id=make_id(int(moment.timestamp() * 1e6), 0, place, 0),
        time=moment,
        request_id=f"request-{place}",
        place=0,
        model="tree",
        version="1",
        row={"value": value},
        answer=answer,
        source="miss",
        milliseconds=1.0,
    )


@pytest.fixture
def root(trees: Path, tmp_path: Path) -> Path:
    shutil.copytree(trees, tmp_path, dirs_exist_ok=True)
    return tmp_path


def changed(rows: int = ROWS) -> int:
    """How many of the latest rows the two versions answer differently."""
    values = np.random.default_rng(0).uniform(size=ROWS)[-rows:]
    return int(((values > 0.505) & (values <= 0.605)).sum())


def test_replay_says_which_rows_change(run: Run, root: Path) -> None:
    said = run("replay", "tree", "2", "--last", "700", DATA_DIR=str(root / "data"))
    assert said.returncode == 0, said.stderr
    first, change, *_ = said.stdout.splitlines()
    assert first.startswith(f"700 rows, of which {700 - changed(700)} agree")
    assert change == f"  high -> low: {changed(700)}"


def test_version_is_promoted_only_if_enough_agrees(run: Run, root: Path) -> None:
    environ = {"DATA_DIR": str(root / "data")}
    refused = run("promote", "tree", "2", "--if-agrees", "0.98", **environ)
    assert (refused.returncode, "version 2 is not promoted: less than 98.00% agree" in refused.stderr) == (1, True)
    assert current(root / "models" / "tree").live == "1"
    assert run("promote", "tree", "2", "--if-agrees", "0.8", **environ).returncode == 0
    assert current(root / "models" / "tree").live == "2"


def ask(app: Application, method: str, path: str, *, token: str = TOKEN, **options: Any) -> httpx.Response:
    return ask_app(app, method, path, headers={"authorization": f"Bearer {token}"}, **options)


def body(**changes: Any) -> dict[str, Any]:
    return {"operation": "replay", "model": "tree", "version": "2", **changes}


@pytest.fixture
def app(root: Path) -> Application:
    settings = Settings(model_dir=root / "models", data_dir=root / "data", admin_token=TOKEN, api_key="a-key")
    return build(settings, build_alerts(settings))


def test_replay_goes_on_where_a_runner_was_killed_without_rows_that_were_deleted(
    app: Application, root: Path, run: Run
) -> None:
    answer = ask(app, "POST", "/v1/jobs", json=body())
    assert (answer.status_code, answer.json()["chunks"]) == (202, 3)
    job = answer.json()["id"]

    async def be_killed() -> None:
        """Finish the second chunk, with a result that tells it from any other, and renew the lease no more."""
        store = SQLiteJobStore(root / "data")
        claimed = await store.claim("killed", 60.0, ["replay"])
        assert claimed is not None
        await store.checkpoint(job, "killed", 0.001, 1, b'{"rows": 1000, "agreed": 1000}')
        await store.close()
        log = SQLitePredictionStore(root / "data")
        await log.delete(Wanted(request_id=f"request-{ROWS - 1}"))
        await log.close()

    asyncio.run(be_killed())

    def is_done() -> bool:
        run("worker", "--once", DATA_DIR=str(root / "data"))
        return bool(ask(app, "GET", f"/v1/jobs/{job}").json()["state"] == "done")

    assert eventually(is_done)
    found = ask(app, "GET", f"/v1/jobs/{job}/result").json()
    values = np.random.default_rng(0).uniform(size=ROWS)
    redone = np.concatenate([values[1500:-1], values[:500]])
    differ = int(((redone > 0.505) & (redone <= 0.605)).sum())
    assert (found["rows"], found["agreed"]) == (ROWS - 1, ROWS - 1 - differ)
    assert found["changes"] == [{"from": "high", "to": "low", "rows": differ}]
    assert len(found["largest"]) == 20
    assert all(one["request_id"].startswith("request-") for one in found["largest"])


@pytest.mark.parametrize(
    ("parameters", "chunks"),
    [
        ({"last": 1}, 1),
        ({"last": 1001}, 2),
        ({"since": (NOW + timedelta(minutes=ROWS - 300)).isoformat()}, 1),
        ({"since": NOW.isoformat(), "last": 1500}, 2),
        ({"since": "2026-01-31T11:00:00"}, 3),
    ],
)
def test_the_latest_rows_are_replayed(app: Application, parameters: Any, chunks: int) -> None:
    assert ask(app, "POST", "/v1/jobs", json=body(parameters=parameters)).json()["chunks"] == chunks


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        (body(version="3"), 404),
        (body(model="gone"), 404),
        (body(version="1"), 422),  # it has answered all that is logged
        (body(parameters={"since": "2030-01-01T00:00:00Z"}), 422),
        (body(parameters={"last": 0}), 422),
        (body(parameters={"until": 1}), 422),
        (body(instances=[]), 422),
        ({"operation": "replay", "model": "tree"}, 422),
    ],
)
def test_replay_of_what_is_not_there_is_refused(app: Application, asked: Any, status: int) -> None:
    assert ask(app, "POST", "/v1/jobs", json=asked).status_code == status


def test_only_the_admin_replays(app: Application) -> None:
    assert ask(app, "POST", "/v1/jobs", token="a-key", json=body()).status_code == 403
    assert ask(app, "POST", "/v1/jobs", token="none", json=body()).status_code == 401


@pytest.mark.parametrize(("agreement", "refusals"), [(0.98, 1), (0.8, 0), (0.0, 0)])
def test_a_retrained_version_must_agree_with_the_log_as_far_as_is_asked(
    root: Path, agreement: float, refusals: int
) -> None:
    aside = candidate_root(root / "models", "j", 1)
    sample = pd.DataFrame({"value": np.linspace(0.0, 1.0, 101)})
    labels = np.where(sample["value"] > 0.6, "high", "low")
    estimator = DecisionTreeClassifier(max_depth=1).fit(sample, labels)
    table = sample.assign(side=labels)
    trained = Trained(estimator=estimator, sample=table, held_out=table, target="side")
    write_held_out(aside, add_trained(aside, "tree", trained, version="3"), trained)
    steps = Steps(
        root / "models",
        SQLiteEntityStore(root, keep_records=1, keep_outcomes=1),
        1,
        tolerance=1.0,
        agreement=agreement,
        log=SQLitePredictionStore(root / "data"),
        options=LoadOptions(),
        seconds=60.0,
    )
    reasons, _ = steps.compare(aside / "tree" / "3", live_manifest(root / "models" / "tree"))
    assert len(reasons) == refusals
    said = r"agrees with (89|90|91)\.\d\d% of the last 2500 logged predictions of version 1, less than 98\.00% .*"
    assert all(re.fullmatch(said, reason) for reason in reasons)
