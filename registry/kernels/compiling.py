"""Compiles fitted estimators, and takes them apart for their explainers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from registry.estimator import Compute, qualified_name, steps_of
from registry.kernels import lightgbm_trees, xgboost_trees
from registry.kernels.columns import Computed, Plan
from registry.kernels.ensembles import HISTOGRAM, Trees, sklearn_ensemble
from registry.kernels.kernel import Unsupported, no_form
from registry.kernels.linear import LINEAR, linear_compute
from registry.kernels.matrix import Head, Listed, head_of
from registry.kernels.transformers import follow, source_matrix
from registry.rows.features import Rows
from registry.rows.schema import Schema

BOOSTERS: dict[str, Any] = {
    "lightgbm.sklearn.LGBMClassifier": lightgbm_trees,
    "lightgbm.sklearn.LGBMRanker": lightgbm_trees,
    "lightgbm.sklearn.LGBMRegressor": lightgbm_trees,
    "xgboost.sklearn.XGBClassifier": xgboost_trees,
    "xgboost.sklearn.XGBRanker": xgboost_trees,
    "xgboost.sklearn.XGBRegressor": xgboost_trees,
}
"""The modules that read the boosters of other libraries; classes that extend these are not supported."""


def compile_estimator(estimator: Any, schema: Schema) -> Compute:
    """A function that answers rows as `estimator_compute` does, bit for bit. Raises Unsupported.

    It holds arrays and no reference to the estimator. A row that the estimator would refuse (a missing value that it
    does not accept) is answered NaN. Several threads may call it at once.
    """
    return take_apart(estimator, schema).compute()


@dataclass(frozen=True, slots=True)
class Parts:
    """An estimator taken apart: the head, which makes a matrix, and the last step, which is given that matrix."""

    last: Any
    head: Head
    trees: Trees | None

    @property
    def plan(self) -> Plan:
        """The columns of the matrix."""
        return self.head.plan

    @property
    def sparse(self) -> bool:
        """True if the last step is given a sparse matrix."""
        return self.head.sparse

    @property
    def features(self) -> int:
        """The number of features in a row."""
        return self.head.features

    def compute(self) -> Compute:
        """A function from rows to the estimator's outputs. Raises Unsupported."""
        if self.trees is not None:
            return self.behind_matrix(self.trees.ensemble.compute(self.trees.link))
        if type(self.last) in LINEAR:
            return self.behind_matrix(linear_compute(self.last, sparse=self.sparse))
        raise Unsupported(no_form("the estimator", self.last))

    def behind_matrix(self, answer: Callable[[Rows], Rows]) -> Callable[[Rows], Rows]:
        """A function from rows, shape (rows, features), to the `answer` for their matrix."""
        matrix = self.head.matrix()
        return lambda rows: answer(matrix(rows))


def take_apart(estimator: Any, schema: Schema) -> Parts:
    """The parts of an estimator. Raises Unsupported."""
    if schema.input == "frame" and any(feature.dtype.lower() in ("float16", "float32") for feature in schema.features):
        raise Unsupported("a column is float32 or float16")  # scikit-learn computes with them in that precision
    steps, last = steps_of(estimator)
    booster = BOOSTERS.get(qualified_name(type(last)))
    if booster is not None and schema.input == "frame" and not steps:
        steps = booster.category_codes(last, schema)
    elif type(last) in HISTOGRAM and last._preprocessor is not None:
        steps = [*steps, last._preprocessor]
    head = _head(steps, schema)
    # either may add columns to the plan
    trees = booster.booster_ensemble(last, head.plan) if booster else None
    trees = trees or sklearn_ensemble(last, head.plan, sparse=head.sparse)
    return Parts(last, head, trees)


def _head(steps: list[Any], schema: Schema) -> Head:
    matrix = source_matrix(schema)
    if not steps:
        if any(feature.kind == "category" for feature in schema.features):
            raise Unsupported("categories reach the estimator without an encoder")
        plain = [
            Computed(index) if isinstance(column, Listed) else column for index, column in enumerate(matrix.columns)
        ]
        return head_of(replace(matrix, columns=tuple(plain)))
    for step in steps:
        matrix = follow(step, matrix)
    return head_of(matrix)
