"""The explainer that fits is chosen when a version is added, recorded, and built again when it is loaded."""

from __future__ import annotations

import gc
import json
import sys
import threading
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.ensemble import (
    GradientBoostingClassifier,
    HistGradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler
from sklearn.svm import SVC
from structlog.testing import capture_logs

from registry.errors import ModelFailed, NotExplained
from registry.explain import budget, choose
from registry.explain.compiled import linear_explainer, tree_explainer
from registry.explain.library import import_shap
from registry.explain.shap_values import Contributions
from registry.kernels.compiling import take_apart
from registry.kernels.kernel import Unsupported
from registry.model import LoadedModel
from registry.rows.infer_schema import infer_features
from registry.rows.schema import Schema
from registry.store.add import add_version
from registry.store.loader import load_version
from registry.store.options import DEFAULT_OPTIONS, LoadOptions
from tests.registry.explanations import CLOSE, assert_additive, assert_same_alone, shapley_values
from tests.registry.parity import numbers, target

TABLE = numbers(features=3)
ROWS = TABLE.to_numpy()
BOOSTED: dict[str, Any] = {"random_state": 0}
POLYNOMIAL = make_pipeline(PolynomialFeatures(2), StandardScaler(), LogisticRegression())

CHOSEN: dict[str, tuple[Any, int | None, str, str]] = {
    "forest": (RandomForestClassifier(5, random_state=0), 2, "tree-path-dependent", "probability"),
    "boosting": (GradientBoostingClassifier(n_estimators=5), 3, "tree-path-dependent", "margin"),
    "histogram boosting": (HistGradientBoostingRegressor(max_iter=5), 0, "tree-path-dependent", "value"),
    "logistic": (make_pipeline(StandardScaler(), LogisticRegression()), 2, "linear", "margin"),
    "naive Bayes": (GaussianNB(), 3, "exact", "probability"),
    "neighbours": (KNeighborsRegressor(), 0, "exact", "value"),
    "support vectors": (SVC(), 2, "exact", "margin"),
    "polynomial": (POLYNOMIAL, 2, "exact", "probability"),
    "isolation forest": (IsolationForest(n_estimators=5, random_state=0), None, "exact", "margin"),
}


def added(root: Path, estimator: Any, classes: int | None, table: pd.DataFrame = TABLE) -> LoadedModel:
    y = None if classes is None else target(table, classes)
    return add_version(root, "model", estimator.fit(table.to_numpy(), y), table)


@pytest.fixture
def forest(tmp_path: Path) -> LoadedModel:
    return added(tmp_path, RandomForestClassifier(5, random_state=0), 2)


BY_THE_KERNEL = ("tree-path-dependent", True)
BY_SHAP = ("tree-path-dependent", False)


def explained_by(model: LoadedModel) -> tuple[str, bool]:
    """How a model is explained, and whether in a worker's own process."""
    assert model.explainer is not None
    return model.explainer.method, model.explainer.in_process


def reload(root: Path, options: LoadOptions = DEFAULT_OPTIONS) -> LoadedModel:
    return load_version(root, root / "model" / "1", options)


@pytest.mark.parametrize("name", CHOSEN)
def test_explainer_that_fits_is_chosen_recorded_and_adds_up(name: str, tmp_path: Path) -> None:
    estimator, classes, method, space = CHOSEN[name]
    model = added(tmp_path, estimator, classes)
    assert model.explainer is not None
    assert model.manifest.explainer is not None
    assert (model.explainer.method, model.explainer.space) == (method, space)
    assert (model.manifest.explainer.method, model.manifest.explainer.space) == (method, space)
    found = model.contributions(ROWS[:4])
    assert_additive(found)
    assert_same_alone(model.explainer, ROWS[:3])
    assert found.values.shape == (4, 3, max(classes or 0, 1))
    assert set(model.manifest.explainer.importance) == {"x0", "x1", "x2"}


@pytest.mark.parametrize("name", ["naive Bayes", "neighbours", "support vectors"])
def test_exact_values_are_those_of_the_definition(name: str, tmp_path: Path) -> None:
    estimator, classes, _, _ = CHOSEN[name]
    model = added(tmp_path, estimator, classes)
    background = model.schema.rows([list(row) for row in model.manifest.background])

    def worth(known: Any) -> float:
        mixed = background.copy()
        mixed[:, list(known)] = ROWS[0, list(known)]
        ask = {"support vectors": "decision_function", "naive Bayes": "predict_proba", "neighbours": "predict"}[name]
        return float(np.mean(getattr(estimator, ask)(mixed).reshape(100, -1)[:, -1]))

    found = model.contributions(ROWS[:1])
    np.testing.assert_allclose(found.values[0, :, -1], shapley_values(worth, 3), rtol=0, atol=CLOSE)
    np.testing.assert_allclose(found.base_values[-1], worth(()), rtol=0, atol=CLOSE)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with a model of twelve features, too many for all their coalitions."""
    root = tmp_path_factory.mktemp("wide")
    added(root, GaussianNB(), 3, numbers(features=12))
    return root


@pytest.mark.parametrize("features", [1, 2])
def test_model_of_few_features_is_explained(features: int, tmp_path: Path) -> None:
    table = numbers(features=2).iloc[:, :features]
    model = added(tmp_path, KNeighborsRegressor(), 0, table)
    assert model.explainer is not None
    assert model.explainer.method == "exact"
    assert_additive(model.contributions(table.to_numpy()[:3]))


def test_permutations_are_seeded_by_the_row(wide: Path) -> None:
    model = reload(wide)
    assert model.explainer is not None
    assert model.explainer.method == "permutation"
    rows = numbers(features=12).to_numpy()[:3]
    state = np.random.get_state()[1]
    first = model.contributions(rows)
    assert (np.random.get_state()[1] == state).all()
    np.random.seed(1)
    again = reload(wide).contributions(rows[::-1].copy())
    assert first.values.tobytes() == again.values[::-1].tobytes()
    assert_additive(first)
    assert_same_alone(model.explainer, rows)


def test_budget_is_spent_on_more_permutations(wide: Path) -> None:
    rows = numbers(features=12).to_numpy()[:1]
    few, many = (reload(wide, LoadOptions(shap_evaluations=number)).contributions(rows) for number in (1, 1000))
    assert_additive(few)
    assert_additive(many)
    assert few.standard_error is not None
    assert many.standard_error is not None
    assert (many.standard_error < few.standard_error / 3).all()
    assert (np.abs(many.values - few.values) < 5 * few.standard_error).all()


@pytest.mark.parametrize(("seconds", "jobs_only"), [(0.0, True), (1000.0, False)])
def test_model_that_is_too_slow_for_a_request_says_so(
    wide: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, *, jobs_only: bool
) -> None:
    monkeypatch.setattr(budget, "MAX_REQUEST_SECONDS", seconds)
    explainer = reload(wide).explainer
    assert explainer is not None
    assert (explainer.jobs_only, explainer.in_process) == (jobs_only, False)


def test_model_that_gives_nothing_to_explain_has_no_explainer(tmp_path: Path) -> None:
    with capture_logs() as logs:
        model = added(tmp_path, KMeans(3, random_state=0), None)
    assert model.explainer is None
    assert model.manifest.explainer is None
    assert "gives a label and no number" in str([line for line in logs if line["event"] == "Model has no explainer"])
    with pytest.raises(NotExplained, match="model/1"):
        model.explain(ROWS[:1])


@pytest.mark.usefixtures("forest")
def test_trees_and_linear_models_do_without_shap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shap", None)
    assert explained_by(reload(tmp_path)) == BY_THE_KERNEL


@pytest.mark.usefixtures("forest")
def test_trees_that_no_kernel_takes_are_explained_by_shap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = reload(tmp_path).contributions(ROWS[:5])
    monkeypatch.setattr(choose, "take_apart", refuse)
    model = reload(tmp_path)
    assert explained_by(model) == BY_SHAP
    assert model.explainer is not None
    found = model.contributions(ROWS[:5])
    np.testing.assert_allclose(found.values, quick.values, rtol=0, atol=CLOSE)
    assert found.outputs.tobytes() == quick.outputs.tobytes()
    assert_same_alone(model.explainer, ROWS[:5])


@pytest.mark.parametrize(
    ("estimator", "classes"),
    [(GradientBoostingClassifier(n_estimators=5), 2), (RandomForestRegressor(5), 0)],
    ids=["margins", "values"],
)
def test_shap_explains_the_same_as_the_kernel(
    estimator: Any, classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = added(tmp_path, estimator, classes).contributions(ROWS[:5])
    monkeypatch.setattr(choose, "take_apart", refuse)
    found = reload(tmp_path).contributions(ROWS[:5])
    np.testing.assert_allclose(found.values, quick.values, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.base_values, quick.base_values, rtol=0, atol=1e-6)


def refuse(*_arguments: Any, **_options: Any) -> Any:
    raise Unsupported("not today")


@pytest.mark.usefixtures("forest")
def test_explainer_that_breaks_does_not_stop_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: Any, **_options: Any) -> Any:
        raise AttributeError("no attribute 'tree_'")

    monkeypatch.setattr(choose, "take_apart", broken)
    monkeypatch.setattr(choose, "ensemble_explainer", broken)
    with capture_logs() as logs:
        model = reload(tmp_path)
    assert model.explainer is None
    assert "AttributeError: no attribute 'tree_'" in str(logs)


def test_explainer_of_other_outputs_than_the_estimators_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    added(tmp_path, RandomForestRegressor(5), 0)

    def wrong(parts: Any) -> Any:
        explainer = tree_explainer(parts)

        def explain(rows: Any) -> Contributions:
            found = explainer.explain(rows)
            return replace(found, outputs=found.outputs + 1e-6, base_values=found.base_values + 1e-6)

        return replace(explainer, explain=explain)

    monkeypatch.setattr(choose, "tree_explainer", wrong)
    assert explained_by(reload(tmp_path)) == BY_SHAP


def test_contributions_that_do_not_add_up_are_not_answered(forest: LoadedModel) -> None:
    def explain(rows: Any) -> Contributions:
        found = forest.contributions(rows)
        return replace(found, values=found.values * (1 + 1e-6))

    assert forest.explainer is not None
    broken = replace(forest, explainer=replace(forest.explainer, explain=explain))
    with pytest.raises(ModelFailed, match="do not add up"):
        broken.explain(ROWS[:5])


def test_row_that_the_model_refuses_is_not_explained(forest: LoadedModel) -> None:
    with pytest.raises(ModelFailed):
        forest.explain(np.full((1, 3), 1e300))


@pytest.mark.usefixtures("forest")
def test_version_without_a_record_is_loaded_with_an_explainer(tmp_path: Path) -> None:
    path = tmp_path / "model" / "1" / "manifest.json"
    manifest = json.loads(path.read_bytes())
    assert manifest.pop("explainer")["method"] == "tree-path-dependent"
    path.write_text(json.dumps(manifest))
    model = reload(tmp_path)
    assert explained_by(model) == BY_THE_KERNEL
    assert model.manifest.explainer is None


def test_recorded_method_is_kept_even_where_another_would_fit(tmp_path: Path, forest: LoadedModel) -> None:
    assert forest.manifest.explainer is not None
    record = msgspec.structs.replace(forest.manifest.explainer, method="exact")
    path = tmp_path / "model" / "1" / "manifest.json"
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(forest.manifest, explainer=record)))
    explainer = reload(tmp_path).explainer
    assert explainer is not None
    assert explainer.method == "exact"


def test_importance_is_the_mean_of_absolute_contributions_over_the_background(forest: LoadedModel) -> None:
    assert forest.explainer is not None
    assert forest.manifest.explainer is not None
    background = forest.schema.rows([list(row) for row in forest.manifest.background])
    expected = np.abs(forest.explainer.explain(background).values[:, :, 1]).mean(axis=0)
    np.testing.assert_allclose(list(forest.manifest.explainer.importance.values()), expected, rtol=1e-12)
    assert forest.manifest.explainer.importance_rows == 100


@pytest.mark.parametrize("name", ["forest", "boosting", "histogram boosting", "logistic"])
def test_exact_explainer_holds_nothing_of_its_estimator(name: str) -> None:
    estimator = clone(CHOSEN[name][0]).fit(ROWS, target(TABLE, CHOSEN[name][1] or 0))
    last = estimator.steps[-1][1] if hasattr(estimator, "steps") else estimator
    parts = take_apart(estimator, Schema(infer_features(TABLE, 1.0)))
    explainer = linear_explainer(parts, ROWS) if parts.trees is None else tree_explainer(parts)
    found = weakref.ref(last)
    del estimator, last, parts
    gc.collect()
    assert found() is None
    assert_additive(explainer.explain(ROWS[:1]))


def test_explanation_that_takes_long_starts_no_thread_before_the_fork() -> None:
    shap = import_shap()
    before = threading.active_count()
    assert list(shap.utils.show_progress(range(3), 3, "", silent=True, start_delay=-1)) == [0, 1, 2]
    assert threading.active_count() == before
