"""Models behind every kind of transformer answer compiled as scikit-learn does for a row alone, bit for bit."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.decomposition import PCA, FastICA, IncrementalPCA, TruncatedSVD
from sklearn.ensemble import ExtraTreesClassifier, GradientBoostingRegressor, RandomForestClassifier
from sklearn.feature_selection import (
    RFE,
    SelectFpr,
    SelectFromModel,
    SelectKBest,
    SelectPercentile,
    SequentialFeatureSelector,
    VarianceThreshold,
)
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import (
    Binarizer,
    FunctionTransformer,
    KBinsDiscretizer,
    MaxAbsScaler,
    Normalizer,
    OneHotEncoder,
    OrdinalEncoder,
    PolynomialFeatures,
    PowerTransformer,
    QuantileTransformer,
    RobustScaler,
    SplineTransformer,
    StandardScaler,
    TargetEncoder,
)
from sklearn.random_projection import GaussianRandomProjection

from registry.asking import estimator_compute, layout_of
from registry.explain.compiled import linear_explainer, tree_explainer
from registry.kernels import compile_verified
from registry.kernels.compiling import take_apart
from registry.kernels.kernel import Unsupported
from registry.rows.features import Rows
from registry.rows.infer_schema import infer_features
from registry.rows.schema import Schema
from tests.registry.parity import mixed, numbers, rows_of_table, target

BINS = {"quantile_method": "averaged_inverted_cdf"}
TRANSFORMERS: dict[str, Callable[[], Any]] = {
    "PCA": lambda: PCA(3),
    "PCA, whitened": lambda: PCA(2, whiten=True),
    "incremental PCA": lambda: IncrementalPCA(2),
    "ICA": lambda: FastICA(2, random_state=0),
    "SVD": lambda: TruncatedSVD(2, random_state=0),
    "projection": lambda: GaussianRandomProjection(3, random_state=0),
    "polynomials": lambda: PolynomialFeatures(3),
    "polynomials without bias": lambda: PolynomialFeatures((2, 3), include_bias=False),
    "interactions": lambda: PolynomialFeatures(3, interaction_only=True),
    "bins, ordinal": lambda: KBinsDiscretizer(4, encode="ordinal", **BINS),
    "bins, dense": lambda: KBinsDiscretizer(3, encode="onehot-dense", **BINS),
    "bins, sparse": lambda: KBinsDiscretizer(3, **BINS),
    "splines": SplineTransformer,
    "splines, linear beyond": lambda: SplineTransformer(
        degree=2, n_knots=4, extrapolation="linear", include_bias=False
    ),
    "splines, periodic": lambda: SplineTransformer(extrapolation="periodic"),
    "quantiles": lambda: QuantileTransformer(n_quantiles=50),
    "quantiles, normal": lambda: QuantileTransformer(n_quantiles=50, output_distribution="normal"),
    "powers": PowerTransformer,
    "powers, not standardized": lambda: PowerTransformer(standardize=False),
    "normalizer, l1": lambda: Normalizer("l1"),
    "normalizer, l2": lambda: Normalizer("l2"),
    "normalizer, max": lambda: Normalizer("max"),
    "binarizer": lambda: Binarizer(threshold=0.2),
    "numpy's sinh": lambda: FunctionTransformer(np.arcsinh),
    "numpy's exp": lambda: FunctionTransformer(np.exp),
    "the best": lambda: SelectKBest(k=2),
    "the best half": lambda: SelectPercentile(percentile=50),
    "no false positives": lambda: SelectFpr(alpha=0.9),
    "from a model": lambda: SelectFromModel(LogisticRegression()),
    "recursively": lambda: RFE(LogisticRegression(), n_features_to_select=3),
    "sequentially": lambda: SequentialFeatureSelector(LogisticRegression(), n_features_to_select=2, cv=2),
    "variance": lambda: VarianceThreshold(0.1),
    "a number for another": lambda: SimpleImputer(missing_values=0.0, strategy="mean"),
    "side by side": lambda: make_union(StandardScaler(), PCA(2), Binarizer()),
    "one after the other": lambda: make_pipeline(StandardScaler(), PCA(3), PolynomialFeatures(2), StandardScaler()),
}


def compiled_like(estimator: Any, table: pd.DataFrame, y: Any, *, frame: bool) -> Any:
    """Fit, compile and verify; nothing stays Python."""
    given = table if frame else np.ascontiguousarray(table)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimator.fit(given, y)
    schema = Schema(infer_features(table, 1.0), "frame" if frame else "array")
    layout = layout_of(estimator, given)
    reference = estimator_compute(estimator, schema, layout)
    rows = rows_of_table(schema, table)
    with np.errstate(all="ignore"):
        compiled = compile_verified(estimator, schema, rows[:60], reference, layout)
    assert compiled.python == ()
    for row in rows[60:90]:
        assert compiled.compute(row[None]).tobytes() == reference(row[None]).tobytes()
    assert compiled.compute(rows[60:90]).tobytes() == b"".join(
        compiled.compute(row[None]).tobytes() for row in rows[60:90]
    )
    return estimator


@pytest.mark.parametrize("last", [LogisticRegression(max_iter=300), RandomForestClassifier(5, random_state=0)], ids=str)
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformer_of_numbers(name: str, last: Any) -> None:
    table = numbers()
    compiled_like(make_pipeline(TRANSFORMERS[name](), last), table, target(table, 3), frame=name == "splines")


def mixed_pipeline(last: Any) -> Any:
    return make_pipeline(
        make_column_transformer(
            (make_pipeline(SimpleImputer(), PolynomialFeatures(2), StandardScaler()), ["age", "income"]),
            (make_pipeline(OneHotEncoder(sparse_output=False), PCA(2)), ["heating"]),
            (TargetEncoder(random_state=0), ["city", "rooms"]),
            (MissingIndicator(features="all"), ["income"]),
            (OrdinalEncoder(), ["owner"]),
        ),
        last,
    )


@pytest.mark.parametrize("classes", [0, 2, 3])
@pytest.mark.parametrize("last", [Ridge(), ExtraTreesClassifier(5, random_state=0)], ids=["linear", "trees"])
def test_transformers_of_some_columns(last: Any, classes: int) -> None:
    if (classes == 0) != isinstance(last, Ridge):
        last = {True: GradientBoostingRegressor(n_estimators=5), False: LogisticRegression(max_iter=5000)}[classes == 0]
    table = mixed()
    compiled_like(mixed_pipeline(last), table, target(table, classes), frame=True)


@pytest.mark.parametrize(
    "scaler", [StandardScaler(with_mean=False), MaxAbsScaler(), RobustScaler(with_centering=False)]
)
def test_scaler_of_a_sparse_matrix(scaler: Any) -> None:
    table = mixed().dropna()
    columns = make_column_transformer(
        (OneHotEncoder(), ["city", "heating"]), (Binarizer(), ["age"]), sparse_threshold=1.0
    )
    compiled_like(make_pipeline(columns, scaler, LogisticRegression()), table, target(table, 2), frame=True)


def test_weights_of_columns_and_an_imputer_that_drops_one() -> None:
    table = numbers()
    given = table.assign(empty=np.nan)
    columns = make_column_transformer((StandardScaler(), ["x0"]), (SimpleImputer(), ["x1", "empty"]))
    columns.set_params(transformer_weights={"standardscaler": 2.5})
    schema_table = given.fillna(0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimator = make_pipeline(columns, Ridge()).fit(given, target(table))
        schema = Schema(infer_features(schema_table, 1.0), "frame")
        reference = estimator_compute(estimator, schema)
        rows = rows_of_table(schema, schema_table)
        compiled = compile_verified(estimator, schema, rows[:50], reference)
        assert compiled.python == ()
        assert compiled.compute(rows[:1]).tobytes() == reference(rows[:1]).tobytes()


def contributions(name: str, last: Any, explain: Callable[[Any, Rows], Any]) -> Rows:
    table = numbers()
    estimator = make_pipeline(TRANSFORMERS[name](), last).fit(table.to_numpy(), target(table, 2))
    parts = take_apart(estimator, Schema(infer_features(table, 1.0)))
    rows = np.ascontiguousarray(table)[:20]
    found = explain(parts, rows).explain(rows)
    assert found.gap() < 1e-9
    values: Rows = found.values
    return values


@pytest.mark.parametrize("name", ["bins, dense", "splines", "quantiles", "powers", "the best", "numpy's sinh"])
def test_columns_of_one_feature_are_credited_to_it(name: str) -> None:
    linear = contributions(name, LogisticRegression(max_iter=1000), linear_explainer)
    trees = contributions(name, RandomForestClassifier(5, random_state=0), lambda parts, _rows: tree_explainer(parts))
    assert linear.shape == trees.shape == (20, 5, 2)
    assert np.abs(linear[:, 0]).mean() > np.abs(linear[:, 1:]).mean()


@pytest.mark.parametrize("name", ["PCA", "polynomials", "normalizer, l2"])
def test_columns_of_several_features_are_left_to_sampling(name: str) -> None:
    with pytest.raises(Unsupported, match="several features"):
        contributions(name, LogisticRegression(max_iter=1000), linear_explainer)
