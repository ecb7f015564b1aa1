"""Linear models are explained exactly, back through their preprocessing to the features that were sent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import LinearSVC

from registry.explain.compiled import linear_explainer
from registry.explain.shap_values import Explainer
from registry.kernels.compiling import take_apart
from registry.rows.features import Rows
from registry.rows.infer_schema import infer_features
from registry.rows.schema import Schema
from tests.registry.explanations import CLOSE, assert_additive, assert_same_alone, shap
from tests.registry.parity import mixed, numbers, rows_of_table, target

CASES: dict[str, tuple[Any, int]] = {
    "least squares": (LinearRegression(), 0),
    "ridge, scaled": (make_pipeline(StandardScaler(), Ridge()), 0),
    "logistic, 2 classes": (make_pipeline(StandardScaler(), LogisticRegression()), 2),
    "logistic, 3 classes": (make_pipeline(StandardScaler(), LogisticRegression()), 3),
    "support vectors": (LinearSVC(random_state=0), 2),
    "ridge classifier, 3 classes": (RidgeClassifier(), 3),
}


def explained(estimator: Any, table: pd.DataFrame, y: Any, *, frame: bool) -> tuple[Explainer, Rows]:
    """Fit on the table; the explainer, and the table as rows, of which the first hundred are the background."""
    estimator.fit(table if frame else table.to_numpy(), y)
    schema = Schema(infer_features(table, 1.0), "frame" if frame else "array")
    rows = rows_of_table(schema, table)
    return linear_explainer(take_apart(estimator, schema), rows[:100]), rows


def margins(estimator: Any, table: Any) -> Rows:
    """The estimator's own, a column a class."""
    ask = estimator.decision_function if hasattr(estimator, "decision_function") else estimator.predict
    made = np.asarray(ask(table)).reshape(len(table), -1)
    return np.hstack([-made, made]) if made.shape[1] == 1 and hasattr(estimator, "classes_") else made


@pytest.mark.parametrize("name", CASES)
def test_values_are_those_of_shap(name: str) -> None:
    estimator, classes = CASES[name]
    table = numbers()
    explainer, rows = explained(estimator, table, target(table, classes), frame=False)
    found = explainer.explain(rows)
    *steps, last = [step for _, step in estimator.steps] if hasattr(estimator, "steps") else [estimator]
    matrix = rows if not steps else steps[0].transform(rows)
    reference = shap.LinearExplainer(last, shap.maskers.Independent(matrix[:100], max_samples=100))
    values = np.asarray(reference.shap_values(matrix))
    values = values if values.ndim == 3 else values[:, :, None]
    np.testing.assert_allclose(found.values[:, :, -values.shape[2] :], values, rtol=0, atol=CLOSE)
    np.testing.assert_allclose(found.outputs, margins(estimator, rows), rtol=0, atol=CLOSE)
    assert_additive(found)
    assert_same_alone(explainer, rows[:9])
    assert explainer.space == ("margin" if classes else "value")


@pytest.mark.parametrize("classes", [0, 2, 3])
@pytest.mark.parametrize("sparse", [False, True])
def test_columns_are_summed_to_the_features_that_were_sent(classes: int, *, sparse: bool) -> None:
    table = mixed()
    columns = make_column_transformer(
        (make_pipeline(SimpleImputer(add_indicator=True), StandardScaler()), ["age", "income"]),
        (OneHotEncoder(handle_unknown="ignore"), ["city", "heating", "rooms"]),
        ("passthrough", ["owner"]),
        sparse_threshold=1.0 if sparse else 0.0,
    )
    estimator = make_pipeline(columns, LogisticRegression() if classes else Ridge())
    explainer, rows = explained(estimator, table, target(table, classes), frame=True)
    found = explainer.explain(rows)
    np.testing.assert_allclose(found.outputs, margins(estimator, table), rtol=0, atol=CLOSE)
    assert_additive(found)
    assert_same_alone(explainer, rows[:9])
    # each feature alone: what it changes against the background, all others as they are
    for feature in range(rows.shape[1]):
        changed = np.repeat(rows[:1], 100, axis=0)
        changed[:, feature] = rows[:100, feature]
        alone = found.outputs[0] - explainer.explain(changed).outputs.mean(axis=0)
        np.testing.assert_allclose(found.values[0, feature], alone, rtol=0, atol=CLOSE)
