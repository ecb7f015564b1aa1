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
from sklearn import feature_selection, preprocessing
from sklearn.impute import MissingIndicator, SimpleImputer

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
from registry.kernels.stages import each, staged
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
    return _scaled(matrix, centred, scaler.scale_ if scaler.with_std else None)


def _robust(scaler: preprocessing.RobustScaler, matrix: Matrix) -> Matrix:
    centred = [(SUBTRACT, scaler.center_)] if scaler.with_centering else []
    return _scaled(matrix, centred, scaler.scale_ if scaler.with_scaling else None)


def _scaled(matrix: Matrix, before: Sequence[tuple[int, Any]], scale: Any) -> Matrix:
    """Columns divided by their scale, as scikit-learn does it: a sparse matrix is multiplied by 1 / scale."""
    if scale is None:
        return with_steps(matrix, *before)
    return with_steps(matrix, *before, (MULTIPLY, 1.0 / scale) if matrix.sparse else (DIVIDE, scale))


def _min_max(scaler: preprocessing.MinMaxScaler, matrix: Matrix) -> Matrix:
    low, high = scaler.feature_range
    clipped = [(RAISE_TO, low), (CUT_TO, high)] if scaler.clip else []
    if matrix.sparse:
        raise Unsupported("a scaler follows a sparse matrix")
    return with_steps(matrix, (MULTIPLY, scaler.scale_), (ADD, scaler.min_), *clipped)


def _max_abs(scaler: preprocessing.MaxAbsScaler, matrix: Matrix) -> Matrix:
    clipped = [(RAISE_TO, -1.0), (CUT_TO, 1.0)] if scaler.clip else []
    return with_steps(_scaled(matrix, [], scaler.scale_), *clipped)


def _constant_imputer(imputer: SimpleImputer, matrix: Matrix) -> Matrix:
    """An imputer that fills in for a number, such as -1."""
    missing, values = imputer.missing_values, imputer.statistics_
    is_number = isinstance(missing, int | float) and missing == missing  # noqa: PLR0124 - false for NaN
    if not is_number or imputer.add_indicator or np.asarray(values).dtype != np.float64 or np.isnan(values).any():
        raise Unsupported("an imputer fills what is no number, or was fitted on a column without values")
    columns = len(matrix.columns)
    return staged(matrix, lambda rows: np.where(rows == missing, values, rows), columns, each(columns))


def _imputer(imputer: SimpleImputer, matrix: Matrix) -> Matrix:
    missing = imputer.missing_values
    if not (isinstance(missing, float) and math.isnan(missing)):
        return _constant_imputer(imputer, matrix)
    if matrix.sparse:
        raise Unsupported("an imputer follows a sparse matrix")
    known = [value is not None and value == value for value in imputer.statistics_]  # noqa: PLR0124 - false for NaN
    if imputer.keep_empty_features and not all(known):
        raise Unsupported("an imputer was fitted on a column without values")
    kept = [index for index, is_known in enumerate(known) if is_known]
    columns = with_steps(_chosen(matrix, kept), (FILL, imputer.statistics_[kept])).columns
    if imputer.add_indicator:
        columns += tuple(_stepped(matrix.columns[index], IS_MISSING, 0.0) for index in imputer.indicator_.features_)
    return replace(matrix, columns=columns)


def _chosen(matrix: Matrix, places: Sequence[int]) -> Matrix:
    return replace(matrix, columns=tuple(matrix.columns[place] for place in places))


def _selector(selector: Any, matrix: Matrix) -> Matrix:
    return _chosen(matrix, selector.get_support(indices=True).tolist())


def _indicator(indicator: MissingIndicator, matrix: Matrix) -> Matrix:
    missing = indicator.missing_values
    if matrix.sparse or not (isinstance(missing, float) and math.isnan(missing)) or indicator.features != "all":
        raise Unsupported("an indicator may refuse a row, or tells of something else than missing values")
    return with_steps(matrix, (IS_MISSING, 0.0))


def _target_encoder(encoder: preprocessing.TargetEncoder, matrix: Matrix) -> Matrix:
    times = len(encoder.classes_) if encoder.target_type_ == "multiclass" else 1
    columns = zip(matrix.columns, encoder.categories_, strict=True)
    listed = [_listed(column, known) for column, known in columns for _ in range(times)]
    return replace(matrix, columns=tuple(listed))


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


SELECTORS = (
    feature_selection.GenericUnivariateSelect,
    feature_selection.RFE,
    feature_selection.RFECV,
    feature_selection.SelectFdr,
    feature_selection.SelectFpr,
    feature_selection.SelectFromModel,
    feature_selection.SelectFwe,
    feature_selection.SelectKBest,
    feature_selection.SelectPercentile,
    feature_selection.SequentialFeatureSelector,
    feature_selection.VarianceThreshold,
)

BY_COLUMN: dict[type, Callable[[Any, Matrix], Matrix]] = {
    CategoryCodes: lambda _codes, matrix: matrix,
    preprocessing.MaxAbsScaler: _max_abs,
    preprocessing.MinMaxScaler: _min_max,
    preprocessing.OneHotEncoder: _one_hot,
    preprocessing.OrdinalEncoder: _ordinal,
    preprocessing.RobustScaler: _robust,
    preprocessing.TargetEncoder: _target_encoder,
    MissingIndicator: _indicator,
    SimpleImputer: _imputer,
    **dict.fromkeys(SELECTORS, _selector),
    preprocessing.StandardScaler: _standard,
}
