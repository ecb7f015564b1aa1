"""Fitted transformers as arithmetic or a table for each feature, column by column.

A number's column collects the operations that scikit-learn does, in order. A column of a feature with few values (a
category, a boolean, a number behind an encoder) collects nothing: once all transformers are known, they are run on
every such value, and their results are the column's table. So infrequent categories, dropped columns and imputed
categories need no code of their own.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from sklearn import preprocessing
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline
from sklearn.utils import check_array

from registry.kernels.columns import (
    ADD,
    CUT_TO,
    DIVIDE,
    FILL,
    IS_MISSING,
    MULTIPLY,
    RAISE_TO,
    SUBTRACT,
    Computed,
    Tabled,
)
from registry.kernels.kernel import Unsupported, no_form
from registry.rows.features import Feature, Rows
from registry.rows.schema import Schema


@dataclass(frozen=True, slots=True)
class CategoryCodes:
    """The categories of a DataFrame as the codes that boosters give them, as a transformer.

    A code is an index in a list that was kept at the training. `categories` has a list for each column of categories,
    None for the others. A category that is not listed is missing, or refused if `refuses_unknown`.
    """

    categories: tuple[Sequence[Any] | None, ...]
    refuses_unknown: bool

    def transform(self, frame: pd.DataFrame) -> Rows:
        """The matrix of codes and numbers, shape (rows, columns); NaN for missing. Raises ValueError."""
        matrix = np.empty(frame.shape)
        for index, listed in enumerate(self.categories):
            column = frame.iloc[:, index]
            if listed is None:
                matrix[:, index] = column.to_numpy(np.float64, na_value=np.nan)
                continue
            codes = column.cat.set_categories(listed).cat.codes.to_numpy(np.float64)
            if self.refuses_unknown and ((codes < 0) & column.notna().to_numpy()).any():
                raise ValueError(f"a category of {column.name!r} is not listed")
            matrix[:, index] = np.where(codes < 0, np.nan, codes)
        return matrix


@dataclass(frozen=True, slots=True)
class Listed:
    """A column that depends on a feature of few values; `searched` are a number's, None where codes are used."""

    source: int
    searched: tuple[float, ...] | None = None


Followed = Computed | Listed


@dataclass(frozen=True, slots=True)
class Matrix:
    """The columns that a transformer makes, and whether scikit-learn keeps them in a sparse matrix."""

    columns: tuple[Followed, ...]
    sparse: bool = False


def follow(transformer: Any, matrix: Matrix) -> Matrix:
    """The matrix that a fitted transformer makes of a matrix. Raises Unsupported."""
    if isinstance(transformer, str) or transformer is None:
        return matrix
    step = FOLLOWED.get(type(transformer))
    if step is None:
        raise Unsupported(no_form("the step", transformer))
    return step(transformer, matrix)


def source_columns(schema: Schema) -> Matrix:
    """The matrix of the features themselves."""
    return Matrix(
        tuple(
            Listed(index) if feature.kind in ("category", "boolean") else Computed(index)
            for index, feature in enumerate(schema.features)
        )
    )


def _pipeline(pipeline: Pipeline, matrix: Matrix) -> Matrix:
    for _, step in pipeline.steps:
        matrix = follow(step, matrix)
    return matrix


def _column_transformer(transformer: ColumnTransformer, matrix: Matrix) -> Matrix:
    if transformer.transformer_weights:
        raise Unsupported("its ColumnTransformer weights the transformers")
    columns: list[Followed] = []
    for name, inner, _ in transformer.transformers_:
        chosen = transformer._transformer_to_input_indices[name]
        if len(chosen) and not (isinstance(inner, str) and inner == "drop"):
            columns += follow(inner, Matrix(tuple(matrix.columns[i] for i in chosen), matrix.sparse)).columns
    return Matrix(tuple(columns), transformer.sparse_output_)


def _with_steps(matrix: Matrix, *operations: tuple[int, Any]) -> Matrix:
    """Append operations to computed columns; an operand is one number, or has one for each column."""
    if matrix.sparse:
        raise Unsupported("a scaler follows a sparse matrix")  # scikit-learn multiplies by 1 / scale there
    columns = matrix.columns
    for operation, operand in operations:
        numbers = np.broadcast_to(operand, len(columns)).tolist()
        columns = tuple(_stepped(column, operation, number) for column, number in zip(columns, numbers, strict=True))
    return Matrix(columns)


def _stepped(column: Followed, operation: int, operand: Any) -> Followed:
    if isinstance(column, Listed):
        return column
    return replace(column, steps=(*column.steps, (operation, float(operand))))


def _standard(scaler: preprocessing.StandardScaler, matrix: Matrix) -> Matrix:
    centred = [(SUBTRACT, scaler.mean_)] if scaler.with_mean else []
    return _with_steps(matrix, *centred, *([(DIVIDE, scaler.scale_)] if scaler.with_std else []))


def _robust(scaler: preprocessing.RobustScaler, matrix: Matrix) -> Matrix:
    centred = [(SUBTRACT, scaler.center_)] if scaler.with_centering else []
    return _with_steps(matrix, *centred, *([(DIVIDE, scaler.scale_)] if scaler.with_scaling else []))


def _min_max(scaler: preprocessing.MinMaxScaler, matrix: Matrix) -> Matrix:
    low, high = scaler.feature_range
    clipped = [(RAISE_TO, low), (CUT_TO, high)] if scaler.clip else []
    return _with_steps(matrix, (MULTIPLY, scaler.scale_), (ADD, scaler.min_), *clipped)


def _max_abs(scaler: preprocessing.MaxAbsScaler, matrix: Matrix) -> Matrix:
    clipped = [(RAISE_TO, -1.0), (CUT_TO, 1.0)] if scaler.clip else []
    return _with_steps(matrix, (DIVIDE, scaler.scale_), *clipped)


def _imputer(imputer: SimpleImputer, matrix: Matrix) -> Matrix:
    if matrix.sparse or not (isinstance(imputer.missing_values, float) and math.isnan(imputer.missing_values)):
        raise Unsupported("an imputer fills something else than missing values")
    if any(value is None or value != value for value in imputer.statistics_):  # noqa: PLR0124 - true for NaN alone
        raise Unsupported("an imputer was fitted on a column without values")
    columns = _with_steps(matrix, (FILL, imputer.statistics_)).columns
    if imputer.add_indicator:
        columns += tuple(_stepped(matrix.columns[index], IS_MISSING, 0.0) for index in imputer.indicator_.features_)
    return Matrix(columns)


def _one_hot(encoder: preprocessing.OneHotEncoder, matrix: Matrix) -> Matrix:
    columns: list[Followed] = []
    dropped = [None] * len(matrix.columns) if encoder.drop_idx_ is None else encoder.drop_idx_
    infrequent = getattr(encoder, "infrequent_categories_", None) or [None] * len(matrix.columns)
    for index, column in enumerate(matrix.columns):
        count = len(encoder.categories_[index]) - (dropped[index] is not None)
        if infrequent[index] is not None:
            count -= len(infrequent[index]) - 1
        columns += [_listed(column, encoder.categories_[index])] * count
    return Matrix(tuple(columns), sparse=encoder.sparse_output)


def _ordinal(encoder: preprocessing.OrdinalEncoder, matrix: Matrix) -> Matrix:
    return Matrix(
        tuple(_listed(column, known) for column, known in zip(matrix.columns, encoder.categories_, strict=True))
    )


def _listed(column: Followed, categories: Any) -> Listed:
    """An encoder's column: a number becomes one of the categories, missing, or not listed."""
    if isinstance(column, Listed):
        return column
    if any(operation != FILL for operation, _ in column.steps):
        raise Unsupported("an encoder follows arithmetic on numbers")
    numbers = np.asarray(categories, dtype=np.float64)
    return Listed(column.source, tuple(numbers[np.isfinite(numbers)].tolist()))


def _function(transformer: preprocessing.FunctionTransformer, matrix: Matrix) -> Matrix:
    """ColumnTransformer's "passthrough", and histogram boosting's check of numbers beside categories."""
    function = transformer.func
    if function is None or (isinstance(function, partial) and function.func is check_array):
        return matrix
    raise Unsupported("the step FunctionTransformer is Python code")


FOLLOWED: dict[type, Callable[[Any, Matrix], Matrix]] = {
    CategoryCodes: lambda _codes, matrix: matrix,
    ColumnTransformer: _column_transformer,
    preprocessing.FunctionTransformer: _function,
    preprocessing.MaxAbsScaler: _max_abs,
    preprocessing.MinMaxScaler: _min_max,
    preprocessing.OneHotEncoder: _one_hot,
    preprocessing.OrdinalEncoder: _ordinal,
    Pipeline: _pipeline,
    preprocessing.RobustScaler: _robust,
    SimpleImputer: _imputer,
    preprocessing.StandardScaler: _standard,
}


Transform = Callable[[Rows], Any]


def tabulate(matrix: Matrix, schema: Schema, transform: Transform) -> list[Computed | Tabled]:
    """The columns with their tables; `transform` returns scikit-learn's matrix for rows. Raises Unsupported.

    That includes values which the schema accepts and the transformers refuse: a model that can fail on a row is left to
    the estimator, which says why.
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
    # three calls: a missing value changes the dtype of a pandas column, and must not do so for the others
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
    """By the index of a feature with few values, all values to try."""
    values: dict[int, set[float]] = {}
    for column in matrix.columns:
        if isinstance(column, Listed):
            feature = schema.features[column.source]
            codes = range(2 if feature.kind == "boolean" else len(feature.categories) + feature.open)
            values.setdefault(column.source, set()).update(codes if column.searched is None else column.searched)
    return {source: sorted(map(float, listed)) for source, listed in values.items()}


def _usual_value(feature: Feature, listed: list[float] | None) -> float:
    if listed:
        return listed[0]
    return feature.seen[0] if feature.seen else 0.0


def _transformed(transform: Transform, rows: Rows, width: int) -> Rows:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # encoders warn of unknown values
            made = transform(rows)
    except (TypeError, ValueError) as error:
        raise Unsupported(f"its transformers refuse values that the features accept: {error}") from error
    made = np.asarray(made.toarray() if hasattr(made, "toarray") else made)
    if made.shape != (len(rows), width) or made.dtype == np.float32:
        raise Unsupported("its transformers make another matrix than expected, or float32")
    try:
        return made.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise Unsupported("its transformers make a matrix that does not hold numbers") from error
