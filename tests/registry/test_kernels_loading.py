"""The loader serves a compiled model only when it is as good as its estimator, and then lets the estimator go."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.decomposition import KernelPCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import RadiusNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from structlog.testing import capture_logs

from registry.estimator import Compute
from registry.kernels import compile_estimator
from registry.kernels.answers import Answers
from registry.outputs import Layout
from registry.rows.infer_schema import infer_features
from registry.rows.schema import Schema
from registry.store import loader
from registry.store.add import add_version
from registry.store.loader import load_version
from tests.registry.parity import ROWS, numbers, target

TABLE = numbers()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A model directory with a small forest."""
    forest = RandomForestClassifier(n_estimators=5, random_state=0).fit(TABLE.to_numpy(), target(TABLE, 2))
    add_version(tmp_path, "forest", forest, TABLE)
    return tmp_path


class Own(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """A step of Python code."""

    def fit(self, _x: Any, _y: Any = None) -> Self:
        self.fitted_ = True
        return self

    def transform(self, x: Any) -> Any:
        return x


def not_compiled(logs: Any) -> list[dict[str, Any]]:
    return [line for line in logs if line["event"] == "Model not compiled"]


def test_forest_is_served_compiled(root: Path) -> None:
    with capture_logs() as logs:
        model = load_version(root, root / "forest" / "1")
    assert (model.compiled, model.reason) == (True, "")
    assert not_compiled(logs) == []
    forest = RandomForestClassifier(n_estimators=5, random_state=0).fit(TABLE.to_numpy(), target(TABLE, 2))
    assert model.compute(TABLE.to_numpy()).tobytes() == forest.predict_proba(TABLE.to_numpy()).tobytes()


def test_model_without_a_compiled_form_is_served_by_its_estimator(tmp_path: Path) -> None:
    add_version(tmp_path, "neighbours", RadiusNeighborsRegressor(9.0).fit(TABLE.to_numpy(), target(TABLE)), TABLE)
    with capture_logs() as logs:
        model = load_version(tmp_path, tmp_path / "neighbours" / "1")
    assert not model.compiled
    (line,) = not_compiled(logs)
    reason = "the estimator RadiusNeighborsRegressor has no compiled form"
    assert (line["model"], line["version"], line["reason"], model.reason) == ("neighbours", "1", reason, reason)
    assert model.compute(TABLE.to_numpy()).shape == (ROWS, 1)


def test_model_names_the_steps_that_stay_python_before_what_is_compiled(tmp_path: Path) -> None:
    for name, step in (("library", KernelPCA(2)), ("own", Own())):
        pipeline = make_pipeline(step, LogisticRegression()).fit(TABLE.to_numpy(), target(TABLE, 2))
        model = add_version(tmp_path, name, pipeline, TABLE)
        assert (model.compiled, model.python_steps, model.reason) == (True, (type(step).__name__,), "")
        one = TABLE.to_numpy()[:1]
        assert model.compute(one)[:, :2].tobytes() == pipeline.predict_proba(one).tobytes()


def test_model_that_is_compiled_wrongly_is_served_by_its_estimator(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_rightly = Answers.compute

    def compile_wrongly(answers: Answers, layout: Layout) -> Compute:
        right = compile_rightly(answers, layout)
        return lambda rows: np.nextafter(right(rows), 2.0)

    right = load_version(root, root / "forest" / "1")
    monkeypatch.setattr(Answers, "compute", compile_wrongly)
    with capture_logs() as logs:
        model = load_version(root, root / "forest" / "1")
    assert not model.compiled
    (line,) = not_compiled(logs)
    assert (line["model"], line["version"]) == ("forest", "1")
    assert line["reason"] == "it does not answer as its estimator does"
    assert model.compute(TABLE.to_numpy()).tobytes() == right.compute(TABLE.to_numpy()).tobytes()


def test_compiler_that_breaks_does_not_stop_the_start(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **options: Any) -> Compute:
        raise AttributeError("no attribute '_predictors'")

    monkeypatch.setattr(Answers, "compute", broken)
    with capture_logs() as logs:
        model = load_version(root, root / "forest" / "1")
    assert not model.compiled
    assert "_predictors" in not_compiled(logs)[0]["reason"]


def test_compiled_model_lets_its_estimator_go(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[weakref.ref[Any]] = []
    load = loader.load_artefact

    def remember(*arguments: Any) -> Any:
        estimator = load(*arguments)
        loaded.extend(map(weakref.ref, (estimator, *estimator.estimators_)))
        return estimator

    monkeypatch.setattr(loader, "load_artefact", remember)
    model = load_version(root, root / "forest" / "1")
    gc.collect()
    assert model.compiled
    assert len(loaded) == 6
    assert [reference() for reference in loaded if reference() is not None] == []


def test_compiled_pipeline_holds_none_of_its_steps() -> None:
    pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(TABLE.to_numpy(), target(TABLE, 2))
    compiled = compile_estimator(pipeline, Schema(infer_features(TABLE, 1.0)))
    steps = [weakref.ref(step) for _, step in pipeline.steps]
    del pipeline
    gc.collect()
    assert compiled(TABLE.to_numpy()).shape == (ROWS, 3)
    assert [step() for step in steps] == [None, None]
