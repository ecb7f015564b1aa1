"""A canary over HTTP: who is answered by it, and that nobody fails because of it."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression

from harness.apps import served
from harness.estimators import FragileRegressor, OverflowingRegressor, SleepingRegressor
from registry.store.add import add_trained, add_version
from registry.store.aliases import Aliases, begin_canary, current, promote
from registry.training.script import Trained
from serving.app import Application, build, build_alerts, renew
from serving.settings import Settings

WELL, BROKEN, NOT_A_NUMBER = 0.5, 1.5, 2.5
"""What version 2 of the model answers, breaks on, and has no number for; version 1 answers all."""

PATHS: dict[str, Callable[[float], Any]] = {
    "/v1/models/line:predict": lambda value: {"instances": [[value]]},
    "/v1/models/line:explain": lambda value: {"instances": [[value]]},
    "/v2/models/line/infer": lambda value: {
        "inputs": [{"name": "value", "shape": [1, 1], "datatype": "FP64", "data": [value]}]
    },
    "/invocations": lambda value: {"inputs": [[value]]},
}


SAMPLE = pd.DataFrame({"value": np.linspace(0.0, 1.0, 40)})


def add(root: Path, estimator: Any, **options: Any) -> None:
    trained = Trained(estimator=estimator, sample=SAMPLE, **{"margin": 1e6, **options})
    add_trained(root, "line", trained, entities=True)


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose version 1 is live, version 2 breaks on what is above 1, and version 3 is well."""
    root = tmp_path_factory.mktemp("canary") / "models"
    add(root, LinearRegression().fit(SAMPLE, 2 * SAMPLE["value"]))
    add(root, FragileRegressor().fit(SAMPLE.to_numpy(), None))
    add(root, LinearRegression().fit(SAMPLE, 3 * SAMPLE["value"]))
    promote(root / "line", "1")
    return root


@pytest.fixture
def root(line: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(line, tmp_path / "models"))


def build_app(root: Path, **settings: Any) -> Application:
    made = Settings(model_dir=root, data_dir=root.parent / "data", **settings)
    return build(made, build_alerts(made))


def begin(root: Path, percent: float, version: str = "2") -> None:
    begin_canary(root / "line", version, percent)


async def ask(client: httpx.AsyncClient, value: float, path: str = "/v1/models/line:predict", **headers: str) -> Any:
    answer = await client.post(path, json=PATHS[path](value), headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def versions(client: httpx.AsyncClient, count: int, **headers: str) -> Counter[str]:
    """The versions that answer so many requests."""
    answers = [await ask(client, index / count, **headers) for index in range(count)]
    return Counter(answer["version"] for answer in answers)


@pytest.mark.anyio
async def test_share_of_the_requests_is_answered_by_the_canary_which_says_so(root: Path) -> None:
    begin(root, 20.0, "3")
    async with served(build_app(root)) as client:
        counted = await versions(client, 500)
        assert 60 <= counted["3"] <= 145
        shown = (await client.get("/v1/models/line/canary")).json()
    assert shown["versions"]["3"]["predict"]["answered"] == counted["3"]
    assert shown["versions"]["1"]["predict"]["answered"] == counted["1"]
    assert (shown["version"], shown["live"], shown["percent"], shown["is_on"]) == ("3", "1", 20.0, True)


@pytest.mark.anyio
async def test_request_that_names_a_version_is_answered_by_that(root: Path) -> None:
    begin(root, 100.0)
    async with served(build_app(root)) as client:
        answer = await client.post("/v1/models/line/versions/1:predict", json={"instances": [[0.5]]})
        assert answer.json()["version"] == "1"
        assert (await ask(client, 0.5))["version"] == "2"


@pytest.mark.anyio
async def test_key_is_always_answered_by_the_same_version(root: Path) -> None:
    begin(root, 50.0)
    names = [f"key-{number}" for number in range(20)]
    entries = " ".join(f"{name}:{hashlib.sha256(name.encode()).hexdigest()}:predict" for name in names)
    async with served(build_app(root, api_keys=entries)) as client:
        of_keys = {name: await versions(client, 5, **{"x-api-key": name}) for name in names}
    assert all(len(counted) == 1 for counted in of_keys.values())
    assert {version for counted in of_keys.values() for version in counted} == {"1", "2"}


@pytest.mark.anyio
async def test_request_with_the_same_id_is_answered_by_the_same_version(root: Path) -> None:
    begin(root, 50.0)
    async with served(build_app(root)) as client:
        of_ids = [await versions(client, 3, **{"x-request-id": f"order-{number}"}) for number in range(20)]
    assert all(len(counted) == 1 for counted in of_ids)
    assert {version for counted in of_ids for version in counted} == {"1", "2"}


@pytest.mark.anyio
@pytest.mark.parametrize("value", [BROKEN, NOT_A_NUMBER])
@pytest.mark.parametrize("path", PATHS)
async def test_what_the_canary_cannot_answer_the_live_version_does(root: Path, path: str, value: float) -> None:
    begin(root, 100.0)
    async with served(build_app(root, default_model="line")) as client:
        answers = [await ask(client, value, path) for _ in range(6)]
    assert all(answer == answers[0] for answer in answers)


@pytest.mark.anyio
async def test_canary_that_fails_goes_back_in_memory_and_on_the_disk(root: Path) -> None:
    begin(root, 100.0)
    app = build_app(root)
    async with served(app) as client:
        assert [(await ask(client, BROKEN))["version"] for _ in range(3)] == ["1"] * 3
        assert (await ask(client, WELL))["version"] == "1", "it has failed three times"
        shown = (await client.get("/v1/models/line/canary")).json()
        assert (shown["is_on"], shown["versions"]["2"]["predict"]["failed"]) == (False, 3)
        (running,) = {app.service.canaries.of(model) for model in app.service.canaries.batchers()}
        assert running is not None
        await asyncio.gather(*running._recording)
    ended = current(root / "line").canary
    assert ended is not None
    assert "fails 3 of 3 requests to predict" in ended.ended
    successor, _ = renew(app)
    for after in (successor, build_app(root)):
        async with served(after) as client:
            assert await versions(client, 20) == {"1": 20}
            assert "fails 3 of 3" in (await client.get("/v1/models/line/canary")).json()["ended"]
            assert (await client.get("/v1/models/line")).json().get("canary") is None


@pytest.mark.anyio
async def test_request_that_no_version_takes_is_refused_and_counts_against_none(root: Path) -> None:
    begin(root, 100.0)
    async with served(build_app(root)) as client:
        for _ in range(5):
            answer = await client.post("/v1/models/line:predict", json={"instances": [["a word"]]})
            assert answer.status_code == 422
        assert (await ask(client, WELL))["version"] == "2"
        assert (await client.get("/v1/models/line/canary")).json()["versions"]["2"]["predict"]["failed"] == 0


@pytest.mark.anyio
async def test_request_that_only_the_canary_refuses_is_answered_and_counts(root: Path) -> None:
    add(root, LinearRegression().fit(SAMPLE, SAMPLE["value"]), margin=0.0)
    begin(root, 100.0, "4")
    async with served(build_app(root)) as client:
        assert (await ask(client, 5.0))["version"] == "1", "version 4 takes values up to 1"
        assert (await ask(client, 0.5))["version"] == "4"
        assert (await client.get("/v1/models/line/canary")).json()["versions"]["4"]["predict"]["failed"] == 1


@pytest.mark.anyio
async def test_canary_that_hangs_leaves_time_and_threads_to_the_live_version(tmp_path: Path) -> None:
    root = tmp_path / "models"
    for estimator in (OverflowingRegressor, SleepingRegressor):
        sample = SAMPLE / 1e4
        add_version(root, "line", estimator().fit(sample.to_numpy(), None), sample, margin=1e6)
    promote(root / "line", "1")
    begin(root, 100.0)
    app = build_app(root, inference_threads=1, inference_timeout_seconds=2.0)
    async with served(app) as client:
        answers = await asyncio.gather(*(ask(client, 2.0 - index / 1e4) for index in range(5)))
        assert {answer["version"] for answer in answers} == {"1"}, "two seconds are too long for the canary"
        assert app.service.reason_to_replace() is None


@pytest.mark.anyio
async def test_streams_are_the_live_versions(root: Path) -> None:
    begin(root, 100.0)
    async with served(build_app(root)) as client:
        answer = await client.post(
            "/v1/models/line:predict", json={"instances": [[0.5]]}, headers={"accept": "text/event-stream"}
        )
    assert '"version":"1"' in answer.text


@pytest.mark.anyio
async def test_entity_is_always_answered_by_the_same_version_and_never_fails(root: Path) -> None:
    begin(root, 50.0)
    answers: dict[str, list[Any]] = {}
    async with served(build_app(root)) as client:
        for number in range(12):
            for value in (WELL, BROKEN):
                record = {"time": f"2026-01-0{1 + (value == BROKEN)}T00:00:00Z", "values": {"value": value}}
                stored = await client.post(f"/v1/entities/e{number}/records", json={"records": [record]})
                assert stored.status_code == 201, stored.text
                for _ in range(2):
                    answer = await client.get(f"/v1/entities/e{number}/predictions?limit=1")
                    assert answer.status_code == 200, answer.text
                    answers.setdefault(f"{number} {value}", []).append(answer.json()["models"][0]["version"])
    assert all(len(set(found)) == 1 for found in answers.values())
    assert {found[0] for asked, found in answers.items() if str(WELL) in asked} == {"1", "2"}
    assert {found[0] for asked, found in answers.items() if str(BROKEN) in asked} == {"1"}


def test_models_without_a_canary_have_none(root: Path) -> None:
    app = build_app(root)
    assert not app.service.canaries
    assert current(root / "line") == Aliases("1", "3")
