"""Runs fitted transformers on every value that a feature of few values can take, and keeps what they give."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from registry.kernels.columns import Computed, Tabled
from registry.kernels.preprocessing import Listed, Matrix
from registry.kernels.unsupported import Unsupported
from registry.rows.features import Feature, Rows
from registry.rows.schema import Schema

Transform = Callable[[Rows], Any]


def tabulate(matrix: Matrix, schema: Schema, transform: Transform) -> list[Computed | Tabled]:
    """The columns with their tables; `transform` gives scikit-learn's matrix for rows. Raises Unsupported.

    Values that the schema accepts and the transformers refuse are found here: a model that can fail on a row is left
    to the estimator, which says why.
    """
    values = _listed_values(matrix, schema)
    usual = np.array([_usual_value(feature, values.get(i)) for i, feature in enumerate(schema.features)])
    known = np.tile(usual, (max(map(len, values.values()), default=1), 1))
    for source, listed in values.items():
        known[: len(listed), source] = listed
    missing, unlisted = usual.copy(), usual.copy()
    for source in values:
        if schema.features[source].nullable:
            missing[source] = math.nan
        if schema.features[source].kind in ("number", "integer"):
            unlisted[source] = max(values[source]) + 1.0
    # Three calls: a missing value changes the dtype of a pandas column, and must not do so for the others
    seen = [_transformed(transform, rows, len(matrix.columns)) for rows in (known, missing[None], unlisted[None])]

    def column(index: int, followed: Computed | Listed) -> Computed | Tabled:
        if isinstance(followed, Computed):
            return followed
        source = followed.source
        count = len(values[source])
        of_missing = seen[1][0, index] if schema.features[source].nullable else math.nan
        of_unlisted = seen[2][0, index] if followed.searched is not None else math.nan
        table = (*seen[0][:count, index].tolist(), float(of_missing), float(of_unlisted))
        return Tabled(source, table, None if followed.searched is None else tuple(values[source]))

    return [column(index, followed) for index, followed in enumerate(matrix.columns)]


def _listed_values(matrix: Matrix, schema: Schema) -> dict[int, list[float]]:
    """All values to try of each feature of few values, by its index."""
    values: dict[int, set[float]] = {}
    for column in matrix.columns:
        if isinstance(column, Listed):
            feature = schema.features[column.source]
            codes = range(2 if feature.kind == "boolean" else len(feature.categories))
            values.setdefault(column.source, set()).update(codes if column.searched is None else column.searched)
    return {source: sorted(map(float, listed)) for source, listed in values.items()}


def _usual_value(feature: Feature, listed: list[float] | None) -> float:
    if listed:
        return listed[0]
    return feature.seen[0] if feature.seen else 0.0


def _transformed(transform: Transform, rows: Rows, width: int) -> Rows:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # encoders speak of unknown values
            made = transform(rows)
    except (TypeError, ValueError) as error:
        raise Unsupported(f"transformers that refuse values of the schema: {error}") from error
    made = np.asarray(made.toarray() if hasattr(made, "toarray") else made)
    if made.shape != (len(rows), width) or made.dtype == np.float32:
        raise Unsupported("a matrix of another shape or precision")
    try:
        return made.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise Unsupported("a matrix that does not hold numbers") from error
