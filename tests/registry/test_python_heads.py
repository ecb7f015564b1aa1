"""A step in Python stays, and what follows it is compiled: the same answers as the whole pipeline's, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import pytest
from scipy import sparse  # type: ignore[import-untyped]
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.compose import make_column_transformer
from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier, RadiusNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder, StandardScaler

from registry.asking import estimator_compute
from registry.kernels import compile_verified
from registry.kernels.kernel import Unsupported
from registry.model import LoadedModel
from registry.rows.infer_schema import infer_features
from registry.rows.schema import Schema
from registry.store.add import add_version
from serving.predict.operation import Operation
from tests.registry.own_steps import OwnStep
from tests.registry.parity import mixed, numbers, rows_of_table, target


class Own(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """A step of one's own: sums of the columns it finds, in one of the forms that a step may return."""

    def __init__(self, form: str = "array") -> None:
        self.form = form

    def fit(self, _x: Any, _y: Any = None) -> Self:
        self.fitted_ = True
        return self

    def transform(self, table: Any) -> Any:
        columns = np.asarray(table.select_dtypes("number") if hasattr(table, "columns") else table, np.float64)
        made = np.nan_to_num(np.column_stack([columns, columns.sum(axis=1), columns[:, 0] > 0.5]))
        match self.form:
            case "float32":
                return made.astype(np.float32)
            case "sparse":
                return sparse.csr_matrix(made)
            case "frame":
                return pd.DataFrame(made, columns=[f"made{index}" for index in range(made.shape[1])])
            case "texts":
                return pd.DataFrame({"made": np.where(columns[:, 0] > 40, "old", "young")})
        return made


FOREST = RandomForestClassifier(n_estimators=9, random_state=0)
HEADS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "array, forest": (make_pipeline(Own(), FOREST), ("Own",)),
    "float32, forest": (make_pipeline(Own("float32"), FOREST), ("Own",)),
    "float32, scaled": (make_pipeline(Own("float32"), StandardScaler(), FOREST), ("Own", "StandardScaler")),
    "float32, boosting": (make_pipeline(Own("float32"), GradientBoostingClassifier(n_estimators=5)), ("Own",)),
    "sparse, linear": (make_pipeline(Own("sparse"), LogisticRegression(max_iter=5000)), ("Own",)),
    "frame, boosting": (make_pipeline(Own("frame"), GradientBoostingClassifier(n_estimators=5)), ("Own",)),
    "frame, histogram": (make_pipeline(Own("frame"), HistGradientBoostingClassifier(max_iter=5)), ("Own",)),
    "scaled afterwards": (make_pipeline(Own(), StandardScaler(), LogisticRegression()), ("Own",)),
    "frame, scaled": (make_pipeline(Own("frame"), StandardScaler(), LogisticRegression()), ("Own",)),
    "texts, encoded": (make_pipeline(Own("texts"), OrdinalEncoder(), FOREST), ("Own", "OrdinalEncoder")),
    "a function": (
        make_pipeline(FunctionTransformer(lambda table: table[["age"]] ** 2), FOREST),
        ("FunctionTransformer",),
    ),
    "among columns": (
        make_pipeline(
            make_column_transformer(
                (OneHotEncoder(), ["heating"]), (Own(), ["age", "rooms"]), (KNNImputer(), ["income", "rooms"])
            ),
            LogisticRegression(max_iter=5000),
        ),
        ("Own", "KNNImputer"),
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_tail_of_a_pipeline_is_compiled_behind_its_python_steps(name: str) -> None:
    estimator, python = HEADS[name]
    table = mixed()
    estimator.fit(table, target(table, 2))
    schema = Schema(infer_features(table, 1.0), "frame")
    reference = estimator_compute(estimator, schema)
    rows = rows_of_table(schema, table)
    compiled = compile_verified(estimator, schema, rows[:60], reference)
    assert compiled.python == python
    for row in rows[60:80]:
        assert compiled.compute(row[None]).tobytes() == reference(row[None]).tobytes()
    np.testing.assert_allclose(compiled.compute(rows), reference(rows), rtol=1e-12)


@pytest.mark.parametrize("imputer", [KNNImputer(), IterativeImputer(max_iter=2, random_state=0)], ids=str)
def test_imputer_without_a_compiled_form_stays_python(imputer: Any) -> None:
    table = numbers(missing=True)
    estimator = make_pipeline(imputer, StandardScaler(), Ridge()).fit(table.to_numpy(), target(table))
    schema = Schema(infer_features(table, 1.0))
    reference = estimator_compute(estimator, schema)
    rows = table.to_numpy()
    compiled = compile_verified(estimator, schema, rows[:60], reference)
    assert compiled.python == (type(imputer).__name__,)
    for row in rows[:40]:
        assert compiled.compute(row[None]).tobytes() == reference(row[None]).tobytes()


def test_last_step_without_a_compiled_form_leaves_all_to_the_estimator() -> None:
    table = mixed()
    estimator = make_pipeline(Own(), RadiusNeighborsClassifier()).fit(table, target(table, 2))
    schema = Schema(infer_features(table, 1.0), "frame")
    with pytest.raises(Unsupported, match="RadiusNeighborsClassifier"):
        compile_verified(estimator, schema, rows_of_table(schema, table), estimator_compute(estimator, schema))


def test_model_with_a_step_in_python_is_not_run_on_the_event_loop(tmp_path: Path) -> None:
    table = mixed()
    numeric = table[["age", "rooms"]]
    own = add_version(tmp_path, "own", make_pipeline(Own(), FOREST).fit(numeric, target(table, 2)), numeric)
    plain = add_version(tmp_path, "plain", FOREST.fit(table[["age"]], target(table, 2)), table[["age"]])

    def inline(model: LoadedModel) -> bool:
        return Operation(model, "predict").may_run_inline

    assert (own.compiled, own.python_steps, inline(own)) == (True, ("Own",), False)
    assert (plain.compiled, plain.python_steps, inline(plain)) == (True, (), True)


class Centred(OwnStep):
    """Columns less their mean over the rows of the call, which makes each answer depend on the others."""

    def transform(self, table: Any) -> Any:
        cells = np.asarray(table, np.float64)
        return cells - cells.mean(axis=0)


@pytest.mark.parametrize("last", [FOREST, KNeighborsClassifier()])
def test_row_is_answered_as_alone_where_the_estimator_makes_something_of_the_batch(tmp_path: Path, last: Any) -> None:
    table = mixed()
    numeric = table[["age", "rooms"]].fillna(0.0)
    estimator = make_pipeline(Centred(), last).fit(numeric, target(table, 2))
    model = add_version(tmp_path, "centred", estimator, numeric)
    rows = rows_of_table(model.schema, numeric)[:20]
    assert not np.allclose(estimator.predict_proba(numeric[:20]), estimator.predict_proba(numeric[:1]))
    assert model.predict(rows) == [model.predict(row[None])[0] for row in rows]


def test_step_in_python_that_makes_another_number_of_columns_is_an_error() -> None:
    table = mixed()
    estimator = make_pipeline(Own(), FOREST).fit(table, target(table, 2))
    schema = Schema(infer_features(table, 1.0), "frame")
    rows = rows_of_table(schema, table)
    compiled = compile_verified(estimator, schema, rows, estimator_compute(estimator, schema))
    estimator[0].form = "texts"
    with pytest.raises(ValueError, match="does not hold numbers"):
        compiled.compute(rows[:1])
