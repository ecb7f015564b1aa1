"""The features of a model: their names, kinds and bounds, and the conversion of one value into a row and back.

A row is float64 in schema order whatever the kinds: a category is its index in `categories`, a boolean is 0 or 1,
a missing value is NaN. So every row has one canonical form, and a batch of them is one matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import msgspec
import numpy as np
import pandas as pd
from numpy.typing import NDArray

Kind = Literal["number", "integer", "boolean", "category"]
Rows = NDArray[np.float64]

NUMBERS = frozenset({float, int})


class Feature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One feature.

    `minimum` and `maximum` are enforced; `seen` is the range of the sample. `categories` are the values of a category.
    `dtype` is the column's pandas dtype in the DataFrame that the estimator was fitted on.
    """

    name: str
    kind: Kind
    dtype: str = "float64"
    nullable: bool = False
    minimum: float | None = None
    maximum: float | None = None
    seen: tuple[float, float] | None = None
    categories: tuple[str | int, ...] = ()

    def widened(self, other: Feature) -> Feature:
        """The feature, accepting also every number that `other` accepts, if that is of the same kind."""
        if self.kind != other.kind:
            return self
        lows, highs = (self.minimum, other.minimum), (self.maximum, other.maximum)
        low = min((bound for bound in lows if bound is not None), default=None)
        high = max((bound for bound in highs if bound is not None), default=None)
        return msgspec.structs.replace(
            self, minimum=None if None in lows else low, maximum=None if None in highs else high
        )

    def json_schema(self) -> dict[str, Any]:
        """The values that a client may send, as JSON Schema."""
        kind: dict[str, Any]
        if self.kind == "category":
            kind = {"enum": [*self.categories, *([None] if self.nullable else [])]}
        else:
            kind = {"type": [self.kind, "null"] if self.nullable else self.kind}
        for keyword, bound in (("minimum", self.minimum), ("maximum", self.maximum)):
            if bound is not None:
                kind[keyword] = bound
        if self.seen is not None:
            kind["x-seen"] = {"minimum": self.seen[0], "maximum": self.seen[1]}
        return kind

    def encoder(self) -> Callable[[Any], float]:
        """A function from a JSON value to its cell in a row; it raises ValueError with the reason."""
        match self.kind:
            case "category":
                encode = self._category_encoder()
            case "boolean":
                encode = _encode_boolean
            case _:
                encode = self._number_encoder()
        nullable = self.nullable

        def encode_or_missing(value: Any) -> float:
            if value is not None:
                return encode(value)
            if nullable:
                return math.nan
            raise ValueError("must not be null")

        return encode_or_missing

    def _number_encoder(self) -> Callable[[Any], float]:
        low = -math.inf if self.minimum is None else self.minimum
        high = math.inf if self.maximum is None else self.maximum
        integer = self.kind == "integer"

        def encode(value: Any) -> float:
            if type(value) not in NUMBERS:
                raise ValueError("must be a number")
            try:
                number = float(value)
            except OverflowError:
                number = math.inf
            if not math.isfinite(number):
                raise ValueError("must be finite")
            if not low <= number <= high:
                raise ValueError(f"must be between {low:g} and {high:g}")
            if integer and not number.is_integer():
                raise ValueError("must be an integer")
            return number

        return encode

    def _category_encoder(self) -> Callable[[Any], float]:
        codes = {category: float(index) for index, category in enumerate(self.categories)}
        listed = ", ".join(str(category) for category in self.categories)
        reason = f"must be one of {listed}" if len(listed) <= 200 else f"must be one of {len(codes)} categories"

        def encode(value: Any) -> float:
            # bool and float are refused by type: True and 1.0 equal 1 and would find its code
            code = codes.get(value) if type(value) in (str, int) else None
            if code is None:
                raise ValueError(reason)
            return code

        return encode

    def decode(self, cell: float) -> Any:
        """The JSON value of a row's `cell`."""
        if math.isnan(cell):
            return None
        match self.kind:
            case "category":
                return self.categories[int(cell)]
            case "boolean":
                return bool(cell)
            case "integer":
                return int(cell)
        return float(cell)

    def column(self, cells: Rows) -> Any:
        """`cells`, shape (rows,), as the pandas column that the estimator was fitted on."""
        missing = np.isnan(cells)
        if self.kind == "category":
            values = np.array([*self.categories, None], dtype=object)
            column = values[np.where(missing, len(self.categories), cells).astype(np.intp)]
        elif self.kind == "boolean" and self.dtype == "object":
            column = cells.astype(bool).astype(object)
            column[missing] = None
        else:
            column = cells
        if self.dtype == "category":
            return pd.Categorical(column, categories=list(self.categories))
        if self.dtype == "object":
            return pd.Series(column, dtype=object)  # without the dtype pandas infers str
        if missing.any() and self.dtype in ("bool", "int64", "int32"):
            return column  # plain integers and booleans have no missing value; pandas reads such columns as floats
        return pd.Series(column).astype(self.dtype).array


def _encode_boolean(value: Any) -> float:
    if type(value) is not bool:
        raise ValueError("must be true or false")
    return float(value)
