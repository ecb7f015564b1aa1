"""Compiles fitted estimators, takes them apart for their explainers, and verifies the compiled form bit for bit."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registry.estimator import Compute, Outputs, qualified_name, steps_of
from registry.kernels import lightgbm_trees, xgboost_trees
from registry.kernels.columns import Computed, Plan, builder
from registry.kernels.ensembles import HISTOGRAM, Trees, sklearn_ensemble
from registry.kernels.kernel import Unsupported, no_form
from registry.kernels.linear import LINEAR, linear_compute
from registry.kernels.preprocessing import Matrix, follow, source_columns, tabulate
from registry.rows.features import Feature, Rows
from registry.rows.schema import Schema

BOOSTERS: dict[str, Any] = {
    "lightgbm.sklearn.LGBMClassifier": lightgbm_trees,
    "lightgbm.sklearn.LGBMRegressor": lightgbm_trees,
    "xgboost.sklearn.XGBClassifier": xgboost_trees,
    "xgboost.sklearn.XGBRegressor": xgboost_trees,
}
"""The modules that read the boosters of other libraries; classes that extend these are not supported."""

NUDGED_ROWS = 20
"""Background rows whose numbers are moved by the smallest possible steps."""

MAX_CATEGORIES = 64
"""Categories of a feature that are tried; the others are looked up in the same table."""


def compile_estimator(estimator: Any, schema: Schema) -> Compute:
    """A function that answers rows as `estimator_compute` does, bit for bit. Raises Unsupported.

    It holds arrays and no reference to the estimator. A row that the estimator would refuse (a missing value that it
    does not accept) is answered NaN. Several threads may call it at once.
    """
    parts = take_apart(estimator, schema)
    if parts.trees is not None:
        return parts.behind_matrix(parts.trees.ensemble.compute(parts.trees.link))
    if type(parts.last) in LINEAR:
        return parts.behind_matrix(linear_compute(parts.last, sparse=parts.sparse))
    raise Unsupported(no_form("the estimator", parts.last))


@dataclass(frozen=True, slots=True)
class Parts:
    """An estimator taken apart: the columns of its matrix, and the last step, which that matrix is given to."""

    last: Any
    plan: Plan
    sparse: bool
    features: int
    trees: Trees | None

    def behind_matrix(self, answer: Callable[[Rows], Rows]) -> Callable[[Rows], Rows]:
        """A function from rows, shape (rows, features), to the `answer` for their matrix."""
        features = self.features
        build = None if self.plan == [*map(Computed, range(features))] else builder(self.plan)

        def checked(rows: Rows) -> Rows:
            rows = np.ascontiguousarray(rows, np.float64)
            if rows.ndim != 2 or rows.shape[1] != features:
                raise ValueError(f"rows of shape {rows.shape}, not (rows, {features})")  # a kernel would read beyond
            return answer(rows if build is None else build(rows))

        return checked


def take_apart(estimator: Any, schema: Schema) -> Parts:
    """The parts of an estimator. Raises Unsupported."""
    if any(feature.kind in ("text", "datetime") for feature in schema.features):
        raise Unsupported("a column is a text, or a date and time")
    steps, last = _steps(estimator)
    booster = BOOSTERS.get(qualified_name(type(last)))
    if booster is not None and schema.input == "frame" and not steps:
        steps = booster.category_codes(last, schema)
    matrix = source_columns(schema)
    for step in steps:
        matrix = follow(step, matrix)
    plan = _plan(steps, matrix, schema)
    # either may add columns to the plan
    trees = booster.booster_ensemble(last, plan) if booster else sklearn_ensemble(last, plan, sparse=matrix.sparse)
    return Parts(last, plan, matrix.sparse, len(schema), trees)


def _steps(estimator: Any) -> tuple[list[Any], Any]:
    """The transformers, and the estimator that they feed."""
    steps, estimator = steps_of(estimator)
    own = getattr(estimator, "_preprocessor", None) if type(estimator) in HISTOGRAM else None
    return steps if own is None else [*steps, own], estimator


def _plan(steps: list[Any], matrix: Matrix, schema: Schema) -> Plan:
    if schema.input == "frame" and any(feature.dtype.lower() in ("float16", "float32") for feature in schema.features):
        raise Unsupported("a column is float32 or float16")  # scikit-learn computes with them in that precision
    if not steps:
        if any(feature.kind == "category" for feature in schema.features):
            raise Unsupported("categories reach the estimator without an encoder")
        return [Computed(index) for index in range(len(schema))]

    def transform(rows: Rows) -> Any:
        made = schema.table(rows)
        for step in steps:
            made = step.transform(made)
        return made

    return tabulate(matrix, schema, transform)


def verify(compute: Compute, reference: Compute, rows: Rows) -> bool:
    """Return whether `compute` answers every row as `reference` does, in a batch and alone.

    Where the reference answers a row in a batch otherwise than alone, because BLAS sums in another order (see
    `linear.py`), the answer alone counts. A row that the reference refuses must be answered NaN.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # encoders warn of unknown values
        answers = compute(rows)
        alone = np.vstack([compute(row[None]) for row in rows])
        if not _same(answers, alone).all():
            return False
        different = np.flatnonzero(~_same(answers, _refused_as_nan(reference, rows, answers)))
        return all(_same(answers[[i]], _refused_as_nan(reference, rows[[i]], answers[[i]])).all() for i in different)


def _refused_as_nan(reference: Compute, rows: Rows, like: Outputs) -> Outputs:
    try:
        return reference(rows)
    except ValueError:
        return np.full_like(like, np.nan)


def _same(answers: Outputs, expected: Outputs) -> NDArray[np.bool_]:
    """Which rows have equal bytes, or NaN in the same places."""
    if answers.shape != expected.shape or answers.dtype != expected.dtype:
        return np.zeros(len(answers), bool)
    bits = np.ascontiguousarray(answers).view(np.uint64) == np.ascontiguousarray(expected).view(np.uint64)
    same: NDArray[np.bool_] = (bits | (np.isnan(answers) & np.isnan(expected))).all(axis=1)
    return same


def probe_rows(schema: Schema, background: Rows) -> Rows:
    """Rows to try a compiled model on, all of which the schema accepts. `background` has at least one.

    They are the background; each feature at its bounds, missing, and at each of its categories; and numbers one float64
    and one float32 step up and down.
    """
    probes = [background]
    for index, feature in enumerate(schema.features):
        values = _values_to_try(feature)
        rows = background[np.arange(len(values)) % len(background)].copy()
        rows[:, index] = values
        probes.append(rows)
    nullable = np.array([feature.nullable for feature in schema.features])
    probes.append(np.where(nullable, np.nan, background[:1]))
    probes += _nudged(schema, background[:NUDGED_ROWS])
    return np.vstack(probes)


def _values_to_try(feature: Feature) -> list[float]:
    missing = [np.nan] if feature.nullable else []
    match feature.kind:
        case "category":
            unlisted = [float(len(feature.categories))] if feature.open else []
            return [*map(float, range(min(len(feature.categories), MAX_CATEGORIES))), *unlisted, *missing]
        case "boolean":
            return [0.0, 1.0, *missing]
    bounds = {feature.minimum, feature.maximum, *(feature.seen or ())} - {None}
    return [*sorted(float(bound) for bound in bounds if bound is not None), *missing]


def _nudged(schema: Schema, rows: Rows) -> list[Rows]:
    numbers = np.array([feature.kind == "number" for feature in schema.features])
    low = np.array([-np.inf if feature.minimum is None else feature.minimum for feature in schema.features])
    high = np.array([np.inf if feature.maximum is None else feature.maximum for feature in schema.features])
    single = rows.astype(np.float32)
    steps = [
        np.nextafter(rows, -np.inf),
        np.nextafter(rows, np.inf),
        single.astype(np.float64),
        np.nextafter(single, np.float32(-np.inf)).astype(np.float64),
        np.nextafter(single, np.float32(np.inf)).astype(np.float64),
    ]
    return [np.where(numbers, np.clip(step, low, high), rows) for step in steps]
