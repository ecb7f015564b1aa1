"""A shadow beside the live version: its figures, and that whatever it does, the live version answers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.tree import DecisionTreeClassifier

from harness.apps import served
from harness.estimators import DeadlyRegressor, FragileRegressor, SleepingRegressor
from registry.store.add import add_version
from registry.store.aliases import begin_shadow, end_shadow, promote
from serving.app import Application, build, build_alerts, renew
from serving.monitoring import shadow
from serving.settings import Settings

pytestmark = pytest.mark.anyio

LINE = np.linspace(0.0, 1.0, 101)


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1, which is live, says `high` above 0.5, version 2 above 0.6."""
    root = tmp_path_factory.mktemp("trees") / "models"
    sample = pd.DataFrame({"value": LINE})
    for limit in (0.5, 0.6):
        labels = np.where(sample["value"] > limit, "high", "low")
        add_version(root, "tree", DecisionTreeClassifier(max_depth=1).fit(sample, labels), sample)
    promote(root / "tree", "1")
    begin_shadow(root / "tree", "2")
    return root


def line(root: Path, candidate: Any) -> Path:
    """A model `tree`, whose live version answers its only feature, and whose shadow is `candidate`."""
    sample = pd.DataFrame({"value": LINE / 1e4})
    add_version(root, "tree", LinearRegression().fit(sample, sample["value"]), sample, margin=1e9)
    add_version(root, "tree", candidate.fit(sample.to_numpy(), None), sample, margin=1e9)
    promote(root / "tree", "1")
    begin_shadow(root / "tree", "2")
    return root


def build_app(root: Path) -> Application:
    settings = Settings(model_dir=root, data_dir=root.parent / "data")
    return build(settings, build_alerts(settings))


async def predict(client: httpx.AsyncClient, *values: float) -> None:
    answer = await client.post("/v1/models/tree:predict", json={"instances": [[value] for value in values]})
    assert (answer.status_code, answer.json()["version"]) == (200, "1")


async def settled(app: Application, client: httpx.AsyncClient) -> Any:
    """What is shown of the shadow once nothing waits for it."""
    running = app.service.shadows.of(app.service.registry.get("tree"))
    assert running is not None
    while running.working is not None:
        await running.working
    return (await client.get("/v1/models/tree/shadow")).json()


async def test_figures_are_those_of_the_rows_that_were_answered(trees: Path) -> None:
    app, values = build_app(trees), np.random.default_rng(1).uniform(size=300)
    async with served(app) as client:
        for start in range(0, 100, 10):
            await predict(client, *values[start : start + 10])
        await settled(app, client)
        await predict(client, *values[100:])
        shown = await settled(app, client)
    differ = int(((values > 0.505) & (values <= 0.605)).sum())
    assert shown["rows"] == {"agreed": 300 - differ, "differed": differ, "unfit": 0, "failed": 0, "dropped": 0}
    assert shown["share"] == (300 - differ) / 300
    assert shown["changes"] == {"high -> low": differ}
    assert (shown["largest_difference"], shown["mean_difference"]) == (1.0, differ / 300)
    assert shown["row_seconds"] > 0
    assert shown["live_row_seconds"] > 0


async def test_rows_without_room_are_dropped_and_counted(trees: Path) -> None:
    app = build_app(trees)
    async with served(app) as client:
        await predict(client, *[0.25] * (shadow.MAX_WAITING_ROWS + 100))
        shown = await settled(app, client)
    assert (shown["rows"]["agreed"], shown["rows"]["dropped"]) == (shadow.MAX_WAITING_ROWS, 100)


async def test_rows_are_dropped_while_requests_wait(trees: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = build_app(trees)
    monkeypatch.setattr(app.service.shadows, "_is_busy", lambda: True)
    async with served(app) as client:
        await predict(client, 0.25)
        shown = await settled(app, client)
        assert (shown["rows"]["dropped"], shown["share"]) == (1, None)
        monkeypatch.setattr(app.service.shadows, "_is_busy", lambda: False)
        await predict(client, 0.25)
        assert (await settled(app, client))["share"] == 1.0


@pytest.mark.parametrize(
    ("candidate", "broken", "failed"),
    [(FragileRegressor, 1.5, 1), (DeadlyRegressor, 1.5, 1), (SleepingRegressor, 5.0, 1)],
    ids=["raises", "ends-its-process", "hangs"],
)
async def test_shadow_that_fails_harms_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, candidate: Callable[[], Any], broken: float, failed: int
) -> None:
    monkeypatch.setattr(shadow, "CALL_SECONDS", 1.0)
    app = build_app(line(tmp_path / "models", candidate()))
    async with served(app) as client:
        await predict(client, broken)
        assert (await settled(app, client))["rows"]["failed"] == failed
        await predict(client, 0.00005)
        shown = await settled(app, client)
        assert (shown["rows"]["agreed"], shown["rows"]["failed"]) == (1, failed)
        assert app.service.reason_to_replace() is None


async def test_figures_go_on_over_a_reload_and_begin_anew_with_another_shadow(trees: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(trees, tmp_path / "models"))
    app = build_app(root)
    async with served(app) as client:
        await predict(client, 0.25, 0.55)
        assert (await settled(app, client))["rows"]["differed"] == 1
    again, _ = renew(app)
    async with served(again) as client:
        await predict(client, 0.56)
        shown = await settled(again, client)
        assert (shown["rows"]["differed"], shown["largest_difference"]) == (2, 1.0)
    begin_shadow(root / "tree", "2")
    anew, _ = renew(again)
    async with served(anew) as client:
        await predict(client, 0.25)
        shown = await settled(anew, client)
        assert (shown["rows"]["agreed"], shown["rows"]["differed"], shown["largest_difference"]) == (1, 0, 0.0)
    end_shadow(root / "tree")
    ended, _ = renew(anew)
    async with served(ended) as client:
        assert (await client.get("/v1/models/tree/shadow")).status_code == 404
    assert not ended.service.shadows
