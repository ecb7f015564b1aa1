"""Follows fitted transformers through a model, step by step and column by column.

What has no form of its own here stays Python: its own `transform` runs on the table, as a stage, and what comes after
it is compiled. So a head in Python reaches as far as it must, and inside a ColumnTransformer only the columns that need
it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import sparse  # type: ignore[import-untyped]
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.utils import _safe_indexing

from registry.kernels.columns import MULTIPLY, Computed
from registry.kernels.kernel import Unsupported
from registry.kernels.matrix import IN_SINGLE, Followed, Listed, Made, Matrix, Raw, Stage, are_single, dense, usual_row
from registry.kernels.preprocessing import BY_COLUMN, with_steps
from registry.kernels.stages import STAGES
from registry.kernels.text import TEXTS
from registry.rows.features import Rows
from registry.rows.schema import Schema

MAX_PYTHON_COLUMNS = 4096
"""Columns of a stage in Python; a sparse matrix of more would take longer to fill than to multiply."""


def source_matrix(schema: Schema) -> Matrix:
    """The matrix of the features themselves."""
    columns = tuple(_source(index, schema) for index in range(len(schema)))
    is_series = schema.input == "series"
    return Matrix(schema, columns, lambda table: table, single=are_single(columns), vector=is_series)


def _source(index: int, schema: Schema) -> Followed:
    match schema.features[index].kind:
        case "category" | "boolean":
            return Listed(index)
        case "text" | "datetime":
            return Raw(index)
    is_single = schema.input == "frame" and schema.features[index].dtype == "float32"
    return Computed(index, IN_SINGLE if is_single else ())


def follow(transformer: Any, matrix: Matrix) -> Matrix:
    """The matrix that a fitted transformer makes of a matrix. Raises Unsupported."""
    if transformer is None or transformer == "passthrough":
        return matrix
    step = FOLLOWED.get(type(transformer))
    if step is None or not matrix.known:
        return _stay_python(transformer, matrix)
    try:
        followed = step(transformer, matrix)
    except Unsupported:
        return _stay_python(transformer, matrix)
    return replace(followed, made=_after(transformer, matrix))


def _after(transformer: Any, matrix: Matrix) -> Callable[[Any], Any]:
    before = matrix.made
    return lambda table: transformer.transform(before(table))


def _stay_python(transformer: Any, matrix: Matrix) -> Matrix:
    """The matrix of a transformer that runs its own code. Raises Unsupported where even that is not possible."""
    made = _after(transformer, matrix)
    python = (*matrix.python, type(transformer).__name__)
    usual = np.vstack([usual_row(matrix.schema)] * 2)
    try:
        sample = replace(matrix, made=made).transformed(usual)
        width = sample.shape[1]
        dense(sample)
    except Exception:  # noqa: BLE001 - another's code, on a row that it may not like; a later step may make numbers
        return replace(matrix, made=made, known=False, python=python)
    if sparse.issparse(sample) and width > MAX_PYTHON_COLUMNS:
        raise Unsupported(f"the step {type(transformer).__name__} makes more than {MAX_PYTHON_COLUMNS} columns")
    schema = matrix.schema

    def compute(rows: Rows) -> Rows:
        try:
            found = dense(made(schema.table(rows)))
        except Unsupported as error:
            raise ValueError(str(error)) from error
        if found.shape != (len(rows), width):
            raise ValueError(f"{type(transformer).__name__} made shape {found.shape}, not {(len(rows), width)}")
        return found

    stage = Stage(compute, width, (matrix.common_source,) * width, python)
    columns = tuple(Made(stage, index) for index in range(width))
    single = (sample if sparse.issparse(sample) else np.asarray(sample)).dtype == np.float32
    return Matrix(schema, columns, made, sparse=sparse.issparse(sample), single=single, python=python)


def _pipeline(pipeline: Pipeline, matrix: Matrix) -> Matrix:
    for _, step in pipeline.steps:
        matrix = follow(step, matrix)
    return matrix


def _column_transformer(transformer: ColumnTransformer, matrix: Matrix) -> Matrix:
    weights = transformer.transformer_weights or {}
    parts = []
    for name, inner, given in transformer.transformers_:
        chosen = transformer._transformer_to_input_indices[name]
        if len(chosen) and not (isinstance(inner, str) and inner == "drop"):
            scalar = isinstance(given, str | int)
            part = follow(inner, _selected(matrix, chosen, scalar=scalar))
            parts.append(_weighted(part, weights.get(name)))
    return _beside(parts, matrix, is_sparse=transformer.sparse_output_)


def _selected(matrix: Matrix, chosen: Sequence[int], *, scalar: bool) -> Matrix:
    """Some columns of a matrix; one that is chosen by a scalar is handed on as a vector."""
    before, index = matrix.made, int(chosen[0]) if scalar else list(chosen)
    columns = tuple(matrix.columns[i] for i in chosen)
    made: Callable[[Any], Any] = lambda table: _safe_indexing(before(table), index, axis=1)  # noqa: E731
    return replace(matrix, columns=columns, made=made, single=matrix.single or are_single(columns), vector=scalar)


def _union(union: FeatureUnion, matrix: Matrix) -> Matrix:
    weights = union.transformer_weights or {}
    parts = [
        _weighted(follow(inner, matrix), weights.get(name)) for name, inner in union.transformer_list if inner != "drop"
    ]
    return _beside(parts, matrix, is_sparse=any(part.sparse for part in parts))


def _weighted(part: Matrix, weight: float | None) -> Matrix:
    return part if weight is None else with_steps(part, (MULTIPLY, weight))


def _beside(parts: Sequence[Matrix], matrix: Matrix, *, is_sparse: bool) -> Matrix:
    """Matrices side by side. Raises Unsupported."""
    if not parts or not all(part.known for part in parts):
        raise Unsupported("columns that do not hold numbers")
    columns = tuple(column for part in parts for column in part.columns)
    single = all(part.single for part in parts)
    python = tuple(dict.fromkeys(name for part in parts for name in part.python))
    return replace(matrix, columns=columns, sparse=is_sparse, single=single, python=python, vector=False)


FOLLOWED: dict[type, Callable[[Any, Matrix], Matrix]] = {
    **BY_COLUMN,
    **STAGES,
    **TEXTS,
    ColumnTransformer: _column_transformer,
    FeatureUnion: _union,
    Pipeline: _pipeline,
}
