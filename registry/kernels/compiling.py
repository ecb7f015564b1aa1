"""Compiles fitted estimators, and takes them apart for their explainers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from registry.asking import layout_of
from registry.estimator import Compute, qualified_name, steps_of
from registry.kernels import lightgbm_trees, xgboost_trees
from registry.kernels.answers import Answers, Members, answers_in, combined, number_matrix
from registry.kernels.columns import Computed, Plan
from registry.kernels.composites import COMPOSITES
from registry.kernels.ensembles import HISTOGRAM, Trees, are_trees, sklearn_ensemble
from registry.kernels.formulas import FORMULAS
from registry.kernels.kernel import Unsupported, no_form
from registry.kernels.linear import LINEAR, linear_compute, linear_form, linear_margins
from registry.kernels.matrix import Head, Listed, Matrix, head_of
from registry.kernels.transformers import follow, source_matrix
from registry.outputs import Layout
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


def compile_estimator(estimator: Any, schema: Schema, layout: Layout | None = None) -> Compute:
    """A function that answers rows as `estimator_compute` does, bit for bit. Raises Unsupported.

    It holds arrays and no reference to what is compiled of the estimator. A row that the estimator would refuse (a
    missing value that it does not accept) is answered NaN. Several threads may call it at once.
    """
    return answers_of(estimator, source_matrix(schema)).compute(layout or layout_of(estimator))


def answers_of(estimator: Any, matrix: Matrix) -> Answers:
    """The answers of an estimator that is fed a matrix, compiled. Raises Unsupported."""
    steps, last = steps_of(estimator)
    combine = None if are_trees(last) else COMPOSITES.get(type(last))
    if combine is None:
        return _take_apart(steps, last, matrix).answers()
    if not steps:
        return combined(combine, last, Members(matrix, answers_of))
    for step in steps:
        matrix = follow(step, matrix)
    head = head_of(matrix)
    if matrix.single:
        raise Unsupported("its transformers make float32")
    inner = number_matrix(len(matrix.columns), sparse=matrix.sparse)
    made = combined(combine, last, Members(inner, answers_of)).behind(head.matrix(), head.rows_at_once)
    return replace(made, python=(*head.python, *made.python))


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

    def answers(self) -> Answers:
        """The estimator's answers to rows. Raises Unsupported."""
        if self.head.has_entries and type(self.last) in LINEAR:
            form = linear_form(self.last)
            products = self.head.products(form.weights, form.prepare)
            made = answers_in(form.compute_of(products), self.last, form.margins_of(products))
            return replace(made, python=self.head.python)
        made = self._of_matrix()
        return replace(made.behind(self.head.matrix(), self.head.rows_at_once), python=self.head.python)

    def _of_matrix(self) -> Answers:
        """The answers of the last step about its matrix."""
        trees, last = self.trees, self.last
        if trees is not None:
            margins, decide = trees.ensemble.compute(None), trees.decision
            decision = None if decide is None else lambda matrix: decide(margins(matrix))
            return answers_in(trees.ensemble.compute(trees.link), last, decision, single=trees.ensemble.single)
        if type(last) in LINEAR:
            return answers_in(linear_compute(last, sparse=self.sparse), last, linear_margins(last, sparse=self.sparse))
        if type(last) in FORMULAS and not self.sparse:
            return FORMULAS[type(last)](last)
        raise Unsupported(no_form("the estimator", last))

    def behind_matrix(self, answer: Callable[[Rows], Rows]) -> Callable[[Rows], Rows]:
        """A function from rows, shape (rows, features), to the `answer` for their matrix."""
        matrix = self.head.matrix()
        return lambda rows: answer(matrix(rows))


def take_apart(estimator: Any, schema: Schema) -> Parts:
    """The parts of an estimator. Raises Unsupported."""
    return take_apart_from(estimator, source_matrix(schema))


def take_apart_from(estimator: Any, matrix: Matrix) -> Parts:
    """The parts of an estimator that is fed a matrix. Raises Unsupported."""
    return _take_apart(*steps_of(estimator), matrix)


def _take_apart(steps: list[Any], last: Any, matrix: Matrix) -> Parts:
    schema = matrix.schema
    if schema.input == "frame" and any(feature.dtype in ("float16", "Float32") for feature in schema.features):
        raise Unsupported("a column is float16, or pandas' own Float32")  # scikit-learn computes in that precision
    booster = BOOSTERS.get(qualified_name(type(last)))
    if booster is not None and schema.input == "frame" and not steps:
        steps = booster.category_codes(last, schema)
    elif type(last) in HISTOGRAM and last._preprocessor is not None:
        steps = [*steps, last._preprocessor]
    head = _head(steps, matrix)
    # either may add columns to the plan
    trees = booster.booster_ensemble(last, head.plan) if booster else None
    trees = trees or sklearn_ensemble(last, head.plan, sparse=head.sparse)
    return Parts(last, head, trees)


def _head(steps: list[Any], matrix: Matrix) -> Head:
    schema = matrix.schema
    if not steps and matrix.columns == source_matrix(schema).columns:
        if any(feature.kind == "category" for feature in schema.features):
            raise Unsupported("categories reach the estimator without an encoder")
        plain = [
            Computed(index) if isinstance(column, Listed) else column for index, column in enumerate(matrix.columns)
        ]
        return head_of(replace(matrix, columns=tuple(plain)))
    for step in steps:
        matrix = follow(step, matrix)
    return head_of(matrix)
