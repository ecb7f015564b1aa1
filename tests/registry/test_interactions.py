"""Interactions as they are shown: by name, with groups and the sum of the others, and refused where there are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import BaggingRegressor, GradientBoostingClassifier, RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.tree import DecisionTreeRegressor

from registry.errors import InvalidSelection
from registry.explain.explanation import Selection
from registry.model import LoadedModel
from registry.registry import Registry
from registry.store.add import add_version
from serving.predict.operation import answer_bytes, make_operations
from tests.registry.explanations import shap

RNG = np.random.default_rng(5)
TABLE = pd.DataFrame(RNG.normal(size=(200, 6)), columns=list("abcdef"))
TARGET = np.where(TABLE["a"] * TABLE["b"] > 0, "x", np.where(TABLE["c"] > 0, "y", "z"))
WITH = Selection(interactions=True)


@pytest.fixture(scope="module")
def forest(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    estimator = RandomForestClassifier(20, max_depth=6, random_state=0).fit(TABLE, TARGET)
    groups = {"pair": ["a", "b"]}
    return add_version(tmp_path_factory.mktemp("models"), "forest", estimator, TABLE, groups=groups)


def as_matrix(pairs: dict[str, dict[str, float]]) -> Any:
    names = list(pairs)
    assert all(list(row) == names for row in pairs.values())
    return np.array([list(row.values()) for row in pairs.values()])


def check(item: dict[str, Any]) -> None:
    """Rows and columns add up to the values, of the same names in the same order."""
    matrix = as_matrix(item["interactions"])
    assert list(item["interactions"]) == list(item["values"])
    values = list(item["values"].values())
    np.testing.assert_allclose(matrix.sum(axis=0), values, rtol=0, atol=1e-12)
    np.testing.assert_allclose(matrix.sum(axis=1), values, rtol=0, atol=1e-12)
    np.testing.assert_allclose(matrix, matrix.T, rtol=0, atol=1e-15)


@pytest.mark.parametrize("top", [None, 1, 2, 5, 9])
@pytest.mark.parametrize("classes", ["predicted", "all", ("z", "x")])
def test_rows_and_columns_add_up_whatever_is_shown(forest: LoadedModel, top: int | None, classes: Any) -> None:
    rows = forest.background[:3]
    for item in forest.explain(rows, Selection(classes, top, interactions=True)):
        each = item["classes"].values() if "classes" in item else [item]
        for one in each:
            check(one)
            assert len(one["values"]) == (5 if top is None or top >= 5 else top + 1)


def test_groups_are_summed_and_others_are_as_they_were(forest: LoadedModel, tmp_path: Path) -> None:
    rows = forest.background[:1]
    (item,) = forest.explain(rows, WITH)
    estimator = RandomForestClassifier(20, max_depth=6, random_state=0).fit(TABLE, TARGET)
    theirs = shap.TreeExplainer(estimator).shap_interaction_values(rows)[0]
    place = forest.labels.place(item["label"])
    assert item["interactions"]["c"]["d"] == pytest.approx(theirs[2, 3, place], abs=1e-12)
    assert item["interactions"]["pair"]["c"] == pytest.approx(theirs[:2, 2, place].sum(), abs=1e-12)
    assert item["interactions"]["pair"]["pair"] == pytest.approx(theirs[:2, :2, place].sum(), abs=1e-12)


def test_a_mean_of_trees_has_the_mean_of_their_interactions(tmp_path: Path) -> None:
    estimator = BaggingRegressor(DecisionTreeRegressor(max_depth=4), 5, random_state=0)
    model = add_version(tmp_path, "bag", estimator.fit(TABLE.to_numpy(), TABLE["a"] * TABLE["b"]), TABLE)
    rows = model.background[:4]
    for item, row in zip(model.explain(rows, WITH), rows, strict=True):
        check(item)
        theirs = [shap.TreeExplainer(tree).shap_interaction_values(row[None])[0] for tree in estimator.estimators_]
        np.testing.assert_allclose(as_matrix(item["interactions"]), np.mean(theirs, axis=0), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("estimator", "space", "reason"),
    [
        (LinearRegression(), None, "explained by linear"),
        (
            GradientBoostingClassifier(n_estimators=5),
            "probability",
            "in probability space .* explained by interventional",
        ),
        (RandomForestRegressor(2), "margin", "space must be one of value"),
    ],
)
def test_explanations_without_interactions_refuse_them(estimator: Any, space: Any, reason: str, tmp_path: Path) -> None:
    target = TARGET == "x" if isinstance(estimator, GradientBoostingClassifier) else TABLE["a"] * TABLE["b"]
    model = add_version(tmp_path, "model", estimator.fit(TABLE, target), TABLE)
    with pytest.raises(InvalidSelection, match=reason):
        model.explain(model.background[:1], Selection(space=space, interactions=True))


def test_too_many_features_are_refused_before_anything_is_computed(tmp_path: Path) -> None:
    table = pd.DataFrame(RNG.normal(size=(30, 600)), columns=[f"f{n}" for n in range(600)])
    estimator = RandomForestClassifier(2, random_state=0).fit(table, [0, 1] * 15)
    model = add_version(tmp_path, "wide", estimator, table)
    with pytest.raises(InvalidSelection, match="600 features would be more than 524288"):
        model.explain(model.background[:1], WITH)


def test_the_size_of_an_answer_is_estimated_with_its_interactions(forest: LoadedModel) -> None:
    import msgspec

    for selection in (WITH, Selection("all", interactions=True), Selection("all", 2, interactions=True)):
        (item,) = forest.explain(forest.background[:1], selection)
        size, estimate = len(msgspec.json.encode(item)), answer_bytes(forest, "explain", selection)
        assert size / 2 < estimate < 3 * size


def test_interactions_are_an_operation_of_their_own(forest: LoadedModel, tmp_path: Path) -> None:
    names = [operation.name for operation in make_operations(Registry([forest]))]
    assert names == ["forest/1:predict", "forest/1:explain", "forest/1:explain-interactions"]
    linear = LogisticRegression().fit(TABLE, TARGET)
    model = add_version(tmp_path, "linear", linear, TABLE)
    assert all("interactions" not in operation.name for operation in make_operations(Registry([model])))
