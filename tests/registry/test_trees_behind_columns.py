"""Trees behind encoders, and splits by category, are explained in the features that were sent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor, RandomForestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from registry.explain.compiled import tree_explainer
from registry.explain.shap_values import Explainer
from registry.kernels.compiling import take_apart
from registry.rows.features import Rows
from registry.rows.infer_schema import infer_features
from registry.rows.schema import Schema
from tests.registry.explanations import CLOSE, assert_additive, assert_same_alone, shap, shapley_values
from tests.registry.parity import mixed, rows_of_table, target


def explained(estimator: Any, table: pd.DataFrame, y: Any) -> tuple[Explainer, Rows]:
    estimator.fit(table, y)
    schema = Schema(infer_features(table, 1.0), "frame")
    return tree_explainer(take_apart(estimator, schema)), rows_of_table(schema, table)


@pytest.mark.parametrize(
    "last",
    [
        RandomForestClassifier(n_estimators=7, random_state=0),
        HistGradientBoostingClassifier(max_iter=9, min_samples_leaf=5, random_state=0),
    ],
    ids=lambda last: type(last).__name__,
)
def test_one_hot_columns_are_summed_to_their_feature(last: Any) -> None:
    table = mixed().drop(columns=["income"] if isinstance(last, RandomForestClassifier) else [])
    encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    columns = make_column_transformer((encoder, ["city", "heating"]), remainder="passthrough")
    estimator = make_pipeline(columns, last)
    explainer, rows = explained(estimator, table, target(table, 2))
    found = explainer.explain(rows[:40])
    values = np.asarray(shap.TreeExplainer(last).shap_values(np.asarray(columns.transform(table[:40]), np.float64)))
    values = values[:, :, 1] if values.ndim == 3 else values
    names = [name.split("__")[1] for name in columns.get_feature_names_out()]
    for index, feature in enumerate(table.columns):
        own = [i for i, name in enumerate(names) if name == feature or name.startswith(f"{feature}_")]
        assert own
        np.testing.assert_allclose(found.values[:, index, 1], values[:, own].sum(axis=1), rtol=0, atol=CLOSE)
    assert_additive(found)
    assert_same_alone(explainer, rows[:9])


def conditional_mean(nodes: Any, goes_left: Any, known: Any, at: int = 0) -> float:
    """The value of a tree where only `known` features are: other splits are passed on both ways."""
    node = nodes[at]
    if node["is_leaf"]:
        return float(node["value"])
    ways = [conditional_mean(nodes, goes_left, known, int(node[side])) for side in ("left", "right")]
    if int(node["feature_idx"]) in known:
        return ways[0] if goes_left(node) else ways[1]
    counts = [float(nodes[int(node[side])]["count"]) for side in ("left", "right")]
    return (ways[0] * counts[0] + ways[1] * counts[1]) / sum(counts)


def test_splits_by_category_are_credited_to_their_feature() -> None:
    table = mixed()[["age", "income", "city", "heating"]]
    table["city"] = table["city"].astype("category")
    y = target(table) + table["city"].map({"Basel": 0.0, "Bern": 200.0, "Genf": 90.0, "Zug": 300.0}).astype(
        float
    ).fillna(50.0)
    y += 90.0 * (table["heating"] == "oil")
    estimator = HistGradientBoostingRegressor(max_iter=4, min_samples_leaf=5, categorical_features="from_dtype")
    explainer, rows = explained(estimator, table, y)
    members = [stage[0] for stage in estimator._predictors]
    assert all(asked_again(member.nodes) for member in members)
    found = explainer.explain(rows[:12])
    assert_additive(found)
    np.testing.assert_allclose(found.outputs[:, 0], estimator.predict(table[:12]), rtol=0, atol=CLOSE)
    matrix = estimator._preprocess_X(table[:12], reset=False)
    order = [2, 3, 0, 1]  # histogram boosting puts categories first
    for row, cells in enumerate(matrix):

        def worth(known: Any, cells: Any = cells) -> float:
            return sum(conditional_mean(member.nodes, side_of(member, cells), known) for member in members)

        values = np.empty(4)
        values[order] = shapley_values(worth, 4)
        np.testing.assert_allclose(found.values[row, :, 0], values, rtol=0, atol=CLOSE)


def asked_again(nodes: Any, at: int = 0, asked: frozenset[int] = frozenset()) -> bool:
    """Whether some path splits by category of the same feature twice."""
    node = nodes[at]
    if node["is_leaf"]:
        return False
    feature = int(node["feature_idx"])
    if node["is_categorical"] and feature in asked:
        return True
    below = asked | {feature} if node["is_categorical"] else asked
    return any(asked_again(nodes, int(node[side]), below) for side in ("left", "right"))


def side_of(member: Any, cells: Any) -> Any:
    """Whether a row goes left at a node of histogram boosting."""

    def goes_left(node: Any) -> bool:
        value = cells[node["feature_idx"]]
        if np.isnan(value):
            return bool(node["missing_go_to_left"])
        if node["is_categorical"]:
            words = member.raw_left_cat_bitsets[node["bitset_idx"]]
            return bool(words[int(value) // 32] >> (int(value) % 32) & 1)
        return bool(value <= node["num_threshold"])

    return goes_left
