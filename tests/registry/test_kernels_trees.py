"""Compiled tree ensembles answer as scikit-learn does, bit for bit."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.ensemble import (
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from registry.kernels import compile_estimator, probe_rows
from registry.kernels.forest import widen_thresholds
from registry.kernels.kernel import Unsupported
from registry.rows.infer_schema import infer_features
from registry.rows.schema import Schema
from tests.registry.ensembles import ENSEMBLES, QUICK, SMALL
from tests.registry.parity import Pair, around, mixed, numbers, pair, rows_of, target


def thresholds(estimator: Any) -> list[float]:
    """Where the estimator's trees split."""
    if hasattr(estimator, "_predictors"):
        nodes = np.concatenate([member.nodes for stage in estimator._predictors for member in stage])
        return [float(value) for value in nodes["num_threshold"][nodes["is_leaf"] == 0]]
    members = np.ravel(getattr(estimator, "estimators_", [estimator])).tolist()
    return [float(value) for member in members for value in member.tree_.threshold[member.tree_.feature >= 0]]


@cache
def fitted(name: str) -> tuple[Pair, list[float]]:
    estimator, classes, missing = clone(ENSEMBLES[name][0]), *ENSEMBLES[name][1:]
    table = numbers(missing=missing)
    y = target(table, classes)
    y = np.exp(y) if getattr(estimator, "loss", "") in ("poisson", "gamma") else y
    made = pair(estimator, table, y, margin=None)
    return made, around([*thresholds(estimator)[:200], 0.0, 1e6, -1e6])


@pytest.mark.parametrize("name", ENSEMBLES)
@settings(max_examples=25)
@given(data=st.data())
def test_ensemble_answers_any_row_as_scikit_learn_does(name: str, data: st.DataObject) -> None:
    made, interesting = fitted(name)
    rows = data.draw(rows_of(made.schema, interesting, count=20))
    if name in ("histogram boosting, 9 classes", "voting trees, 9 classes"):
        made.assert_same(rows[:5])  # scikit-learn adds 8 and more probabilities of a batch in another order
    else:
        made.assert_same_in_a_batch(rows)


@pytest.mark.parametrize("name", ENSEMBLES)
def test_ensemble_answers_each_row_alone_as_in_a_batch(name: str) -> None:
    made, _ = fitted(name)
    rows = probe_rows(made.schema, np.random.default_rng(0).normal(size=(10, len(made.schema))))[:40]
    made.assert_same(rows)


@pytest.mark.parametrize(
    "estimator",
    [
        DecisionTreeRegressor(max_depth=4),
        RandomForestRegressor(**SMALL),
        DecisionTreeClassifier(max_depth=4),
        RandomForestClassifier(**SMALL),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_trees_of_several_outputs_answer_the_same(estimator: Any) -> None:
    table = numbers()
    classes = (2, 4, 3) if hasattr(estimator, "predict_proba") else (0, 0, 0)
    y = np.column_stack([target(table[[f"x{i}"]], count) for i, count in enumerate(classes)])
    made = pair(estimator, table, y)
    made.assert_same(table.to_numpy()[:40])


@pytest.mark.parametrize("depth", range(1, 31))
def test_tree_of_any_depth_answers_the_same(depth: int) -> None:
    table = pd.DataFrame({"x0": 2.0 ** np.arange(-20, 20)})
    estimator = DecisionTreeRegressor(max_depth=depth)
    made = pair(estimator, table, 4.0 ** np.arange(40))  # the best split cuts off the last value, again and again
    assert estimator.get_depth() == depth
    made.assert_same_in_a_batch(np.array(around(table["x0"].tolist()))[:, None])


@pytest.mark.parametrize(
    "estimator",
    [
        DecisionTreeRegressor(),
        RandomForestRegressor(n_estimators=3),
        GradientBoostingRegressor(n_estimators=3),
        HistGradientBoostingRegressor(max_iter=3),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_trees_of_a_single_node_answer_the_same(estimator: Any) -> None:
    table = numbers()
    pair(estimator, table, np.full(len(table), 2.5)).assert_same(table.to_numpy()[:10])


@pytest.mark.parametrize(
    "estimator",
    [GradientBoostingClassifier(n_estimators=2), HistGradientBoostingClassifier(max_iter=2), RandomForestClassifier(2)],
    ids=lambda estimator: type(estimator).__name__,
)
def test_label_at_even_odds_is_the_one_that_scikit_learn_gives(estimator: Any) -> None:
    table = pd.DataFrame({"x0": np.zeros(40)})
    estimator.set_params(**({"bootstrap": False} if "bootstrap" in estimator.get_params() else {}))
    made = pair(estimator, table, ["a", "b"] * 20)
    assert made.reference(np.zeros((1, 1)))[0, :2].tolist() == [0.5, 0.5]
    made.assert_same(np.zeros((1, 1)))


def test_estimator_fitted_on_named_columns_answers_the_same() -> None:
    table = mixed()[["age", "rooms", "owner"]]
    for estimator in (RandomForestClassifier(**SMALL), HistGradientBoostingClassifier(**QUICK)):
        made = pair(estimator, table, target(table, 3), frame=True)
        made.assert_same_in_a_batch(table.to_numpy(np.float64))


@pytest.mark.parametrize("name", ["boosting, numbers", "decision tree, 2 classes"])
def test_value_too_large_for_the_estimator_is_answered_nan(name: str) -> None:
    made, _ = fitted(name)
    largest = float(np.finfo(np.float32).max)
    fits, does_not = np.zeros((1, 5)), np.zeros((1, 5))
    fits[0, 0], does_not[0, 0] = largest, largest * 2
    made.assert_same(fits)
    with pytest.raises(ValueError, match="too large"), np.errstate(over="ignore"):
        made.reference(does_not)
    assert np.isnan(made.compiled(does_not)).all()


def test_missing_value_that_boosting_refuses_is_answered_nan() -> None:
    made, _ = fitted("boosting, 2 classes")
    row = np.array([[0.0, np.nan, 0.0, 0.0, 0.0]])
    with pytest.raises(ValueError, match="NaN"):
        made.reference(row)
    assert np.isnan(made.compiled(row)[:, :2]).all()


def test_infinite_values_go_where_histogram_boosting_sends_them() -> None:
    made, _ = fitted("histogram boosting, 2 classes, missing values")
    made.assert_same(np.array([[np.inf, -np.inf, np.inf, 0, 0], [-np.inf, 0, -np.inf, np.inf, np.inf]]))


@pytest.mark.parametrize(
    "estimator",
    [
        GradientBoostingRegressor(init=DecisionTreeRegressor(), **SMALL),
        HistGradientBoostingRegressor(max_iter=2),
    ],
    ids=["init", "subclass"],
)
def test_ensemble_without_a_compiled_form_is_left_alone(estimator: Any, request: pytest.FixtureRequest) -> None:
    table = numbers()
    y = target(table)
    estimator.fit(table.to_numpy(), y)
    if request.node.callspec.id == "subclass":
        estimator.__class__ = type("Own", (HistGradientBoostingRegressor,), {})
    with pytest.raises(Unsupported):
        compile_estimator(estimator, Schema(infer_features(table, None)))


@settings(max_examples=200)
@given(
    threshold=st.floats(-3e38, 3e38) | st.floats(-1e-37, 1e-37) | st.floats(-1e3, 1e3),
    steps=st.integers(-3, 3),
)
def test_widened_threshold_decides_as_rounding_to_float32_does(threshold: float, steps: int) -> None:
    widened = float(widen_thresholds(np.array([threshold]))[0])
    for value in around([threshold, widened]):
        if abs(value) <= float(np.finfo(np.float32).max):
            assert (value <= widened) == (np.float64(np.float32(value)) <= threshold), (threshold, value)
