"""Puts the parts of a compiled model together; holds nothing of the estimator but arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline

from registry.kernels.boosters import booster_ensemble, category_codes, is_booster
from registry.kernels.columns import Computed, Tabled, builder, straight
from registry.kernels.ensembles import (
    FORESTS,
    GRADIENT,
    SINGLE,
    Ensemble,
    forest_ensemble,
    gradient_boosting_ensemble,
)
from registry.kernels.histogram import HISTOGRAM, histogram_ensemble
from registry.kernels.linear import LINEAR, linear_compute
from registry.kernels.links import Link
from registry.kernels.preprocessing import Matrix, follow, source_columns
from registry.kernels.tables import tabulate
from registry.kernels.unsupported import Unsupported
from registry.model import Compute
from registry.rows.features import Rows
from registry.rows.schema import Schema


def compile_estimator(estimator: Any, schema: Schema, *, frame: bool) -> Compute | None:
    """A function that answers rows as `estimator_compute` does, bit for bit; None for a kind that is not supported.

    It holds no reference to the estimator. A row that the estimator would refuse (a missing value that it cannot
    take) is answered NaN. It may be called by several threads at once.
    """
    try:
        return _compile(estimator, schema, frame=frame)
    except Unsupported:
        return None


@dataclass(frozen=True, slots=True)
class Parts:
    """An estimator taken apart: what makes the columns of its matrix, and what is asked with that matrix.

    `trees` are those of a tree ensemble, with the link that their margins go through.
    """

    last: Any
    plan: list[Computed | Tabled]
    sparse: bool
    features: int
    trees: tuple[Ensemble, Link | None] | None

    def behind_matrix(self, answer: Callable[[Rows], Rows]) -> Callable[[Rows], Rows]:
        """A function from rows, shape (rows, features), to what `answer` gives for their matrix."""
        features = self.features
        build = None if straight(self.plan, features) else builder(self.plan)

        def checked(rows: Rows) -> Rows:
            rows = np.ascontiguousarray(rows, np.float64)
            if rows.ndim != 2 or rows.shape[1] != features:
                raise ValueError(f"rows of shape {rows.shape}, not (rows, {features})")  # a kernel would read beyond
            return answer(rows if build is None else build(rows))

        return checked


def take_apart(estimator: Any, schema: Schema, *, frame: bool) -> Parts:
    """The parts of an estimator. Raises Unsupported."""
    steps, last = _steps(estimator)
    coding = category_codes(last, schema) if frame and not steps and is_booster(last) else None
    if coding is not None:
        steps = [coding]
    matrix = source_columns(schema)
    for step in steps:
        matrix = follow(step, matrix)
    plan = _plan(steps, matrix, schema, frame=frame)
    trees = _trees(last, plan, sparse=matrix.sparse)  # may add columns to the plan
    return Parts(last, plan, matrix.sparse, len(schema), trees)


def _compile(estimator: Any, schema: Schema, *, frame: bool) -> Compute:
    parts = take_apart(estimator, schema, frame=frame)
    if parts.trees is not None:
        ensemble, link = parts.trees
        return parts.behind_matrix(ensemble.compute(link))
    if type(parts.last) in LINEAR:
        return parts.behind_matrix(linear_compute(parts.last, sparse=parts.sparse))
    raise Unsupported(type(parts.last).__name__)


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


def _trees(last: Any, plan: list[Computed | Tabled], *, sparse: bool) -> tuple[Ensemble, Link | None] | None:
    kind = type(last)
    if kind in SINGLE or kind in FORESTS:
        return forest_ensemble(last, refuses_missing=sparse)
    if kind in GRADIENT:
        return gradient_boosting_ensemble(last)
    if kind in HISTOGRAM:
        return histogram_ensemble(last, plan)
    if is_booster(last):
        return booster_ensemble(last, plan)
    return None
