"""Infers the features of a model from a table of its input."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from registry.errors import CannotAdd
from registry.rows.features import Feature, Kind


def infer_features(frame: pd.DataFrame, margin: float | None) -> tuple[Feature, ...]:
    """The features of a sample of a model's input.

    `margin` widens the range of the sample to the range accepted, in widths of the sample's range: 1 accepts a value as
    far outside as the sample is wide, 0 only the sample's range, None everything the column can hold. A number that is
    never negative in the sample must not become so. Raises CannotAdd.
    """
    return tuple(_infer_feature(str(name), frame[name], margin) for name in frame.columns)


def _infer_feature(name: str, column: pd.Series[Any], margin: float | None) -> Feature:
    if not 0 < len(name) <= 128 or not name.isprintable():
        raise CannotAdd(f"column {name!r}: a feature's name must have 1 to 128 printable characters")
    values = column.dropna()
    if values.empty:
        raise CannotAdd(f"column {name!r} has no values")
    feature = partial(Feature, name=name, dtype=str(column.dtype), nullable=bool(column.isna().any()))
    if isinstance(column.dtype, pd.CategoricalDtype):
        return feature(kind="category", categories=_categories(name, column.cat.categories))
    if pd.api.types.is_bool_dtype(values.infer_objects()):
        return feature(kind="boolean")
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_complex_dtype(column):
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise CannotAdd(f"column {name!r} contains infinite values")
        minimum, maximum = _accepted(low, high, margin, _limits(column.dtype))
        kind: Kind = "integer" if pd.api.types.is_integer_dtype(column) else "number"
        return feature(kind=kind, seen=(low, high), minimum=minimum, maximum=maximum)
    if pd.api.types.is_string_dtype(values):
        return feature(kind="category", categories=_categories(name, sorted(values.unique())))
    raise CannotAdd(f"column {name!r} has the unsupported type {column.dtype}")


def _limits(dtype: Any) -> tuple[float, float]:
    """The range of numbers that neither wrap around in a column of this type nor lose digits in a row.

    Fractions end where single precision does: trees and others compute in it, and fail beyond its range.
    """
    plain = np.dtype(getattr(dtype, "numpy_dtype", dtype))
    if plain.kind in "iu":
        limits = np.iinfo(plain)
        return float(max(limits.min, 1 - 2**53)), float(min(limits.max, 2**53 - 1))
    largest = min(float(np.finfo(plain).max), float(np.finfo(np.float32).max))
    return -largest, largest


def _accepted(low: float, high: float, margin: float | None, limits: tuple[float, float]) -> tuple[float, float]:
    if margin is None:
        return min(low, limits[0]), max(high, limits[1])
    reach = margin * (high - low)
    minimum = low - reach if low < 0 else max(0.0, low - reach)
    return min(low, max(minimum, limits[0])), max(high, min(high + reach, limits[1]))


def _categories(name: str, values: Any) -> tuple[str | int, ...]:
    plain = tuple(value.item() if isinstance(value, np.generic) else value for value in values)
    if not all(type(value) in (str, int) for value in plain):
        raise CannotAdd(f"column {name!r}: categories must be strings or integers")
    if len(plain) > 1000:
        raise CannotAdd(f"column {name!r} has {len(plain)} different strings (at most 1000); is it an identifier?")
    return plain
