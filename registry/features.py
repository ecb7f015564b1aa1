"""The features of a model: their names, kinds and bounds, and the way from JSON instances to rows and back.

A row is float64 in schema order whatever the kinds: a category is its index in `categories`, a boolean is 0 or 1,
a missing value is NaN. So every row has one canonical form, and a batch of them is one matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import islice
from typing import Any, Literal

import msgspec
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from registry.errors import CannotAdd, Fault, InvalidRows, NestedTooDeep

Kind = Literal["number", "integer", "boolean", "category"]
Rows = NDArray[np.float64]

NUMBERS = frozenset({float, int})
DEEPEST = 16
"""Levels of arrays and objects; an instance in a request needs four."""


class Feature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One feature.

    `minimum` and `maximum` are enforced, `seen` is what the sample held. `categories` are the values a category may
    take. `dtype` is the column's pandas dtype in the frame that the estimator was fitted on.
    """

    name: str
    kind: Kind
    dtype: str = "float64"
    nullable: bool = False
    minimum: float | None = None
    maximum: float | None = None
    seen: tuple[float, float] | None = None
    categories: tuple[str | int, ...] = ()

    def json_schema(self) -> dict[str, Any]:
        """What a client may send, as JSON Schema."""
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
        """A function from a JSON value to its place in a row; it raises ValueError with the reason."""
        encode = getattr(self, f"_{self.kind}_encoder")()
        nullable = self.nullable

        def encode_or_missing(value: Any) -> float:
            if value is None:
                if nullable:
                    return math.nan
                raise ValueError("must not be null")
            result: float = encode(value)
            return result

        return encode_or_missing

    def _number_encoder(self) -> Callable[[Any], float]:
        low = -math.inf if self.minimum is None else self.minimum
        high = math.inf if self.maximum is None else self.maximum

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
            return number

        return encode

    def _integer_encoder(self) -> Callable[[Any], float]:
        encode_number = self._number_encoder()

        def encode(value: Any) -> float:
            number = encode_number(value)
            if not number.is_integer():
                raise ValueError("must be an integer")
            return number

        return encode

    def _boolean_encoder(self) -> Callable[[Any], float]:
        def encode(value: Any) -> float:
            if type(value) is not bool:
                raise ValueError("must be true or false")
            return float(value)

        return encode

    def _category_encoder(self) -> Callable[[Any], float]:
        codes = {category: float(index) for index, category in enumerate(self.categories)}
        listed = ", ".join(str(category) for category in self.categories)
        reason = f"must be one of {listed}" if len(listed) <= 200 else f"must be one of {len(codes)} categories"

        def encode(value: Any) -> float:
            # bool and float are refused by type: True == 1 and 1.0 == 1 would find each other's code
            code = codes.get(value) if type(value) in (str, int) else None
            if code is None:
                raise ValueError(reason)
            return code

        return encode

    def decode(self, cell: float) -> Any:
        """The JSON value that `cell` of a row stands for."""
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
        """`cells`, shape (rows,), as the pandas column that the estimator knows."""
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
            return pd.Series(column, dtype=object)  # anything less explicit is guessed to be of type str
        if missing.any() and self.dtype in ("bool", "int64", "int32"):
            return column  # plain whole numbers and booleans have no missing value; pandas reads such columns as floats
        return pd.Series(column).astype(self.dtype).array


class Schema:
    """The features of one model, in the order of its rows."""

    def __init__(self, features: Sequence[Feature]) -> None:
        self.features = tuple(features)
        self.names = tuple(feature.name for feature in features)
        self._encoders = tuple(feature.encoder() for feature in features)
        self._positions = {name: index for index, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.features)

    def rows(self, instances: Sequence[Any]) -> Rows:
        """Instances as JSON gave them (objects by name, or arrays in order), as rows of shape (instances, features).

        Raises InvalidRows naming instance and feature, NestedTooDeep for what is no instance at all.
        """
        if not instances:
            raise InvalidRows([Fault(0, None, "there must be at least one instance")])
        faults: list[Fault] = []
        table = []
        for index, instance in enumerate(instances):
            table.append(self._cells(index, instance, type(instances[0]), faults))
            if len(faults) >= InvalidRows.LIMIT:
                break
        if faults:
            if any(depth(instance) > DEEPEST - 2 for instance in instances):
                raise NestedTooDeep(faults)
            raise InvalidRows(faults)
        return np.array(table, dtype=np.float64)

    def _cells(self, index: int, instance: Any, kind: type, faults: list[Fault]) -> list[float]:
        if type(instance) is not kind or not isinstance(instance, dict | list):
            shape = {"dict": "an object, like the first", "list": "an array, like the first"}
            faults.append(Fault(index, None, f"must be {shape.get(kind.__name__, 'an object or an array')}"))
            return []
        if isinstance(instance, list):
            if len(instance) != len(self.names):
                faults.append(Fault(index, None, f"must have {len(self.names)} values, has {len(instance)}"))
                return []
            return self._encode(index, zip(self.names, instance, strict=True), faults)
        if instance.keys() != self._positions.keys():
            faults.extend(self._misnamed(index, instance))
        present = [(name, instance[name]) for name in self.names if name in instance]
        return self._encode(index, present, faults)

    def _encode(self, index: int, values: Any, faults: list[Fault]) -> list[float]:
        cells = []
        for name, value in values:
            try:
                cells.append(self._encoders[self._positions[name]](value))
            except ValueError as error:
                faults.append(Fault(index, name, str(error)))
        return cells

    def _misnamed(self, index: int, instance: dict[str, Any]) -> list[Fault]:
        missing = [Fault(index, name, "is missing") for name in self.names if name not in instance]
        # no more than are shown: an object may have hundreds of thousands
        unknown = islice((name for name in instance if name not in self._positions), InvalidRows.LIMIT)
        # An unknown name is the client's own text: shown only as far as it helps
        shown = [name if len(name) <= 64 and name.isprintable() else "(unreadable)" for name in unknown]
        return missing + [Fault(index, name, "is not a feature of this model") for name in shown]

    def instance(self, row: Sequence[float]) -> dict[str, Any]:
        """A row back in the user's terms."""
        return {f.name: f.decode(float(cell)) for f, cell in zip(self.features, row, strict=True)}

    def frame(self, rows: Rows) -> pd.DataFrame:
        """Rows as the DataFrame that the estimator was fitted on: same columns, same dtypes."""
        return pd.DataFrame({f.name: f.column(rows[:, i]) for i, f in enumerate(self.features)}, copy=False)

    @cached_property
    def object_schema(self) -> dict[str, Any]:
        """An instance by feature name, as JSON Schema."""
        return {
            "type": "object",
            "properties": {feature.name: feature.json_schema() for feature in self.features},
            "required": list(self.names),
            "additionalProperties": False,
        }

    @cached_property
    def array_schema(self) -> dict[str, Any]:
        """An instance as an array in schema order, as JSON Schema."""
        return {
            "type": "array",
            "prefixItems": [feature.json_schema() for feature in self.features],
            "minItems": len(self),
            "maxItems": len(self),
        }


def depth(value: Any) -> int:
    """Levels of arrays and objects, counted no further than needed; iterative, because the value is hostile."""
    level, levels = [value], 0
    while levels <= DEEPEST:
        level = [
            inner
            for outer in level
            if type(outer) in (list, dict)
            for inner in (outer if type(outer) is list else outer.values())
        ]
        if not level:
            return levels
        levels += 1
    return levels


def infer_features(frame: pd.DataFrame, margin: float | None) -> tuple[Feature, ...]:
    """The features that a sample of a model's input shows.

    `margin` widens the range seen to the range accepted, in widths of the range seen: 1 accepts a value as far
    outside as the sample is wide, 0 only what was seen, None all that the column can hold. A quantity that is never
    negative in the sample may not become so. Raises CannotAdd.
    """
    return tuple(_infer_feature(str(name), frame[name], margin) for name in frame.columns)


def _infer_feature(name: str, column: pd.Series[Any], margin: float | None) -> Feature:
    if not 0 < len(name) <= 128 or not name.isprintable():
        raise CannotAdd(f"column {name!r}: a feature's name has 1 to 128 printable characters")
    values = column.dropna()
    if values.empty:
        raise CannotAdd(f"column {name!r} has no values")
    nullable = bool(column.isna().any())
    dtype = str(column.dtype)
    if isinstance(column.dtype, pd.CategoricalDtype):
        categories = _categories(name, column.cat.categories)
        return Feature(name=name, kind="category", dtype="category", nullable=nullable, categories=categories)
    if pd.api.types.is_bool_dtype(values.infer_objects()):
        return Feature(name=name, kind="boolean", dtype=dtype, nullable=nullable)
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_complex_dtype(column):
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise CannotAdd(f"column {name!r} holds infinite values")
        minimum, maximum = _accepted(low, high, margin, _limits(column.dtype))
        return Feature(
            name=name,
            kind="integer" if pd.api.types.is_integer_dtype(column) else "number",
            dtype=dtype,
            nullable=nullable,
            seen=(low, high),
            minimum=minimum,
            maximum=maximum,
        )
    if pd.api.types.is_string_dtype(values):
        categories = _categories(name, sorted(values.unique()))
        return Feature(name=name, kind="category", dtype=dtype, nullable=nullable, categories=categories)
    raise CannotAdd(f"column {name!r} has the unsupported type {dtype}")


def _limits(dtype: Any) -> tuple[float, float]:
    """The numbers that neither wrap around in a column of this type nor lose digits in a row.

    Fractions end where single precision does: trees and others compute in it, and fail on what it cannot hold.
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
        raise CannotAdd(f"column {name!r}: categories must be texts or whole numbers")
    if len(plain) > 1000:
        raise CannotAdd(f"column {name!r} has {len(plain)} different texts; is it an identifier? (limit 1000)")
    return plain
