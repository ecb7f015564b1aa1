"""Puts the parts of a compiled model together; holds nothing of the estimator but arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline

from registry.features import Rows
from registry.kernels.boosters import booster_ensemble, category_codes, is_booster
from registry.kernels.columns import Computed, Tabled, builder, straight
from registry.kernels.ensembles import FORESTS, GRADIENT, SINGLE, forest_compute, gradient_boosting_compute
from registry.kernels.histogram import HISTOGRAM, histogram_compute
from registry.kernels.linear import LINEAR, linear_compute
from registry.kernels.preprocessing import Matrix, follow, source_columns
from registry.kernels.tables import tabulate
from registry.kernels.unsupported import Unsupported
from registry.model import Compute, Outputs
from registry.schema import Schema


def compile_estimator(estimator: Any, schema: Schema, *, frame: bool) -> Compute | None:
    """A function that answers rows as `estimator_compute` does, bit for bit; None for a kind that is not supported.

    It holds no reference to the estimator. A row that the estimator would refuse (a missing value that it cannot
    take) is answered NaN. It may be called by several threads at once.
    """
    try:
        return _compile(estimator, schema, frame=frame)
    except Unsupported:
        return None


def _compile(estimator: Any, schema: Schema, *, frame: bool) -> Compute:
    steps, last = _steps(estimator)
    coding = category_codes(last, schema) if frame and not steps and is_booster(last) else None
    if coding is not None:
        steps = [coding]
    matrix = source_columns(schema)
    for step in steps:
        matrix = follow(step, matrix)
    plan = _plan(steps, matrix, schema, frame=frame)
    compute = _last_compute(last, plan, sparse=matrix.sparse)
    features = len(schema)
    answer = compute if straight(plan, features) else _chained(builder(plan), compute)

    def checked(rows: Rows) -> Outputs:
        rows = np.ascontiguousarray(rows, np.float64)
        if rows.ndim != 2 or rows.shape[1] != features:
            raise ValueError(f"rows of shape {rows.shape}, not (rows, {features})")  # a kernel would read beyond them
        return answer(rows)

    return checked


def _chained(build: Callable[[Rows], Rows], compute: Compute) -> Compute:
    return lambda rows: compute(build(rows))


def _steps(estimator: Any) -> tuple[list[Any], Any]:
    """The transformers and the estimator that they feed."""
    steps: list[Any] = []
    while isinstance(estimator, Pipeline):
        steps += [step for _, step in estimator.steps[:-1] if step not in (None, "passthrough")]
        estimator = estimator.steps[-1][1]
    own = getattr(estimator, "_preprocessor", None) if type(estimator) in HISTOGRAM else None
    return steps if own is None else [*steps, own], estimator


def _plan(steps: list[Any], matrix: Matrix, schema: Schema, *, frame: bool) -> list[Computed | Tabled]:
    if frame and any(feature.dtype.lower() in ("float16", "float32") for feature in schema.features):
        raise Unsupported("columns of low precision")  # scikit-learn computes with them in that precision
    if not steps:
        if any(feature.kind == "category" for feature in schema.features):
            raise Unsupported("categories that are not encoded")
        return [Computed(index) for index in range(len(schema))]

    def transform(rows: Rows) -> Any:
        made = schema.frame(rows) if frame else rows
        for step in steps:
            made = step.transform(made)
        return made

    return tabulate(matrix, schema, transform)


def _last_compute(last: Any, plan: list[Computed | Tabled], *, sparse: bool) -> Compute:
    kind = type(last)
    if kind in SINGLE or kind in FORESTS:
        return forest_compute(last, refuses_missing=sparse)
    if kind in GRADIENT:
        return gradient_boosting_compute(last)
    if kind in HISTOGRAM:
        return histogram_compute(last, plan)
    if is_booster(last):
        ensemble, link = booster_ensemble(last, plan)
        return ensemble.compute(link)
    if kind in LINEAR:
        return linear_compute(last, sparse=sparse)
    raise Unsupported(kind.__name__)
