"""Compiled linear models, and whatever stands behind preprocessing, answer as scikit-learn does for a row alone."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.compose import ColumnTransformer, make_column_selector, make_column_transformer
from sklearn.ensemble import (
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.impute import SimpleImputer
from sklearn.linear_model import (
    ElasticNet,
    Lasso,
    LinearRegression,
    LogisticRegression,
    MultiTaskLasso,
    Ridge,
    RidgeClassifier,
)
from sklearn.neighbors import KNeighborsClassifier, RadiusNeighborsClassifier
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import (
    MaxAbsScaler,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    RobustScaler,
    StandardScaler,
)
from sklearn.svm import LinearSVC

from registry.asking import estimator_compute
from registry.kernels import compile_estimator, compile_verified
from registry.kernels.kernel import Unsupported
from registry.rows.infer_schema import infer_features
from registry.rows.schema import Schema
from tests.registry.parity import Pair, mixed, numbers, pair, rows_of, target

BOOSTING = HistGradientBoostingClassifier(max_iter=8, min_samples_leaf=5, random_state=0)
NUMBERS = ["age", "income"]
TEXTS = ["city", "heating"]


def encoded(encoder: Any, last: Any, scaler: Any = "passthrough") -> Any:
    return make_pipeline(make_column_transformer((encoder, TEXTS), (scaler, NUMBERS), remainder="passthrough"), last)


def imputed(last: Any, *, sparse_threshold: float = 0.3, **one_hot: Any) -> Any:
    """Numbers filled and scaled, texts filled and encoded, nested as people do."""
    numeric = make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler())
    textual = make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(**one_hot))
    columns = ColumnTransformer([("n", numeric, NUMBERS), ("t", textual, TEXTS)], sparse_threshold=sparse_threshold)
    return Pipeline([("columns", columns), ("last", last)])


def by_selector(last: Any) -> Any:
    return make_pipeline(
        make_column_transformer(
            (OneHotEncoder(handle_unknown="ignore", sparse_output=False), make_column_selector(dtype_include="str")),
            (OrdinalEncoder(), ["heating", "owner"]),
            (OneHotEncoder(handle_unknown="ignore", sparse_output=False), ["rooms"]),
            remainder="passthrough",
        ),
        last,
    )


NUMERIC: dict[str, tuple[Any, int]] = {
    "linear regression": (LinearRegression(), 0),
    "ridge": (Ridge(), 0),
    "lasso": (Lasso(alpha=0.01), 0),
    "elastic net": (ElasticNet(alpha=0.01, fit_intercept=False), 0),
    "logistic regression": (LogisticRegression(), 2),
    "logistic regression, 3 classes": (LogisticRegression(), 3),
    "logistic regression, 9 classes": (LogisticRegression(max_iter=1000), 9),
    "logistic regression, no intercept": (LogisticRegression(fit_intercept=False), 3),
    "ridge classifier": (RidgeClassifier(), 2),
    "ridge classifier, 3 classes": (RidgeClassifier(), 3),
    "linear SVC": (LinearSVC(), 2),
    "linear SVC, 3 classes": (LinearSVC(fit_intercept=False), 3),
    "standard scaler": (make_pipeline(StandardScaler(), LogisticRegression()), 3),
    "standard scaler, mean only": (make_pipeline(StandardScaler(with_std=False), Ridge()), 0),
    "standard scaler, deviation only": (make_pipeline(StandardScaler(with_mean=False), LogisticRegression()), 2),
    "robust scaler": (make_pipeline(RobustScaler(), LogisticRegression()), 2),
    "min-max scaler": (make_pipeline(MinMaxScaler((-1, 2)), LogisticRegression()), 2),
    "min-max scaler, clipped": (make_pipeline(MinMaxScaler(clip=True), LogisticRegression()), 3),
    "max-abs scaler": (make_pipeline(MaxAbsScaler(clip=True), Ridge()), 0),
    "two scalers": (make_pipeline(RobustScaler(), "passthrough", MaxAbsScaler(), LogisticRegression()), 2),
    "nested pipelines": (make_pipeline(make_pipeline(StandardScaler()), make_pipeline(MinMaxScaler(), Ridge())), 0),
    "scaled forest": (make_pipeline(StandardScaler(), RandomForestClassifier(n_estimators=9, random_state=0)), 2),
    "columns by index": (
        make_pipeline(make_column_transformer((StandardScaler(), [3, 0]), (MinMaxScaler(), slice(1, 3))), Ridge()),
        0,
    ),
}

MIXED: dict[str, tuple[Any, int]] = {
    "imputed, encoded, logistic": (imputed(LogisticRegression(max_iter=2000), handle_unknown="ignore"), 2),
    "sparse, logistic": (imputed(LogisticRegression(max_iter=2000), sparse_threshold=1.0), 2),
    "sparse, logistic, 3 classes": (imputed(LogisticRegression(max_iter=2000), sparse_threshold=1.0), 3),
    "sparse, ridge": (imputed(Ridge(), sparse_threshold=1.0), 0),
    "sparse, lasso": (imputed(Lasso(alpha=0.01), sparse_threshold=1.0), 0),
    "sparse, forest": (imputed(RandomForestClassifier(n_estimators=9, random_state=0), sparse_threshold=1.0), 2),
    "imputed, encoded densely": (imputed(LogisticRegression(max_iter=2000), sparse_output=False), 3),
    "imputed, first dropped": (imputed(LinearRegression(), drop="first", sparse_output=False), 0),
    "imputed, binary dropped, sparse": (imputed(Ridge(), drop="if_binary"), 0),
    "infrequent categories": (imputed(Ridge(), min_frequency=0.1, handle_unknown="infrequent_if_exist"), 0),
    "infrequent categories, first dropped": (imputed(Ridge(), max_categories=3, drop="first", sparse_output=False), 0),
    "imputed, encoded, forest": (imputed(RandomForestClassifier(n_estimators=9, random_state=0)), 3),
    "imputed, encoded, boosting": (imputed(GradientBoostingClassifier(n_estimators=9, random_state=0)), 2),
    "one-hot, histogram boosting": (encoded(OneHotEncoder(sparse_output=False), BOOSTING), 2),
    "ordinal, histogram boosting": (
        encoded(OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), BOOSTING, StandardScaler()),
        3,
    ),
    "columns by selector": (by_selector(BOOSTING), 2),
    "pandas between the steps": (
        encoded(OneHotEncoder(sparse_output=False), BOOSTING).set_output(transform="pandas"),
        2,
    ),
    "categories from dtype": (HistGradientBoostingClassifier(max_iter=8, random_state=0), 3),
    "categories by name": (
        HistGradientBoostingRegressor(max_iter=8, categorical_features=["heating", "rooms", "city"], random_state=0),
        0,
    ),
    "categories of encoded columns": (
        encoded(
            OrdinalEncoder(),
            HistGradientBoostingClassifier(max_iter=8, categorical_features=[0, 1], min_samples_leaf=5, random_state=0),
        ),
        2,
    ),
}


@cache
def fitted(name: str) -> Pair:
    if name in NUMERIC:
        estimator, classes = NUMERIC[name]
        table = numbers()
        return pair(clone(estimator), table, target(table, classes))
    estimator, classes = MIXED[name]
    table = mixed()
    if name == "categories from dtype":
        table = table.drop(columns="city")
    # city decides, too, so that splits by category happen
    y = target(table.assign(age=table["age"] + 15 * (table["heating"] == "oil") - 9 * (table["rooms"] == 3)), classes)
    return pair(clone(estimator), table, y, frame=True)


@pytest.mark.parametrize("name", [*NUMERIC, *MIXED])
@settings(max_examples=12)
@given(data=st.data())
def test_model_answers_any_row_as_scikit_learn_does_for_the_row_alone(name: str, data: st.DataObject) -> None:
    made = fitted(name)
    made.assert_same(data.draw(rows_of(made.schema, (0.0, -0.0, 1.0, 1e-300), count=5)))


@pytest.mark.parametrize("name", [*NUMERIC, *MIXED])
def test_answer_of_a_row_does_not_depend_on_its_batch(name: str) -> None:
    made = fitted(name)
    rows = np.vstack([np.zeros((1, len(made.schema))), np.ones((1, len(made.schema)))])[np.arange(64) % 2]
    rows[:, 0] += np.arange(64) / 7
    answers = made.compiled(rows)
    for start, stop in ((0, 1), (63, 64), (0, 2), (5, 13), (3, 62)):
        assert made.compiled(rows[start:stop]).tobytes() == answers[start:stop].tobytes()


@pytest.mark.parametrize("name", [name for name in MIXED if name.startswith("categories")])
def test_histogram_boosting_of_these_tests_splits_by_category(name: str) -> None:
    estimator = fitted(name).estimator
    last = estimator[-1] if isinstance(estimator, Pipeline) else estimator
    assert sum(member.nodes["is_categorical"].sum() for stage in last._predictors for member in stage) > 5


@pytest.mark.parametrize("name", [name for name in MIXED if name.startswith("sparse")])
def test_sparse_matrix_of_these_tests_is_sparse(name: str) -> None:
    assert fitted(name).estimator["columns"].sparse_output_


def test_number_that_an_encoder_has_not_seen_is_encoded_as_unknown() -> None:
    made = fitted("columns by selector")
    rows = np.tile(np.array([[40.0, 3000.0, 3.0, 1.0, 1.0, 1.0]]), (3, 1))
    rows[:, 2] = [0.0, 5.0, 9.0]  # the encoder knows 1 to 5
    made.assert_same(rows)


def test_missing_value_that_a_forest_refuses_in_a_sparse_matrix_is_answered_nan() -> None:
    table = mixed()[["city", "income"]]
    columns = make_column_transformer((OneHotEncoder(), ["city"]), remainder="passthrough", sparse_threshold=1.0)
    estimator = make_pipeline(columns, RandomForestClassifier(n_estimators=3, random_state=0))
    known = table.dropna(subset="income")
    schema = Schema(infer_features(table, 1.0), "frame")
    estimator.fit(known, target(known[["income"]], 2))
    compiled = compile_estimator(estimator, schema)
    rows = np.array([[0.0, 3000.0], [0.0, np.nan]])
    with pytest.raises(ValueError, match="NaN"):
        estimator.predict_proba(schema.frame(rows))
    assert compiled(rows[:1]).tobytes() == estimator.predict_proba(schema.frame(rows[:1])).tobytes()
    assert np.isnan(compiled(rows)[1]).all()


def test_category_that_the_encoder_has_not_seen_is_answered_as_scikit_learn_does() -> None:
    table = mixed()
    known = table[table["city"] != "Zug"]
    estimator = imputed(Ridge(), handle_unknown="ignore").fit(known, target(known))
    schema = Schema(infer_features(table, 1.0), "frame")
    compiled = compile_estimator(estimator, schema)
    rows = np.tile(np.array([[40.0, 3000.0, 3.0, 3.0, 1.0, 1.0]]), (2, 1))
    rows[1, 3] = 0.0
    assert schema.features[3].categories[3] == "Zug"
    expected = np.vstack([estimator.predict(schema.frame(row[None])) for row in rows])
    assert compiled(rows).tobytes() == expected.tobytes()


def test_category_that_the_estimator_refuses_leaves_it_uncompiled() -> None:
    table = mixed()
    known = table[table["city"] != "Zug"]
    estimator = imputed(Ridge(), handle_unknown="error").fit(known, target(known))
    with pytest.raises(Unsupported):
        compile_estimator(estimator, Schema(infer_features(table, 1.0), "frame"))


def test_numbers_that_overflow_when_scaled_are_answered_nan() -> None:
    table = numbers() * 1e-12
    made = pair(make_pipeline(MinMaxScaler(), LogisticRegression()), table, target(numbers(), 2), margin=None)
    row = np.full((1, 5), 1e300)
    with pytest.raises(ValueError, match="infinity"), np.errstate(over="ignore"):
        made.reference(row)
    assert np.isnan(made.compiled(row)[:, :2]).all()


@pytest.mark.parametrize(
    "estimator",
    [
        RadiusNeighborsClassifier(99.0),
        make_pipeline(make_column_transformer((StandardScaler(), [0])), RadiusNeighborsClassifier(99.0)),
    ],
    ids=str,
)
def test_kind_without_a_compiled_form_is_left_to_the_estimator(estimator: Any) -> None:
    table = numbers()
    estimator.fit(table.to_numpy(), target(table, 2))
    with pytest.raises(Unsupported):
        compile_estimator(estimator, Schema(infer_features(table, 1.0)))


@pytest.mark.parametrize(
    "estimator",
    [Ridge(), make_pipeline(StandardScaler(), Ridge())],
    ids=["plain", "scaled"],
)
def test_columns_of_low_precision_are_left_to_the_estimator(estimator: Any) -> None:
    table = numbers().astype(np.float32)
    estimator.fit(table, target(table))
    with pytest.raises(Unsupported):
        compile_estimator(estimator, Schema(infer_features(table, 1.0), "frame"))


@pytest.mark.parametrize(
    "last",
    [
        RandomForestClassifier(9, random_state=0),
        BOOSTING,
        GradientBoostingClassifier(n_estimators=5),
        KNeighborsClassifier(),
    ],
    ids=str,
)
@pytest.mark.parametrize("some", [True, False], ids=["some columns", "all columns"])
def test_columns_of_low_precision_reach_an_estimator_that_widens_them(last: Any, some: bool) -> None:  # noqa: FBT001
    table = numbers().astype({"x0": np.float32, "x2": np.float32} if some else np.float32)
    made = pair(clone(last), table, target(table, 2), frame=True)
    rows = np.random.default_rng(1).normal(size=(60, 5))  # with more digits than a float32 holds
    made.assert_same(np.vstack([rows, np.ascontiguousarray(table, np.float64)[:60]]))


def test_scaler_of_columns_of_low_precision_stays_python() -> None:
    table = numbers().astype(np.float32)
    estimator = make_pipeline(StandardScaler(), RandomForestClassifier(5, random_state=0)).fit(table, target(table, 2))
    schema = Schema(infer_features(table, 1.0), "frame")
    rows = np.ascontiguousarray(table, np.float64)
    compiled = compile_verified(estimator, schema, rows[:50], estimator_compute(estimator, schema))
    assert compiled.python == ("StandardScaler",)


@pytest.mark.parametrize(
    "last", [Ridge(), MultiTaskLasso(alpha=0.01), MLPRegressor(max_iter=9, random_state=0)], ids=str
)
def test_regression_of_two_targets(last: Any) -> None:
    table = numbers()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        made = pair(make_pipeline(StandardScaler(), last), table, np.column_stack([target(table), table["x1"]]))
    made.assert_same(np.ascontiguousarray(table)[:30])


def test_categories_that_nothing_encodes_are_left_to_the_estimator() -> None:
    table = pd.DataFrame({"x0": pd.Categorical([3, 5, 7] * 10), "x1": np.arange(30.0)})
    estimator = Ridge().fit(table, np.arange(30.0))
    with pytest.raises(Unsupported):
        compile_estimator(estimator, Schema(infer_features(table, 1.0), "frame"))
