"""An app in this process over small models of all kinds, and a client of it that speaks both protocols."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.ensemble import IsolationForest, RandomForestClassifier, RandomForestRegressor
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import LinearSVC

from harness.apps import client_of
from registry.store.add import add_trained
from registry.training.script import Trained
from serving.app import Application, build, build_alerts
from serving.settings import Settings

ROWS = 60


def samples() -> dict[str, tuple[Any, pd.DataFrame]]:
    """Estimators with the tables that they were fitted on."""
    random = np.random.default_rng(7)
    numbers = pd.DataFrame(random.normal(size=(ROWS, 3)), columns=["a", "b", "c"])
    first = numbers["a"] > 0
    people = pd.DataFrame(
        {
            "age": random.integers(18, 90, ROWS),
            "income": np.where(random.random(ROWS) < 0.2, np.nan, random.normal(5e4, 1e4, ROWS)),
            "city": random.choice(["Bern", "Chur", "Genève"], ROWS),
            "is_member": random.random(ROWS) < 0.5,
        }
    )
    columns = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), ["city"]),
        (make_pipeline(SimpleImputer(), StandardScaler()), ["age", "income"]),
        ("passthrough", ["is_member"]),
    )
    # numbers of which a float64 does not hold each
    identifiers = pd.DataFrame({"id": pd.Categorical(np.tile([2**53, 2**53 + 1, 2**62 + 1], ROWS // 3))})
    texts = pd.DataFrame({"text": ["good fine", "bad poor"] * (ROWS // 2)})
    forest = RandomForestClassifier(5, max_depth=3, random_state=0)
    labels = np.where(first, "high", "low")
    return {
        "classifier": (forest.fit(numbers.to_numpy(), labels), numbers),
        "numbered": (LogisticRegression().fit(numbers, first.astype(int)), numbers),
        "regressor": (RandomForestRegressor(5, max_depth=3, random_state=0).fit(numbers, numbers["a"] * 3), numbers),
        "margins": (LinearSVC().fit(numbers, labels), numbers),
        "outliers": (IsolationForest(n_estimators=5, random_state=0).fit(numbers.to_numpy()), numbers),
        "targets": (LinearRegression().fit(numbers, numbers[["a", "b"]]), numbers),
        "people": (make_pipeline(columns, LogisticRegression()).fit(people, people["age"] > 50), people),
        "identifiers": (
            make_pipeline(OneHotEncoder(), LogisticRegression()).fit(identifiers, ["x", "y", "z"] * (ROWS // 3)),
            identifiers,
        ),
        "texts": (
            make_pipeline(make_column_transformer((TfidfVectorizer(), "text")), LogisticRegression()).fit(
                texts, [True, False] * (ROWS // 2)
            ),
            texts,
        ),
    }


@pytest.fixture(scope="package")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a model of each kind."""
    root = tmp_path_factory.mktemp("kinds") / "models"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, (estimator, sample) in samples().items():
            add_trained(root, name, Trained(estimator=estimator, sample=sample))
    return root


@pytest.fixture(scope="package")
def kinds_app(kinds: Path) -> Application:
    settings = Settings(model_dir=kinds, data_dir=kinds.parent / "data")
    return build(settings, build_alerts(settings))


class Caller:
    """Sends requests to an app in this process, which stays open in between."""

    def __init__(self, app: Application, runner: asyncio.Runner, client: httpx.AsyncClient) -> None:
        self.app = app
        self._runner = runner
        self._client = client

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self._runner.run(self._client.request(method, path, **options))

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        """POST `body` as JSON, or bytes as they are, without a content type unless `headers` have one."""
        content = {"content": body} if isinstance(body, bytes) else {"json": body}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.request("POST", path, headers=named, **content)

    def predict(self, model: str, instances: list[Any], verb: str = "predict") -> list[Any]:
        """The answers of our own protocol."""
        answer = self.post(f"/v1/models/{model}:{verb}", {"instances": instances})
        assert answer.status_code == 200, answer.text
        found: list[Any] = answer.json()[f"{'predictions' if verb == 'predict' else 'explanations'}"]
        return found

    def infer(self, model: str, inputs: list[Any], **members: Any) -> httpx.Response:
        """The answer to tensors in JSON."""
        return self.post(f"/v2/models/{model}/infer", {"inputs": inputs, **members})


@pytest.fixture(scope="package")
def caller(kinds_app: Application) -> Iterator[Caller]:
    with asyncio.Runner() as runner:

        @asynccontextmanager
        async def opened() -> AsyncIterator[httpx.AsyncClient]:
            async with AsyncExitStack() as closing:
                await kinds_app.service.open(closing)
                yield await closing.enter_async_context(client_of(kinds_app))

        context = opened()
        client = runner.run(context.__aenter__())
        yield Caller(kinds_app, runner, client)
        runner.run(context.__aexit__(None, None, None))
