"""Fitted transformers that make each of their columns from one column, by arithmetic or by a table.

A number's column collects the operations that scikit-learn does, in order. A column of a feature with few values (a
category, a boolean, a number behind an encoder) collects nothing: once all transformers are known, they are run on
every such value, and their results are the column's table. So infrequent categories, dropped columns and imputed
categories need no code of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from sklearn import preprocessing
from sklearn.impute import SimpleImputer

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
)
from registry.kernels.kernel import Unsupported
from registry.kernels.matrix import Followed, Listed, Matrix, Raw
from registry.rows.features import Rows


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


def with_steps(matrix: Matrix, *operations: tuple[int, Any]) -> Matrix:
    """Append operations to computed columns; an operand is one number, or has one for each column."""
    if matrix.sparse:
        raise Unsupported("a scaler follows a sparse matrix")  # scikit-learn multiplies by 1 / scale there
    if matrix.single:
        raise Unsupported("a scaler computes with float32")
    columns = matrix.columns
    for operation, operand in operations:
        numbers = np.broadcast_to(operand, len(columns)).tolist()
        columns = tuple(_stepped(column, operation, number) for column, number in zip(columns, numbers, strict=True))
    return replace(matrix, columns=columns)


def _stepped(column: Followed, operation: int, operand: Any) -> Followed:
    if isinstance(column, Listed):
        return column
    if isinstance(column, Raw):
        raise Unsupported("a text, or a date and time, reaches arithmetic")
    return replace(column, steps=(*column.steps, (operation, float(operand))))


def _standard(scaler: preprocessing.StandardScaler, matrix: Matrix) -> Matrix:
    centred = [(SUBTRACT, scaler.mean_)] if scaler.with_mean else []
    return with_steps(matrix, *centred, *([(DIVIDE, scaler.scale_)] if scaler.with_std else []))


def _robust(scaler: preprocessing.RobustScaler, matrix: Matrix) -> Matrix:
    centred = [(SUBTRACT, scaler.center_)] if scaler.with_centering else []
    return with_steps(matrix, *centred, *([(DIVIDE, scaler.scale_)] if scaler.with_scaling else []))


def _min_max(scaler: preprocessing.MinMaxScaler, matrix: Matrix) -> Matrix:
    low, high = scaler.feature_range
    clipped = [(RAISE_TO, low), (CUT_TO, high)] if scaler.clip else []
    return with_steps(matrix, (MULTIPLY, scaler.scale_), (ADD, scaler.min_), *clipped)


def _max_abs(scaler: preprocessing.MaxAbsScaler, matrix: Matrix) -> Matrix:
    clipped = [(RAISE_TO, -1.0), (CUT_TO, 1.0)] if scaler.clip else []
    return with_steps(matrix, (DIVIDE, scaler.scale_), *clipped)


def _imputer(imputer: SimpleImputer, matrix: Matrix) -> Matrix:
    if matrix.sparse or not (isinstance(imputer.missing_values, float) and math.isnan(imputer.missing_values)):
        raise Unsupported("an imputer fills something else than missing values")
    if any(value is None or value != value for value in imputer.statistics_):  # noqa: PLR0124 - true for NaN alone
        raise Unsupported("an imputer was fitted on a column without values")
    columns = with_steps(matrix, (FILL, imputer.statistics_)).columns
    if imputer.add_indicator:
        columns += tuple(_stepped(matrix.columns[index], IS_MISSING, 0.0) for index in imputer.indicator_.features_)
    return replace(matrix, columns=columns)


def _one_hot(encoder: preprocessing.OneHotEncoder, matrix: Matrix) -> Matrix:
    columns: list[Followed] = []
    dropped = [None] * len(matrix.columns) if encoder.drop_idx_ is None else encoder.drop_idx_
    infrequent = getattr(encoder, "infrequent_categories_", None) or [None] * len(matrix.columns)
    for index, column in enumerate(matrix.columns):
        count = len(encoder.categories_[index]) - (dropped[index] is not None)
        if infrequent[index] is not None:
            count -= len(infrequent[index]) - 1
        columns += [_listed(column, encoder.categories_[index])] * count
    return replace(matrix, columns=tuple(columns), sparse=encoder.sparse_output)


def _ordinal(encoder: preprocessing.OrdinalEncoder, matrix: Matrix) -> Matrix:
    columns = zip(matrix.columns, encoder.categories_, strict=True)
    return replace(matrix, columns=tuple(_listed(column, known) for column, known in columns))


def _listed(column: Followed, categories: Any) -> Listed:
    """An encoder's column: a number becomes one of the categories, missing, or not listed."""
    if isinstance(column, Listed):
        return column
    if not isinstance(column, Computed) or any(operation != FILL for operation, _ in column.steps):
        raise Unsupported("an encoder follows arithmetic on numbers")
    numbers = np.asarray(categories, dtype=np.float64)
    return Listed(column.source, tuple(numbers[np.isfinite(numbers)].tolist()))


BY_COLUMN: dict[type, Callable[[Any, Matrix], Matrix]] = {
    CategoryCodes: lambda _codes, matrix: matrix,
    preprocessing.MaxAbsScaler: _max_abs,
    preprocessing.MinMaxScaler: _min_max,
    preprocessing.OneHotEncoder: _one_hot,
    preprocessing.OrdinalEncoder: _ordinal,
    preprocessing.RobustScaler: _robust,
    SimpleImputer: _imputer,
    preprocessing.StandardScaler: _standard,
}
